//! Tokens to queries.
//!
//! The grammar needs one token of lookahead, so a descent that is written out gives better messages than
//! combinators would: it knows at each place what would have been right.

use std::ops::Range;

use super::ast::{Comparison, Expr, Literal, Operand, Path, Projection, Root, Test, TextTest};
use super::lex::{self, Spanned, Token};
use super::{Problem, QueryError};
use crate::tree::escape;

/// How deep parentheses and NOTs may nest.
const DEPTH: usize = 64;

/// Functions that the language has for twins or message routes and this hub does not.
const UNSUPPORTED_FUNCTIONS: [&str; 19] = [
    "ABS",
    "EXP",
    "POWER",
    "SQUARE",
    "CEILING",
    "FLOOR",
    "SIGN",
    "SQRT",
    "AS_NUMBER",
    "IS_ARRAY",
    "IS_PRIMITIVE",
    "CONCAT",
    "LENGTH",
    "LOWER",
    "UPPER",
    "SUBSTRING",
    "INDEX_OF",
    "TRIM",
    "ARRAY_CONTAINS",
];

const AGGREGATES: [&str; 5] = ["COUNT", "AVG", "SUM", "MIN", "MAX"];

/// What the twin has and queries can't ask for here.
const UNSUPPORTED_ROOTS: [&str; 14] = [
    "status",
    "connectionState",
    "etag",
    "version",
    "lastActivityTime",
    "statusUpdateTime",
    "statusReason",
    "authenticationType",
    "cloudToDeviceMessageCount",
    "x509Thumbprint",
    "capabilities",
    "moduleId",
    "modelId",
    "devices",
];

pub(super) fn condition(text: &str) -> Result<Expr, QueryError> {
    let mut parser = Parser::new(text)?;
    parser.targets = true;
    let expr = parser.expr()?;
    parser.end("AND, OR or the end of the condition")?;
    Ok(expr)
}

