//! Expressions. The weakest binds last: OR, AND, NOT, comparisons and IN, sums, products, signs.

use super::QueryError;
use super::ast::{Aggregate, Comparison, Expr, Function, Literal, Operator};
use super::lex::Token;
use super::parse::Parser;

/// Functions of the language that the real one is derived from, which it does not have itself.
const NOT_IN_THE_LANGUAGE: [&str; 16] = [
    "ARRAY_CONTAINS",
    "ARRAY_CONCAT",
    "ARRAY_LENGTH",
    "ARRAY_SLICE",
    "IS_INTEGER",
    "IS_FINITE_NUMBER",
    "LEFT",
    "RIGHT",
    "LTRIM",
    "RTRIM",
    "TRIM",
    "REPLACE",
    "REGEXMATCH",
    "ROUND",
    "TRUNC",
    "TOSTRING",
];

impl Parser<'_> {
    pub(super) fn expr(&mut self) -> Result<Expr, QueryError> {
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
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expr, QueryError> {
        let left = self.sum()?;
        if self.keyword("IN") {
            return Ok(Expr::In(Box::new(left), self.items()?));
        }
        let not =
            self.is_keyword("NOT") && matches!(self.peek_at(1), Some(Token::Word(word)) if is(word, "IN"));
        if not || self.is_keyword("NIN") {
            self.next += if not { 2 } else { 1 };
            return Ok(Expr::Not(Box::new(Expr::In(Box::new(left), self.items()?))));
        }
        for word in ["LIKE", "BETWEEN"] {
            if self.is_keyword(word) {
                return Err(self.unsupported(word));
            }
        }
        let Some(comparison) = self.comparison_sign() else { return Ok(left) };
        let right = self.sum()?;
        Ok(Expr::Compare(comparison, Box::new((left, right))))
    }

    fn comparison_sign(&mut self) -> Option<Comparison> {
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

    fn sum(&mut self) -> Result<Expr, QueryError> {
        self.arithmetic(&Operator::SUMS, Self::product)
    }

    fn product(&mut self) -> Result<Expr, QueryError> {
        self.arithmetic(&Operator::PRODUCTS, Self::sign)
    }

    fn arithmetic(
        &mut self,
        operators: &[Operator],
        part: fn(&mut Self) -> Result<Expr, QueryError>,
    ) -> Result<Expr, QueryError> {
        let first = part(self)?;
        let mut rest = Vec::new();
        while let Some(operator) = operators.iter().find(|operator| self.symbol(operator.symbol())) {
            rest.push((*operator, part(self)?));
        }
        if rest.is_empty() {
            return Ok(first);
        }
        Ok(Expr::Arithmetic(Box::new(first), rest.into_boxed_slice()))
    }

    fn sign(&mut self) -> Result<Expr, QueryError> {
        let Some(Token::Symbol(sign @ ("-" | "+"))) = self.peek() else { return self.operand() };
        let minus = *sign == "-";
        if let Some(Token::Number(_)) = self.peek_at(1) {
            return self.operand();
        }
        self.next += 1;
        let inner = self.deeper(Self::sign)?;
        Ok(if minus { Expr::Negate(Box::new(inner)) } else { inner })
    }

    fn operand(&mut self) -> Result<Expr, QueryError> {
        if self.symbol("(") {
            let inner = self.deeper(Self::expr)?;
            self.want(")", "AND, OR or )")?;
            return Ok(inner);
        }
        if let Some(literal) = self.literal()? {
            return Ok(Expr::Literal(literal));
        }
        let Some(Token::Word(word)) = self.peek() else {
            return match self.peek() {
                Some(Token::Quoted(_)) if self.is_job() => self.path().map(Expr::Path),
                _ => Err(self.expected("a property or a value")),
            };
        };
        if self.peek_at(1) == Some(&Token::Symbol("("))
            && !["NOT", "AND", "OR", "IN", "NIN"].iter().any(|k| is(word, k))
        {
            let word = word.clone();
            return self.call(&word);
        }
        self.path().map(Expr::Path)
    }

    fn is_job(&self) -> bool {
        self.collection == super::ast::Collection::Jobs
    }

    fn call(&mut self, name: &str) -> Result<Expr, QueryError> {
        if Aggregate::ALL.iter().any(|aggregate| is(name, aggregate.name())) {
            return Err(
                self.unsupported(format!("the aggregate {}() outside SELECT", name.to_ascii_uppercase()))
            );
        }
        let Some(function) = Function::called(name) else {
            if NOT_IN_THE_LANGUAGE.iter().any(|other| is(name, other)) {
                return Err(self.unsupported(format!("the function {}()", name.to_ascii_uppercase())));
            }
            return Err(self.expected("a function of the query language"));
        };
        self.next += 2;
        let (least, most) = function.arguments();
        let mut arguments = Vec::new();
        loop {
            arguments.push(self.deeper(Self::expr)?);
            if arguments.len() < least {
                self.want(",", ", and one more argument of the function")?;
            } else if arguments.len() == most || !self.symbol(",") {
                break;
            }
        }
        self.want(")", ") after the function's arguments")?;
        Ok(Expr::Call(function, arguments.into_boxed_slice()))
    }

    fn items(&mut self) -> Result<Box<[Literal]>, QueryError> {
        self.want("[", "[ and a list of values")?;
        self.rest_of_array()
    }

    fn rest_of_array(&mut self) -> Result<Box<[Literal]>, QueryError> {
        let mut list = Vec::new();
        if self.symbol("]") {
            return Ok(list.into_boxed_slice());
        }
        loop {
            let Some(literal) = self.deeper(Self::literal)? else {
                return Err(self.expected("a string, a number, true, false or null"));
            };
            list.push(literal);
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
            Some(Token::Word(word)) if is(word, "true") => Literal::Bool(true),
            Some(Token::Word(word)) if is(word, "false") => Literal::Bool(false),
            Some(Token::Word(word)) if is(word, "null") => Literal::Null,
            Some(Token::Word(word)) if is(word, "undefined") => Literal::Undefined,
            Some(Token::Symbol("[")) => {
                self.next += 1;
                return self.rest_of_array().map(Literal::Array).map(Some);
            }
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
}

fn is(word: &str, other: &str) -> bool {
    word.eq_ignore_ascii_case(other)
}
