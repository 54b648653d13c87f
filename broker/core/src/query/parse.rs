//! Tokens to queries.
//!
//! The grammar needs few tokens of lookahead, so a descent that is written out gives better messages than
//! combinators would: it knows at each place what would have been right. This file has the clauses of a query;
//! `expr` has what stands in them, `path` the places that they name.

use std::ops::Range;

use super::ast::{Aggregate, Collection, Expr, Item, Path, Select, Selection, What};
use super::lex::{self, Spanned, Token};
use super::{Problem, QueryError};
use crate::tree::{escape, unescape};

/// How deep parentheses, calls, NOTs and minuses may nest.
const DEPTH: usize = 64;

/// Parses a target condition: an expression, or `FROM devices.modules WHERE` and one.
pub(super) fn condition(text: &str) -> Result<(Collection, Option<Expr>), QueryError> {
    let mut parser = Parser::new(text)?;
    parser.targets = true;
    if !parser.is_keyword("FROM") {
        let expr = parser.expr()?;
        parser.end("AND, OR or the end of the condition")?;
        return Ok((Collection::Devices, Some(expr)));
    }
    parser.from()?;
    if parser.collection == Collection::Jobs {
        return Err(parser.unsupported_last("a target condition on jobs"));
    }
    let filter = parser.filter()?;
    parser.end("AND, OR or the end of the condition")?;
    Ok((parser.collection, filter))
}

pub(super) fn query(text: &str) -> Result<Select, QueryError> {
    let mut parser = Parser::new(text)?;
    if !parser.keyword("SELECT") {
        return Err(parser.expected("SELECT"));
    }
    parser.look_ahead();
    let top = parser.top()?;
    let start = parser.next;
    let selection = parser.selection()?;
    let selected = parser.next;
    parser.from()?;
    let filter = parser.filter()?;
    let group = parser.group()?;
    if parser.keyword("ORDER") {
        return Err(parser.unsupported_last("ORDER BY"));
    }
    parser.end(match (filter.is_some(), group.is_empty()) {
        (_, false) => ", or the end of the query",
        (true, true) => "AND, OR, GROUP BY or the end of the query",
        (false, true) => "WHERE, GROUP BY or the end of the query",
    })?;
    let select = Select { top, selection, collection: parser.collection, filter, group };
    parser.check(&select, start, selected)?;
    Ok(select)
}

