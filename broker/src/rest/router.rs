//! The table of operations, and how a request finds its own.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use fleetwave_hub_core::throttle;
use fleetwave_protocol::bag;
use hyper::Method;

use super::{ApiError, Call, Reply};
use crate::policy::Rights;

/// What an operation gives, when it is done.
pub(crate) type Outcome = Pin<Box<dyn Future<Output = Result<Reply, ApiError>> + Send>>;

/// Does an operation.
#[derive(Clone, Copy)]
pub(crate) enum Handler {
    /// By this function.
    Does(fn(Call) -> Outcome),
    /// Not at all: 501 with the feature's name.
    NotModelled(&'static str),
}

/// Who may ask for an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// A shared access policy with these rights.
    Policy(Rights),
    /// The device that the path's first parameter names, or a policy that may speak as a device.
    Device,
    /// Anybody; the operation checks for itself.
    Own,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(rights) => rights.fmt(f),
            Self::Device => write!(f, "the device, or {}", Rights::DEVICE_CONNECT),
            Self::Own => f.write_str("by its own check"),
        }
    }
}

/// One operation of the HTTPS surface.
#[derive(Clone, Copy)]
pub(crate) struct Operation {
    /// What it does, in a few words.
    pub(crate) name: &'static str,
    /// The HTTP method.
    pub(crate) method: Verb,
    /// The path; `{…}` stands for one segment. Compared without regard to case, and to a slash at the end.
    pub(crate) path: &'static str,
    /// Who may.
    pub(crate) access: Access,
    /// Whose limit it counts against.
    pub(crate) limit: Option<throttle::Operation>,
    /// The SDK calls that use it.
    pub(crate) sdk: &'static str,
    /// The test that shows it.
    pub(crate) test: &'static str,
    /// What of it is not modelled; empty if all is.
    pub(crate) short: &'static str,
    pub(crate) handler: Handler,
}

/// A [`Handler`] of an async function.
macro_rules! does {
    ($handler:path) => {
        $crate::rest::router::Handler::Does(|call| Box::pin($handler(call)))
    };
}
pub(super) use does;

impl Operation {
    /// An operation that counts against no limit.
    pub(super) const fn new(
        name: &'static str,
        method: Verb,
        path: &'static str,
        rights: Rights,
        handler: Handler,
    ) -> Self {
        let access = Access::Policy(rights);
        Self { name, method, path, access, limit: None, sdk: "", test: "", short: "", handler }
    }

    /// An operation of a device, or of the module in the path.
    pub(super) const fn of_device(
        name: &'static str,
        method: Verb,
        path: &'static str,
        handler: Handler,
    ) -> Self {
        let access = Access::Device;
        Self { name, method, path, access, limit: None, sdk: "", test: "", short: "", handler }
    }

    /// Whether the path's second parameter names a module of the device.
    pub(super) fn is_of_module(&self) -> bool {
        self.path.contains("/modules/{")
    }

    /// The limit that it counts against.
    pub(super) const fn limited(mut self, limit: throttle::Operation) -> Self {
        self.limit = Some(limit);
        self
    }

    /// The SDK calls that use it.
    pub(super) const fn sdk(mut self, sdk: &'static str) -> Self {
        self.sdk = sdk;
        self
    }

    /// The test that shows it.
    pub(super) const fn test(mut self, test: &'static str) -> Self {
        self.test = test;
        self
    }

    /// What of it is not modelled.
    pub(super) const fn short(mut self, short: &'static str) -> Self {
        self.short = short;
        self
    }
}

/// HTTP methods, for tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Put,
    Patch,
    Post,
    Delete,
}

impl Verb {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }
}

/// All tables.
pub(crate) const TABLES: &[(&str, &[Operation])] = &[
    ("Devices", super::devices::OPERATIONS),
    ("Many devices", super::bulk::OPERATIONS),
    ("Modules", super::modules::OPERATIONS),
    ("Twins", super::twins::OPERATIONS),
    ("Direct methods", super::methods::OPERATIONS),
    ("Queries", super::query::OPERATIONS),
    ("Configurations", super::configurations::OPERATIONS),
    ("Digital twins", super::digital::OPERATIONS),
    ("Messages to devices, and files from them", super::messages::OPERATIONS),
    ("Jobs", super::jobs::OPERATIONS),
    ("Statistics", super::statistics::OPERATIONS),
    ("Device provisioning", super::provisioning::OPERATIONS),
    ("Device side", super::device::OPERATIONS),
    ("Messages to a device that fetches them", super::devicebound::OPERATIONS),
    ("File upload", super::files::OPERATIONS),
    ("Not modelled", super::unmodelled::OPERATIONS),
];

/// What became of the search for an operation.
pub(crate) enum Found {
    Operation(&'static Operation, Vec<String>),
    /// The path is one, with these other methods.
    OtherMethod(Vec<&'static str>),
    Nothing,
}

/// The operation of a method and an encoded path.
pub(crate) fn find(method: &Method, path: &str) -> Found {
    let mut others = Vec::new();
    for operation in TABLES.iter().flat_map(|(_, operations)| *operations) {
        if let Some(params) = match_path(operation.path, path) {
            if operation.method.name() == method.as_str() {
                return Found::Operation(operation, params);
            }
            others.push(operation.method.name());
        }
    }
    if others.is_empty() { Found::Nothing } else { Found::OtherMethod(others) }
}

/// The parameters of a path that fits a pattern.
fn match_path(pattern: &str, path: &str) -> Option<Vec<String>> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let mut segments = path.split('/');
    let mut params = Vec::new();
    for expected in pattern.split('/') {
        let segment = segments.next()?;
        if expected.starts_with('{') {
            let value = bag::decode(segment)?;
            if value.is_empty() {
                return None;
            }
            params.push(value.into_owned());
        } else if !expected.eq_ignore_ascii_case(segment) {
            return None;
        }
    }
    segments.next().is_none().then_some(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_fits_whole_decoded_and_in_any_case() {
        assert_eq!(match_path("/devices/{id}", "/devices/a%23b"), Some(vec!["a#b".to_owned()]));
        assert_eq!(match_path("/devices/{id}", "/Devices/a/"), Some(vec!["a".to_owned()]));
        assert_eq!(match_path("/devices", "/devices/"), Some(vec![]));
        for path in ["/devices", "/devices//", "/devices/a/modules", "/device/a", "/devices/%zz"] {
            assert_eq!(match_path("/devices/{id}", path), None, "{path}");
        }
    }

    #[test]
    fn no_operation_hides_another() {
        let all: Vec<_> = TABLES.iter().flat_map(|(_, operations)| *operations).collect();
        for operation in &all {
            let example = operation.path.replace(['{', '}'], "x");
            let method = Method::from_bytes(operation.method.name().as_bytes()).unwrap();
            let Found::Operation(found, _) = find(&method, &example) else {
                panic!("{} {example} is not found", operation.method.name());
            };
            assert_eq!(found.path, operation.path, "{} hides {}", found.name, operation.name);
        }
    }
}