pub(super) fn query(text: &str) -> Result<(Projection, Option<Expr>), QueryError> {
    let mut parser = Parser::new(text)?;
    if !parser.keyword("SELECT") {
        return Err(parser.expected("SELECT"));
    }
    let projection = parser.projection()?;
    parser.from()?;
    let filter = if parser.keyword("WHERE") { Some(parser.expr()?) } else { None };
    if parser.keyword("GROUP") {
        return Err(parser.unsupported_last("GROUP BY"));
    }
    if parser.keyword("ORDER") {
        return Err(parser.unsupported_last("ORDER BY"));
    }
    parser.end(if filter.is_some() {
        "AND, OR or the end of the query"
    } else {
        "WHERE or the end of the query"
    })?;
    Ok((projection, filter))
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Spanned>,
    next: usize,
    depth: usize,
    /// A target condition, which may not ask for what configurations themselves change.
    targets: bool,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, QueryError> {
        Ok(Self { text, tokens: lex::tokens(text)?, next: 0, depth: 0, targets: false })
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next).map(|(token, _)| token)
    }

    fn span(&self) -> Range<usize> {
        self.tokens.get(self.next).map_or(self.text.len()..self.text.len(), |(_, span)| span.clone())
    }

    fn last_span(&self) -> Range<usize> {
        self.next.checked_sub(1).map_or(0..0, |last| self.tokens[last].1.clone())
    }

    fn expected(&self, expected: &'static str) -> QueryError {
        let span = self.span();
        let found = lex::excerpt(self.text, &span);
        QueryError { span, problem: Problem::Expected { expected, found } }
    }

    fn unsupported(&self, feature: impl Into<String>) -> QueryError {
        QueryError { span: self.span(), problem: Problem::Unsupported { feature: feature.into() } }
    }

    fn unsupported_last(&self, feature: impl Into<String>) -> QueryError {
        QueryError { span: self.last_span(), problem: Problem::Unsupported { feature: feature.into() } }
    }

    /// Takes a keyword, in any case.
    fn keyword(&mut self, keyword: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Word(word)) if word.eq_ignore_ascii_case(keyword));
        self.next += usize::from(found);
        found
    }

    fn symbol(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Symbol(other)) if *other == symbol);
        self.next += usize::from(found);
        found
    }

    fn want(&mut self, symbol: &str, expected: &'static str) -> Result<(), QueryError> {
        if self.symbol(symbol) { Ok(()) } else { Err(self.expected(expected)) }
    }

    fn end(&mut self, expected: &'static str) -> Result<(), QueryError> {
        self.no_arithmetic()?;
        if self.peek().is_none() { Ok(()) } else { Err(self.expected(expected)) }
    }

    fn projection(&mut self) -> Result<Projection, QueryError> {
        if self.symbol("*") {
            return Ok(Projection::Twin);
        }
        let Some(Token::Word(word)) = self.peek() else { return Err(self.expected("* or deviceId")) };
        if word.eq_ignore_ascii_case("TOP") {
            return Err(self.unsupported("SELECT TOP"));
        }
        if is_one_of(word, &AGGREGATES) {
            return Err(self.unsupported(format!("the aggregate {}()", word.to_ascii_uppercase())));
        }
        if word != "deviceId" {
            return Err(self.unsupported("selecting anything but * or deviceId"));
        }
        self.next += 1;
        if self.keyword("AS") {
            return Err(self.unsupported_last("AS"));
        }
        match self.peek() {
            Some(Token::Symbol(",")) => Err(self.unsupported("selecting more than one value")),
            _ => Ok(Projection::DeviceId),
        }
    }

    fn from(&mut self) -> Result<(), QueryError> {
        if !self.keyword("FROM") {
            return Err(self.expected("FROM"));
        }
        if !self.keyword("devices") {
            return Err(self.expected("devices"));
        }
        if self.symbol(".") {
            return Err(self.unsupported("FROM devices.modules and devices.jobs"));
        }
        Ok(())
    }

    fn expr(&mut self) -> Result<Expr, QueryError> {
        self.chain("OR", Self::all, Expr::Or)
    }

    fn all(&mut self) -> Result<Expr, QueryError> {
        self.chain("AND", Self::negation, Expr::And)
    }

    /// One or more parts with a keyword between them.
    fn chain(
        &mut self,
        keyword: &str,
        part: fn(&mut Self) -> Result<Expr, QueryError>,
        join: fn(Vec<Expr>) -> Expr,
    ) -> Result<Expr, QueryError> {
        let first = part(self)?;
        if !self.keyword(keyword) {
            return Ok(first);
        }
        let mut parts = vec![first, part(self)?];
        while self.keyword(keyword) {
            parts.push(part(self)?);
        }
        Ok(join(parts))
    }

    fn negation(&mut self) -> Result<Expr, QueryError> {
        if self.keyword("NOT") {
            return self.deeper(|parser| Ok(Expr::Not(Box::new(parser.negation()?))));
        }
        self.test()
    }

    /// Guards the stack.
    fn deeper(
        &mut self,
        inner: impl FnOnce(&mut Self) -> Result<Expr, QueryError>,
    ) -> Result<Expr, QueryError> {
        if self.depth == DEPTH {
            return Err(self.unsupported_last(format!("nesting deeper than {DEPTH}")));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn test(&mut self) -> Result<Expr, QueryError> {
        if self.symbol("(") {
            let inner = self.deeper(Self::expr)?;
            self.no_arithmetic()?;
            self.want(")", "AND, OR or )")?;
            return Ok(inner);
        }
        if let Some(call) = self.call()? {
            return Ok(call);
        }
        let left = self.operand()?;
        if self.keyword("IN") {
            return Ok(Expr::In(left, self.list()?));
        }
        if self.keyword("NIN") {
            return Ok(Expr::Not(Box::new(Expr::In(left, self.list()?))));
        }
        self.no_arithmetic()?;
        let Some(comparison) = self.comparison() else { return Ok(Expr::Truth(left)) };
        let right = self.operand()?;
        self.no_arithmetic()?;
        Ok(Expr::Compare(comparison, left, right))
    }

    fn comparison(&mut self) -> Option<Comparison> {
        let Some(Token::Symbol(symbol)) = self.peek() else { return None };
        let comparison = match *symbol {
            "=" => Comparison::Equal,
            "!=" | "<>" => Comparison::NotEqual,
            "<" => Comparison::Less,
            "<=" => Comparison::LessOrEqual,
            ">" => Comparison::Greater,
            ">=" => Comparison::GreaterOrEqual,
            _ => return None,
        };
        self.next += 1;
        Some(comparison)
    }

    fn no_arithmetic(&self) -> Result<(), QueryError> {
        match self.peek() {
            Some(Token::Symbol("+" | "-" | "*" | "/" | "%")) => Err(self.unsupported("arithmetic")),
            _ => Ok(()),
        }
    }

    /// A function call, if a name with a parenthesis stands here.
    fn call(&mut self) -> Result<Option<Expr>, QueryError> {
        let name = match (self.peek(), self.tokens.get(self.next + 1)) {
            (Some(Token::Word(name)), Some((Token::Symbol("("), _))) => name.to_ascii_uppercase(),
            _ => return Ok(None),
        };
        let test = match name.as_str() {
            "IS_DEFINED" => Test::Defined,
            "IS_NULL" => Test::Null,
            "IS_BOOL" => Test::Bool,
            "IS_NUMBER" => Test::Number,
            "IS_STRING" => Test::String,
            "IS_OBJECT" => Test::Object,
            "STARTSWITH" | "STARTS_WITH" => return self.text_call(TextTest::StartsWith).map(Some),
            "ENDSWITH" | "ENDS_WITH" => return self.text_call(TextTest::EndsWith).map(Some),
            "CONTAINS" => return self.text_call(TextTest::Contains).map(Some),
            _ if is_one_of(&name, &AGGREGATES) => {
                return Err(self.unsupported(format!("the aggregate {name}()")));
            }
            _ if is_one_of(&name, &UNSUPPORTED_FUNCTIONS) => {
                return Err(self.unsupported(format!("the function {name}()")));
            }
            "NOT" | "AND" | "OR" | "IN" | "NIN" => return Ok(None),
            _ => return Err(self.expected("a function of the query language")),
        };
        self.next += 2;
        let operand = self.operand()?;
        self.want(")", ") after the function's argument")?;
        Ok(Some(Expr::Is(test, operand)))
    }

    fn text_call(&mut self, test: TextTest) -> Result<Expr, QueryError> {
        self.next += 2;
        let left = self.operand()?;
        self.want(",", ", and the text to look for")?;
        let right = self.operand()?;
        self.want(")", ") after the function's arguments")?;
        Ok(Expr::Text(test, left, right))
    }

    fn list(&mut self) -> Result<Box<[Literal]>, QueryError> {
        self.want("[", "[ and a list of values")?;
        let mut list = Vec::new();
        if self.symbol("]") {
            return Ok(list.into_boxed_slice());
        }
        loop {
            list.push(
                self.literal()?.ok_or_else(|| self.expected("a string, a number, true, false or null"))?,
            );
            if self.symbol("]") {
                return Ok(list.into_boxed_slice());
            }
            self.want(",", ", or ] after a value")?;
        }
    }

    fn literal(&mut self) -> Result<Option<Literal>, QueryError> {
        let literal = match self.peek() {
            Some(Token::String(text)) => Literal::String(text.as_str().into()),
            Some(Token::Number(number)) => Literal::Number(*number),
            Some(Token::Word(word)) => match word.to_ascii_lowercase().as_str() {
                "true" => Literal::Bool(true),
                "false" => Literal::Bool(false),
                "null" => Literal::Null,
                "undefined" => Literal::Undefined,
                _ => return Ok(None),
            },
            Some(Token::Symbol(sign @ ("-" | "+"))) => {
                let factor = if *sign == "-" { -1.0 } else { 1.0 };
                self.next += 1;
                let Some(Token::Number(number)) = self.peek() else {
                    return Err(self.expected("a number after the sign"));
                };
                Literal::Number(factor * number)
            }
            _ => return Ok(None),
        };
        self.next += 1;
        Ok(Some(literal))
    }

    fn operand(&mut self) -> Result<Operand, QueryError> {
        if let Some(literal) = self.literal()? {
            return Ok(Operand::Literal(literal));
        }
        match self.peek() {
            Some(Token::Word(_)) => self.path().map(Operand::Path),
            Some(Token::Symbol("[")) => Err(self.unsupported("an array outside IN and NIN")),
            _ => Err(self.expected("a property or a value")),
        }
    }

    fn path(&mut self) -> Result<Path, QueryError> {
        const ROOTS: &str =
            "deviceId, tags, properties.reported, properties.desired or configurations.[[id]].status";
        let start = self.span();
        let Some(Token::Word(first)) = self.peek() else { return Err(self.expected(ROOTS)) };
        let first = first.clone();
        let root = match first.as_str() {
            "deviceId" => Root::DeviceId,
            "tags" => Root::Tags,
            "properties" => {
                self.next += 1;
                self.want(".", ".reported or .desired")?;
                match self.peek() {
                    Some(Token::Word(word)) if word == "reported" => Root::Reported,
                    Some(Token::Word(word)) if word == "desired" => Root::Desired,
                    _ => return Err(self.expected("reported or desired")),
                }
            }
            "configurations" => Root::ConfigurationStatus,
            _ if is_one_of(&first, &UNSUPPORTED_ROOTS) => {
                return Err(self.unsupported(format!("the twin's {first}")));
            }
            _ => return Err(self.expected(ROOTS)),
        };
        self.next += 1;
        if self.targets && matches!(root, Root::Desired | Root::ConfigurationStatus) {
            let feature = "a target condition on desired properties or on configurations".to_owned();
            return Err(QueryError {
                span: start.start..self.last_span().end,
                problem: Problem::Unsupported { feature },
            });
        }
        let members = match root {
            Root::DeviceId => Box::default(),
            Root::ConfigurationStatus => Box::new([self.configuration_status()?]),
            _ => self.members()?,
        };
        Ok(Path { root, members })
    }

    fn members(&mut self) -> Result<Box<[Box<str>]>, QueryError> {
        let mut members = Vec::new();
        while self.symbol(".") {
            let name = self
                .name("a property's name; one with other characters than letters, digits and _ in [[ ]]")?;
            if name.starts_with('$') {
                return Err(self.unsupported_last(format!("the twin's {name}")));
            }
            members.push(escape(&name).into_boxed_str());
        }
        match self.peek() {
            Some(Token::Symbol("[")) => Err(self.unsupported("access to an array's element")),
            _ => Ok(members.into_boxed_slice()),
        }
    }

    fn name(&mut self, expected: &'static str) -> Result<String, QueryError> {
        let name = match self.peek() {
            Some(Token::Word(name) | Token::Quoted(name)) => name.clone(),
            _ => return Err(self.expected(expected)),
        };
        self.next += 1;
        Ok(name)
    }

    fn configuration_status(&mut self) -> Result<Box<str>, QueryError> {
        self.want(".", ".[[id]].status")?;
        let id = self.name("a configuration's id in [[ ]]")?;
        self.want(".", ".status")?;
        if !self.keyword("status") {
            return Err(self.expected("status"));
        }
        Ok(id.into_boxed_str())
    }
}

fn is_one_of(word: &str, words: &[&str]) -> bool {
    words.iter().any(|other| word.eq_ignore_ascii_case(other))
}
