//! `docs/hub-coverage.md`, made from the table of operations.

use std::fmt::Write as _;

use super::router::{Handler, TABLES};

/// The page, in Markdown.
#[must_use]
pub fn coverage() -> String {
    let mut page = String::from(
        "# What the hub's HTTPS surface covers\n\n\
         Made from the router by `cargo test -p fleetwave-hub coverage`; `UPDATE_DOCS=1` in front of it writes it anew.\n\
         What is not modelled is answered with 501 and its name. Who may is said as the right that a shared access policy\n\
         needs.\n",
    );
    for (title, operations) in TABLES {
        let _ = write!(
            page,
            "\n## {title}\n\n| operation | request | who may | SDK calls | test | not modelled |\n\
             |---|---|---|---|---|---|\n"
        );
        for operation in *operations {
            let short = match operation.handler {
                Handler::NotModelled(feature) => format!("all of it: {feature}"),
                Handler::Does(_) => operation.short.to_owned(),
            };
            let (name, verb, path) = (operation.name, operation.method.name(), operation.path);
            let test =
                if operation.test.is_empty() { String::new() } else { format!("`{}`", operation.test) };
            let (who, sdk) = (operation.access, operation.sdk);
            let _ = writeln!(page, "| {name} | `{verb} {path}` | {who} | {sdk} | {test} | {short} |");
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coverage_page_is_what_the_router_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/hub-coverage.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, coverage()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(page == coverage(), "run `UPDATE_DOCS=1 cargo test -p fleetwave-hub coverage`");
    }

    #[test]
    fn each_test_that_the_page_names_exists() {
        let mut sources = String::new();
        for folder in ["tests", "src/rest"] {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
            collect(&folder, &mut sources);
        }
        for operation in TABLES.iter().flat_map(|(_, operations)| *operations) {
            let does = matches!(operation.handler, Handler::Does(_));
            assert_eq!(does, !operation.test.is_empty(), "{}", operation.name);
            let function = operation.test.rsplit("::").next().unwrap_or_default();
            assert!(!does || sources.contains(&format!("fn {function}(")), "no test {}", operation.test);
        }
    }

    fn collect(folder: &std::path::Path, sources: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, sources);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push_str(&std::fs::read_to_string(&path).unwrap());
            }
        }
    }
}
