//! Queries as data.

/// What a query goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collection {
    /// `devices`: device twins.
    Devices,
    /// `devices.modules`: module twins.
    Modules,
    /// `devices.jobs`: what jobs did with each device.
    Jobs,
}

/// A whole query.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Select {
    pub(crate) top: Option<u32>,
    pub(crate) selection: Selection,
    pub(crate) collection: Collection,
    pub(crate) filter: Option<Expr>,
    pub(crate) group: Box<[Path]>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Selection {
    /// `*`.
    Everything,
    Items(Box<[Item]>),
}

/// A member of a result row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item {
    pub(crate) what: What,
    /// What the member is called, escaped.
    pub(crate) name: Box<str>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    Path(Path),
    Aggregate(Aggregate, Option<Path>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aggregate {
    Count,
    Avg,
    Sum,
    Min,
    Max,
}

impl Aggregate {
    pub(crate) const ALL: [Self; 5] = [Self::Count, Self::Avg, Self::Sum, Self::Min, Self::Max];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Count => "COUNT",
            Self::Avg => "AVG",
            Self::Sum => "SUM",
            Self::Min => "MIN",
            Self::Max => "MAX",
        }
    }
}

/// Something that has a value. Long chains are flat, so that only what is written nested is deep.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expr {
    Path(Path),
    Literal(Literal),
    /// True if all are.
    And(Vec<Self>),
    /// True if one is.
    Or(Vec<Self>),
    Not(Box<Self>),
    Compare(Comparison, Box<(Self, Self)>),
    In(Box<Self>, Box<[Literal]>),
    /// Operators of one precedence, from left to right.
    Arithmetic(Box<Self>, Box<[(Operator, Self)]>),
    Negate(Box<Self>),
    Call(Function, Box<[Self]>),
}

impl Expr {
    /// True of nothing.
    pub(crate) const NONE: Self = Self::Or(Vec::new());