pub(super) struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Spanned>,
    pub(super) next: usize,
    depth: usize,
    /// A target condition, which may not ask for what configurations themselves change.
    pub(super) targets: bool,
    pub(super) collection: Collection,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, QueryError> {
        let tokens = lex::tokens(text)?;
        Ok(Self { text, tokens, next: 0, depth: 0, targets: false, collection: Collection::Devices })
    }

    pub(super) fn peek(&self) -> Option<&Token> {
        self.peek_at(0)
    }

    pub(super) fn peek_at(&self, ahead: usize) -> Option<&Token> {
        self.tokens.get(self.next + ahead).map(|(token, _)| token)
    }

    pub(super) fn span(&self) -> Range<usize> {
        self.tokens.get(self.next).map_or(self.text.len()..self.text.len(), |(_, span)| span.clone())
    }

    fn last_span(&self) -> Range<usize> {
        self.next.checked_sub(1).map_or(0..0, |last| self.tokens[last].1.clone())
    }

    /// From a token that was taken to the last one.
    pub(super) fn span_from(&self, start: Range<usize>) -> Range<usize> {
        start.start..self.last_span().end.max(start.start)
    }

    pub(super) fn expected(&self, expected: &'static str) -> QueryError {
        let span = self.span();
        let found = lex::excerpt(self.text, &span);
        QueryError { span, problem: Problem::Expected { expected, found } }
    }

    pub(super) fn unsupported(&self, feature: impl Into<String>) -> QueryError {
        QueryError { span: self.span(), problem: Problem::Unsupported { feature: feature.into() } }
    }

    pub(super) fn unsupported_last(&self, feature: impl Into<String>) -> QueryError {
        QueryError { span: self.last_span(), problem: Problem::Unsupported { feature: feature.into() } }
    }

    pub(super) fn is_keyword(&self, keyword: &str) -> bool {
        matches!(self.peek(), Some(Token::Word(word)) if word.eq_ignore_ascii_case(keyword))
    }

    /// Takes a keyword, in any case.
    pub(super) fn keyword(&mut self, keyword: &str) -> bool {
        let found = self.is_keyword(keyword);
        self.next += usize::from(found);
        found
    }

    pub(super) fn symbol(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Symbol(other)) if *other == symbol);
        self.next += usize::from(found);
        found
    }

    pub(super) fn want(&mut self, symbol: &str, expected: &'static str) -> Result<(), QueryError> {
        if self.symbol(symbol) { Ok(()) } else { Err(self.expected(expected)) }
    }

    fn end(&self, expected: &'static str) -> Result<(), QueryError> {
        if self.peek().is_none() { Ok(()) } else { Err(self.expected(expected)) }
    }

    /// Guards the stack.
    pub(super) fn deeper<T>(
        &mut self,
        inner: impl FnOnce(&mut Self) -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        if self.depth == DEPTH {
            return Err(self.unsupported_last(format!("nesting deeper than {DEPTH}")));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// Finds the collection before what is selected from it is read. Whatever is wrong with it, [`Self::from`] says.
    fn look_ahead(&mut self) {
        let is_from = |at: &usize| {
            let word = matches!(&self.tokens[*at].0, Token::Word(word) if word.eq_ignore_ascii_case("FROM"));
            word && self.tokens[*at - 1].0 != Token::Symbol(".")
        };
        let Some(from) = (self.next..self.tokens.len()).find(is_from) else { return };
        let here = std::mem::replace(&mut self.next, from);
        // An error is met again at its place.
        let _ = self.from();
        self.next = here;
    }

    fn top(&mut self) -> Result<Option<u32>, QueryError> {
        if self.keyword("DISTINCT") {
            return Err(self.unsupported_last("SELECT DISTINCT"));
        }
        if !self.keyword("TOP") {
            return Ok(None);
        }
        let Some(&Token::Number(number)) = self.peek() else {
            return Err(self.expected("how many rows at most"));
        };
        if number.fract() != 0.0 || !(1.0..=f64::from(u32::MAX)).contains(&number) {
            return Err(self.expected("a whole number of rows, at least 1"));
        }
        self.next += 1;
        Ok(Some(number as u32))
    }

    fn selection(&mut self) -> Result<Selection, QueryError> {
        if self.symbol("*") {
            return Ok(Selection::Everything);
        }
        let (mut items, mut unnamed) = (Vec::<Item>::new(), 0);
        loop {
            let start = self.span();
            let what = self.what()?;
            let name = self.alias(&what, &mut unnamed)?;
            if items.iter().any(|item| item.name == name) {
                let span = self.span_from(start);
                let found = unescape(&name);
                let expected = "names that differ: give one of the values another with AS";
                return Err(QueryError { span, problem: Problem::Expected { expected, found } });
            }
            items.push(Item { what, name });
            if !self.symbol(",") {
                return Ok(Selection::Items(items.into_boxed_slice()));
            }
        }
    }

    fn what(&mut self) -> Result<What, QueryError> {
        let called = self.peek_at(1) == Some(&Token::Symbol("("));
        let Some(Token::Word(word)) = self.peek() else {
            return match self.peek() {
                Some(Token::Number(_) | Token::String(_) | Token::Symbol("(" | "-" | "+" | "[")) => {
                    Err(self.unsupported("selecting anything but properties and aggregates"))
                }
                _ => Err(self.expected("*, a property or an aggregate")),
            };
        };
        if !called {
            return self.path().map(What::Path);
        }
        let same = |aggregate: &Aggregate| aggregate.name().eq_ignore_ascii_case(word);
        let Some(aggregate) = Aggregate::ALL.into_iter().find(same) else {
            return Err(self.unsupported("selecting anything but properties and aggregates"));
        };
        self.next += 2;
        if aggregate == Aggregate::Count && self.symbol(")") {
            return Ok(What::Aggregate(aggregate, None));
        }
        if !matches!(self.peek(), Some(Token::Word(_))) {
            return Err(self.expected(match aggregate {
                Aggregate::Count => ") or a property",
                _ => "a property",
            }));
        }
        let path = self.path()?;
        self.want(")", ") after the aggregate's property")?;
        Ok(What::Aggregate(aggregate, Some(path)))
    }

    /// The escaped name of a selected value: its alias, the last part of its path, or `$` and a number.
    fn alias(&mut self, what: &What, unnamed: &mut u32) -> Result<Box<str>, QueryError> {
        if self.keyword("AS") {
            return self.name("a name").map(|name| escape(&name).into_boxed_str());
        }
        if let Some(Token::Symbol("+" | "-" | "*" | "/" | "%")) = self.peek() {
            return Err(self.unsupported("selecting anything but properties and aggregates"));
        }
        let last = match what {
            What::Path(path) => path.last(),
            What::Aggregate(..) => None,
        };
        Ok(last.map_or_else(
            || {
                *unnamed += 1;
                format!("${unnamed}").into_boxed_str()
            },
            Box::from,
        ))
    }

    fn from(&mut self) -> Result<(), QueryError> {
        if !self.keyword("FROM") {
            return Err(self.expected(", or FROM"));
        }
        if !self.keyword("devices") {
            return Err(self.expected("devices, devices.modules or devices.jobs"));
        }
        self.collection = if !self.symbol(".") {
            Collection::Devices
        } else if self.keyword("modules") {
            Collection::Modules
        } else if self.keyword("jobs") {
            Collection::Jobs
        } else {
            return Err(self.expected("modules or jobs"));
        };
        match self.peek() {
            Some(Token::Word(word)) if word.eq_ignore_ascii_case("JOIN") => Err(self.unsupported("JOIN")),
            Some(Token::Word(word)) if word.eq_ignore_ascii_case("AS") => {
                Err(self.unsupported("a name for the collection"))
            }
            _ => Ok(()),
        }
    }

    fn filter(&mut self) -> Result<Option<Expr>, QueryError> {
        if self.keyword("WHERE") { self.expr().map(Some) } else { Ok(None) }
    }

    fn group(&mut self) -> Result<Box<[Path]>, QueryError> {
        let mut paths = Vec::new();
        if self.keyword("GROUP") {
            if !self.keyword("BY") {
                return Err(self.expected("BY"));
            }
            paths.push(self.path()?);
            while self.symbol(",") {
                paths.push(self.path()?);
            }
            if self.keyword("HAVING") {
                return Err(self.unsupported_last("HAVING"));
            }
        }
        Ok(paths.into_boxed_slice())
    }

    /// Refuses what each clause allows by itself and all together do not. What is selected are the tokens from
    /// `start` to `end`.
    fn check(&self, select: &Select, start: usize, end: usize) -> Result<(), QueryError> {
        let span = self.tokens[start].1.start..self.tokens[end - 1].1.end;
        let error = |problem| Err(QueryError { span: span.clone(), problem });
        let unsupported = |feature: &str| error(Problem::Unsupported { feature: feature.to_owned() });
        let expected =
            |expected| error(Problem::Expected { expected, found: lex::excerpt(self.text, &span) });
        let Selection::Items(items) = &select.selection else {
            if !select.group.is_empty() {
                return expected("the grouped properties and aggregates, with GROUP BY");
            }
            return Ok(());
        };
        if select.collection == Collection::Jobs {
            return unsupported("selecting anything but * from devices.jobs");
        }
        let aggregates = items.iter().any(|item| matches!(item.what, What::Aggregate(..)));
        let stray = |item: &Item| match &item.what {
            What::Path(path) => !select.group.contains(path),
            What::Aggregate(..) => false,
        };
        if (aggregates || !select.group.is_empty()) && items.iter().any(stray) {
            return expected("only aggregates and properties that GROUP BY names");
        }
        Ok(())
    }
}
