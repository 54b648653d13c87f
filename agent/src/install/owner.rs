//! Users and groups, by name or number, as `/etc/passwd` and `/etc/group` know them.

use std::fs;

use serde::Deserialize;

use super::InstallError;

/// `app`, `app:app`, `1000:1000`: a user, and a group if it is not left as it is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct OwnerName {
    user: String,
    group: Option<String>,
}

impl TryFrom<String> for OwnerName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (&*text, None),
        };
        if user.is_empty() || group.is_some_and(|group| group.is_empty() || group.contains(':')) {
            return Err(format!("{text:?} is no owner: user, or user:group"));
        }
        Ok(Self { user: user.to_owned(), group: group.map(str::to_owned) })
    }
}

/// A user and a group, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) user: u32,
    pub(crate) group: Option<u32>,
}

impl OwnerName {
    /// Their numbers. Looked up late: a package that comes after the agent may make the user.
    pub(crate) fn resolve(&self) -> Result<Owner, InstallError> {
        let user = number(&self.user, "/etc/passwd", "user")?;
        let group = self.group.as_deref().map(|group| number(group, "/etc/group", "group")).transpose()?;
        Ok(Owner { user, group })
    }
}

fn number(name: &str, path: &str, what: &str) -> Result<u32, InstallError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let text = fs::read_to_string(path).map_err(InstallError::io(format!("reading {path}")))?;
    find(&text, name).ok_or_else(|| InstallError::Refused(format!("{path} knows no {what} {name}")))
}

/// The third field of the line of `name`.
fn find(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.split(':').nth(1)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<OwnerName, String> {
        text.to_owned().try_into()
    }

    #[test]
    fn an_owner_is_a_user_or_a_user_and_a_group() {
        let owner = read("root:1000").expect("well-formed").resolve().expect("they exist");
        assert_eq!(owner, Owner { user: 0, group: Some(1000) });
        assert_eq!(
            read("7").expect("well-formed").resolve().expect("a number"),
            Owner { user: 7, group: None }
        );
        for text in ["", ":app", "app:", "a:b:c"] {
            assert!(read(text).expect_err(text).contains("user:group"), "{text}");
        }
        let error = read("nobody-of-this-name").expect("well-formed").resolve().expect_err("unknown");
        assert_eq!(error.to_string(), "/etc/passwd knows no user nobody-of-this-name");
    }

    #[test]
    fn a_name_is_found_whole() {
        let text = "application:x:1:2::/:\napp:x:1001:1002::/:/bin/sh\n";
        assert_eq!((find(text, "app"), find(text, "appl")), (Some(1001), None));
    }
}
