//! Queries as data.

/// What a query selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projection {
    /// Whole twins.
    Twin,
    /// Device ids.
    DeviceId,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expr {
    /// True if all are.
    And(Vec<Self>),
    /// True if one is.
    Or(Vec<Self>),
    Not(Box<Self>),
    Compare(Comparison, Operand, Operand),
    In(Operand, Box<[Literal]>),
    Is(Test, Operand),
    Text(TextTest, Operand, Operand),
    /// A value that stands where a condition is wanted.
    Truth(Operand),
}

impl Expr {
    /// True of nothing.
    pub(crate) const NONE: Self = Self::Or(Vec::new());

    /// Visits the paths that it mentions.
    pub(crate) fn paths(&self, visit: &mut impl FnMut(&Path)) {
        let mut operand = |operand: &Operand| {
            if let Operand::Path(path) = operand {
                visit(path);
            }
        };
        match self {
            Self::And(parts) | Self::Or(parts) => {
                for part in parts {
                    part.paths(visit);
                }
            }
            Self::Not(inner) => inner.paths(visit),
            Self::Compare(_, left, right) | Self::Text(_, left, right) => {
                operand(left);
                operand(right);
            }
            Self::In(value, _) | Self::Is(_, value) | Self::Truth(value) => operand(value),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    Defined,
    Null,
    Bool,
    Number,
    String,
    Object,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextTest {
    StartsWith,
    EndsWith,
    Contains,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    Path(Path),
    Literal(Literal),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Literal {
    Undefined,
    Null,
    Bool(bool),
    Number(f64),
    String(Box<str>),
}

/// A place in a twin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) root: Root,
    /// Escaped keys below the root; for [`Root::ConfigurationStatus`] the configuration's id alone, as it is.
    pub(crate) members: Box<[Box<str>]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    DeviceId,
    Tags,
    Desired,
    Reported,
    ConfigurationStatus,
}
