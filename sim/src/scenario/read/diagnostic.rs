//! What is wrong with a scenario, and where, shown as compilers show it.

use core::fmt;

/// One thing that is wrong, or worth a second look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong.
    pub message: String,
    /// What would have been right.
    pub help: Option<String>,
    /// Where it stands; `None` if it is about the file as a whole.
    pub place: Option<Place>,
    /// Whether the scenario can be run all the same.
    pub warning: bool,
}

/// Where something stands in a text that the user wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file with line and column, or the argument.
    pub origin: String,
    /// The line's number; `None` for an argument.
    pub line: Option<usize>,
    /// The line, or the argument, without its end.
    pub text: String,
    /// Characters before the part that is meant.
    pub start: usize,
    /// Characters of that part, at least one.
    pub length: usize,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", if self.warning { "warning" } else { "error" }, self.message)?;
        if let Some(place) = &self.place {
            let number = place.line.map_or_else(|| " ".to_owned(), |line| line.to_string());
            let margin = " ".repeat(number.len());
            // Tabs would put the caret elsewhere than under its text.
            let text = place.text.replace('\t', " ");
            writeln!(f, "{margin}--> {}", place.origin)?;
            writeln!(f, "{margin} |")?;
            writeln!(f, "{number} | {text}")?;
            writeln!(f, "{margin} | {}{}", " ".repeat(place.start), "^".repeat(place.length.max(1)))?;
            if let Some(help) = &self.help {
                writeln!(f, "{margin} = help: {help}")?;
            }
        } else if let Some(help) = &self.help {
            writeln!(f, "  = help: {help}")?;
        }
        Ok(())
    }
}

/// Everything that is wrong with a scenario.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// A problem with the file as a whole.
    pub(super) fn whole(message: String, help: Option<String>) -> Self {
        Self(vec![Diagnostic { message, help, place: None, warning: false }])
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            diagnostic.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}
