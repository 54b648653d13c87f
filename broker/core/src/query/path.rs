//! Places in rows.

use super::ast::{Collection, MEMBERS, Path, Root, Side, Step};
use super::lex::Token;
use super::parse::Parser;
use super::{Problem, QueryError};
use crate::tree::escape;

/// What a path may begin with.
const ROOTS: &str = "deviceId, moduleId, tags, properties.reported, properties.desired, \
                     configurations.[[id]].status or another member of the twin";
/// The same in a target condition.
const TARGET_ROOTS: &str = "deviceId, moduleId, tags or properties.reported";
const NAME: &str = "a property's name; one with other characters than letters, digits and _ in [[ ]]";

impl Parser<'_> {
    pub(super) fn path(&mut self) -> Result<Path, QueryError> {
        let start = self.span();
        self.collection_prefix()?;
        let root = self.root()?;
        let mut path = Path { root, keys: Box::default(), rest: Box::default() };
        self.steps(&mut path)?;
        if let Root::Section(side) = path.root
            && let Some(special) = path.keys.first().filter(|key| key.starts_with('$'))
        {
            path.root = match &**special {
                "$version" => Root::Version(side),
                "$metadata" => Root::Metadata(side),
                _ => {
                    let found = special.to_string();
                    let problem = Problem::Expected { expected: "$version or $metadata", found };
                    return Err(QueryError { span: self.span_from(start), problem });
                }
            };
            path.keys = path.keys[1..].into();
        }
        if self.targets && !may_target(&path) {
            let feature =
                "a target condition on anything but deviceId, moduleId, tags and reported properties"
                    .to_owned();
            return Err(QueryError {
                span: self.span_from(start),
                problem: Problem::Unsupported { feature },
            });
        }
        Ok(path)
    }

    /// Takes the collection's name before a path of one of its rows.
    fn collection_prefix(&mut self) -> Result<(), QueryError> {
        if self.peek_at(1) != Some(&Token::Symbol(".")) || !self.keyword("devices") {
            return Ok(());
        }
        let name = match self.collection {
            Collection::Devices => {
                self.next += 1;
                return Ok(());
            }
            Collection::Modules => "modules",
            Collection::Jobs => "jobs",
        };
        self.next += 1;
        if !self.keyword(name) {
            return Err(self.expected("the collection that FROM names"));
        }
        self.want(".", ". and a property")
    }

    fn root(&mut self) -> Result<Root, QueryError> {
        let roots = if self.targets { TARGET_ROOTS } else { ROOTS };
        if self.collection == Collection::Jobs {
            // All its members may be asked for; the first one is a key.
            return match self.peek() {
                Some(Token::Word(_) | Token::Quoted(_)) => Ok(Root::Job),
                _ => Err(self.expected("a property of a job")),
            };
        }
        let Some(Token::Word(word)) = self.peek() else { return Err(self.expected(roots)) };
        let is = |name: &str| word.eq_ignore_ascii_case(name);
        let root = if is("deviceId") {
            Root::DeviceId
        } else if is("moduleId") {
            Root::ModuleId
        } else if is("tags") {
            Root::Tags
        } else if is("configurations") {
            Root::Configurations
        } else if is("properties") {
            Root::Properties
        } else if let Some(name) = MEMBERS.into_iter().find(|name| is(name)) {
            Root::Member(name)
        } else {
            return Err(self.expected(roots));
        };
        self.next += 1;
        if root == Root::Properties && self.symbol(".") {
            if self.keyword("reported") {
                return Ok(Root::Section(Side::Reported));
            }
            if self.keyword("desired") {
                return Ok(Root::Section(Side::Desired));
            }
            return Err(self.expected("reported or desired"));
        }
        Ok(root)
    }

    fn steps(&mut self, path: &mut Path) -> Result<(), QueryError> {
        let (mut keys, mut rest) = (Vec::new(), Vec::new());
        if path.root == Root::Job {
            keys.push(escape(&self.name(NAME)?).into_boxed_str());
        }
        loop {
            if self.symbol(".") {
                let key = escape(&self.name(NAME)?).into_boxed_str();
                if rest.is_empty() {
                    keys.push(key);
                } else {
                    rest.push(Step::Key(key));
                }
            } else if self.symbol("[") {
                rest.push(Step::Index(self.index()?));
            } else if matches!(self.peek(), Some(Token::Quoted(_))) {
                return Err(self.expected(". before a name in [[ ]]"));
            } else {
                (path.keys, path.rest) = (keys.into_boxed_slice(), rest.into_boxed_slice());
                return Ok(());
            }
        }
    }

    fn index(&mut self) -> Result<u32, QueryError> {
        let index = match self.peek() {
            Some(&Token::Number(n)) if n.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&n) => {
                n as u32
            }
            Some(Token::String(_)) => {
                return Err(self.unsupported("a property's name in [' ']; write .[[name]]"));
            }
            _ => return Err(self.expected("an element's number, from 0")),
        };
        self.next += 1;
        self.want("]", "] after the element's number")?;
        Ok(index)
    }

    pub(super) fn name(&mut self, expected: &'static str) -> Result<String, QueryError> {
        let name = match self.peek() {
            Some(Token::Word(name) | Token::Quoted(name)) => name.clone(),
            _ => return Err(self.expected(expected)),
        };
        self.next += 1;
        Ok(name)
    }
}

fn may_target(path: &Path) -> bool {
    match path.root {
        Root::DeviceId | Root::ModuleId | Root::Tags => true,
        Root::Section(Side::Reported) => !path.keys.is_empty(),
        _ => false,
    }
}
