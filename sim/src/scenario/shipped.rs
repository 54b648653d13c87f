//! The scenarios that come with the program, so that they can be run by name.

/// A scenario that comes with the program.
#[derive(Clone, Copy, Debug)]
pub struct Shipped {
    /// Its name.
    pub name: &'static str,
    /// The file's text.
    pub text: &'static str,
}

impl Shipped {
    /// What it shows: the first line of the comment that it begins with.
    #[must_use]
    pub fn summary(&self) -> &'static str {
        self.text.lines().next().unwrap_or_default().trim_start_matches(['#', ' '])
    }
}

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        /// All of them, the simplest first.
        pub(super) const SHIPPED: &[Shipped] = &[
            $(Shipped { name: $name, text: include_str!(concat!("../../../scenarios/", $name, ".toml")) }),*
        ];
    };
}

shipped!(
    "quickstart",
    "staged-rollout",
    "thundering-herd",
    "flaky-links",
    "poison-release",
    "throttled-hub",
    "power-cuts",
    "real-agents",
);

/// The shipped scenario of that name.
#[must_use]
pub(super) fn find(name: &str) -> Option<&'static Shipped> {
    SHIPPED.iter().find(|shipped| shipped.name == name)
}

/// All shipped scenarios.
#[must_use]
pub const fn shipped() -> &'static [Shipped] {
    SHIPPED
}