    /// Visits the paths that it mentions.
    pub(crate) fn paths(&self, visit: &mut impl FnMut(&Path)) {
        match self {
            Self::Path(path) => visit(path),
            Self::Literal(_) => {}
            Self::And(parts) | Self::Or(parts) => parts.iter().for_each(|part| part.paths(visit)),
            Self::Not(inner) | Self::Negate(inner) | Self::In(inner, _) => inner.paths(visit),
            Self::Compare(_, sides) => {
                sides.0.paths(visit);
                sides.1.paths(visit);
            }
            Self::Arithmetic(first, rest) => {
                first.paths(visit);
                rest.iter().for_each(|(_, part)| part.paths(visit));
            }
            Self::Call(_, arguments) => arguments.iter().for_each(|part| part.paths(visit)),
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

impl Comparison {
    pub(crate) const fn symbol(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

impl Operator {
    pub(crate) const SUMS: [Self; 2] = [Self::Add, Self::Subtract];
    pub(crate) const PRODUCTS: [Self; 3] = [Self::Multiply, Self::Divide, Self::Remainder];

    pub(crate) const fn symbol(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::Remainder => "%",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Literal {
    Undefined,
    Null,
    Bool(bool),
    Number(f64),
    String(Box<str>),
    Array(Box<[Self]>),
}

/// A function of the language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    IsDefined,
    IsNull,
    IsBool,
    IsNumber,
    IsString,
    IsObject,
    IsArray,
    IsPrimitive,
    AsNumber,
    StartsWith,
    EndsWith,
    Contains,
    IndexOf,
    Substring,
    Concat,
    Length,
    Lower,
    Upper,
    Abs,
    Exp,
    Power,
    Square,
    Ceiling,
    Floor,
    Sign,
    Sqrt,
}

/// How a function is called, its other name if it has one, and how many arguments it takes.
const FUNCTIONS: [(Function, &str, &str, usize, usize); 26] = [
    (Function::IsDefined, "IS_DEFINED", "", 1, 1),
    (Function::IsNull, "IS_NULL", "", 1, 1),
    (Function::IsBool, "IS_BOOL", "", 1, 1),
    (Function::IsNumber, "IS_NUMBER", "", 1, 1),
    (Function::IsString, "IS_STRING", "", 1, 1),
    (Function::IsObject, "IS_OBJECT", "", 1, 1),
    (Function::IsArray, "IS_ARRAY", "", 1, 1),
    (Function::IsPrimitive, "IS_PRIMITIVE", "", 1, 1),
    (Function::AsNumber, "AS_NUMBER", "", 1, 1),
    (Function::StartsWith, "STARTSWITH", "STARTS_WITH", 2, 2),
    (Function::EndsWith, "ENDSWITH", "ENDS_WITH", 2, 2),
    (Function::Contains, "CONTAINS", "", 2, 2),
    (Function::IndexOf, "INDEX_OF", "", 2, 2),
    (Function::Substring, "SUBSTRING", "", 2, 3),
    (Function::Concat, "CONCAT", "", 2, usize::MAX),
    (Function::Length, "LENGTH", "", 1, 1),
    (Function::Lower, "LOWER", "", 1, 1),
    (Function::Upper, "UPPER", "", 1, 1),
    (Function::Abs, "ABS", "", 1, 1),
    (Function::Exp, "EXP", "", 1, 1),
    (Function::Power, "POWER", "", 2, 2),
    (Function::Square, "SQUARE", "", 1, 1),
    (Function::Ceiling, "CEILING", "", 1, 1),
    (Function::Floor, "FLOOR", "", 1, 1),
    (Function::Sign, "SIGN", "", 1, 1),
    (Function::Sqrt, "SQRT", "", 1, 1),
];

impl Function {
    #[cfg(test)]
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        FUNCTIONS.into_iter().map(|(function, ..)| function)
    }

    pub(crate) fn called(name: &str) -> Option<Self> {
        let same = |other: &str| !other.is_empty() && other.eq_ignore_ascii_case(name);
        FUNCTIONS.iter().find(|(_, one, other, ..)| same(one) || same(other)).map(|(function, ..)| *function)
    }

    pub(crate) const fn name(self) -> &'static str {
        FUNCTIONS[self as usize].1
    }

    /// The least and the most arguments.
    pub(crate) const fn arguments(self) -> (usize, usize) {
        let (.., least, most) = FUNCTIONS[self as usize];
        (least, most)
    }
}

/// A place in a row: what a query names as `tags.site.floors[0]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    pub(crate) root: Root,
    /// Escaped keys below the root, up to the first index.
    pub(crate) keys: Box<[Box<str>]>,
    /// What follows from the first index on.
    pub(crate) rest: Box<[Step]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A member of an object, its key escaped.
    Key(Box<str>),
    /// An element of an array, from zero.
    Index(u32),
}

/// A section of properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Desired,
    Reported,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    DeviceId,
    ModuleId,
    Tags,
    /// `properties`, both sections.
    Properties,
    /// A section; without keys it is all of it, with its metadata.
    Section(Side),
    /// A section's `$version`.
    Version(Side),
    /// What is in a section's `$metadata`.
    Metadata(Side),
    Configurations,
    /// Any other member of a twin.
    Member(&'static str),
    /// A row of `devices.jobs`.
    Job,
}

/// The members of a twin that are not among the other roots.
pub(crate) const MEMBERS: [&str; 18] = [
    "etag",
    "deviceEtag",
    "version",
    "status",
    "statusReason",
    "statusUpdateTime",
    "statusUpdatedTime",
    "connectionState",
    "connectionStateUpdatedTime",
    "lastActivityTime",
    "cloudToDeviceMessageCount",
    "authenticationType",
    "x509Thumbprint",
    "capabilities",
    "modelId",
    "deviceScope",
    "parentScopes",
    "managedBy",
];

impl Path {
    /// Whether twins with equal tags, properties and configurations may differ in it.
    pub(crate) fn is_individual(&self) -> bool {
        match self.root {
            Root::Tags | Root::Configurations => false,
            Root::Section(_) => self.keys.is_empty(),
            _ => true,
        }
    }

    /// The name that a result member has when the query gives none; `None` if it ends in an index.
    pub(crate) fn last(&self) -> Option<&str> {
        match (self.rest.last(), self.keys.last()) {
            (Some(Step::Index(_)), _) => None,
            (Some(Step::Key(key)), _) | (None, Some(key)) => Some(key),
            (None, None) => Some(self.root.names().last().copied().unwrap_or_default()),
        }
    }
}

impl Root {
    /// The names that lead to it from the row.
    pub(crate) const fn names(&self) -> &[&'static str] {
        match self {
            Self::DeviceId => &["deviceId"],
            Self::ModuleId => &["moduleId"],
            Self::Tags => &["tags"],
            Self::Properties => &["properties"],
            Self::Section(Side::Desired) => &["properties", "desired"],
            Self::Section(Side::Reported) => &["properties", "reported"],
            Self::Version(Side::Desired) => &["properties", "desired", "$version"],
            Self::Version(Side::Reported) => &["properties", "reported", "$version"],
            Self::Metadata(Side::Desired) => &["properties", "desired", "$metadata"],
            Self::Metadata(Side::Reported) => &["properties", "reported", "$metadata"],
            Self::Configurations => &["configurations"],
            Self::Member(name) => std::slice::from_ref(name),
            Self::Job => &[],
        }
    }
}
