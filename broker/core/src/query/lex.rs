//! Text to tokens.

use std::ops::Range;

use winnow::combinator::{alt, delimited, opt, preceded, repeat};
use winnow::prelude::*;
use winnow::token::{one_of, take, take_till, take_until, take_while};

use super::{Problem, QueryError};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A keyword or a name.
    Word(String),
    /// A name in `[[..]]`, which is never a keyword.
    Quoted(String),
    String(String),
    Number(f64),
    Symbol(&'static str),
}

pub(super) type Spanned = (Token, Range<usize>);

/// Longest first, so that `<=` is not read as `<`.
const SYMBOLS: [&str; 18] =
    ["<>", "<=", ">=", "!=", "=", "<", ">", "(", ")", "[", "]", ",", ".", "*", "+", "-", "/", "%"];

/// Most characters of a query. Source: `articles/iot-hub/query-twins.md` in MicrosoftDocs/azure-docs.
const MAX_LENGTH: usize = 8192;

/// All tokens of a text.
pub(super) fn tokens(text: &str) -> Result<Vec<Spanned>, QueryError> {
    if let Some((end, _)) = text.char_indices().nth(MAX_LENGTH) {
        return Err(QueryError { span: end..text.len(), problem: Problem::TooLong { limit: MAX_LENGTH } });
    }
    let mut rest = text;
    let mut tokens = Vec::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Ok(tokens);
        }
        let start = text.len() - rest.len();
        match token.parse_next(&mut rest) {
            Ok(token) => tokens.push((token, start..text.len() - rest.len())),
            Err(_) => return Err(stray(text, start)),
        }
    }
}

fn stray(text: &str, start: usize) -> QueryError {
    let first = text[start..].chars().next().unwrap_or(' ');
    let expected = match first {
        '\'' | '"' => "a string with its closing quote and no escapes but \\' \\\" \\\\ and \\uXXXX",
        '[' => "]] after the name",
        c if c.is_ascii_digit() => "a number",
        _ => "a name, a number, a string or an operator",
    };
    QueryError {
        span: start..start + first.len_utf8(),
        problem: Problem::Expected { expected, found: format!("{first:?}") },
    }
}

fn token(input: &mut &str) -> ModalResult<Token> {
    alt((
        bracketed.map(Token::Quoted),
        string.map(Token::String),
        number.map(Token::Number),
        word.map(Token::Word),
        symbol.map(Token::Symbol),
    ))
    .parse_next(input)
}

fn bracketed(input: &mut &str) -> ModalResult<String> {
    delimited("[[", take_until(1.., "]]"), "]]").map(str::to_owned).parse_next(input)
}

fn word(input: &mut &str) -> ModalResult<String> {
    (one_of(starts_word), take_while(0.., continues_word)).take().map(str::to_owned).parse_next(input)
}

fn starts_word(c: char) -> bool {
    c.is_alphabetic() || c == '_' || c == '$'
}

fn continues_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

fn symbol(input: &mut &str) -> ModalResult<&'static str> {
    let found = SYMBOLS.into_iter().find(|symbol| input.starts_with(symbol));
    match found {
        Some(symbol) => take(symbol.len()).value(symbol).parse_next(input),
        None => winnow::combinator::fail.parse_next(input),
    }
}

/// A decimal or hexadecimal number, which no name may follow at once. A sign is only part of it after an operator
/// or a bracket, which the parser knows.
fn number(input: &mut &str) -> ModalResult<f64> {
    let digits = |least: usize| take_while(least.., |c: char| c.is_ascii_digit());
    let decimal =
        (digits(1), opt(('.', digits(1))), opt((one_of(['e', 'E']), opt(one_of(['+', '-'])), digits(1))))
            .take()
            .verify_map(|digits: &str| digits.parse::<f64>().ok().filter(|number| number.is_finite()));
    let hexadecimal = preceded(
        alt(("0x", "0X")),
        take_while(1..=13, |c: char| c.is_ascii_hexdigit())
            .try_map(|digits| u64::from_str_radix(digits, 16).map(|number| number as f64)),
    );
    let number = alt((hexadecimal, decimal)).parse_next(input)?;
    winnow::combinator::not(one_of(continues_word)).parse_next(input)?;
    Ok(number)
}

fn string(input: &mut &str) -> ModalResult<String> {
    let mut quote = one_of(['\'', '"']).parse_next(input)?;
    let text = repeat(0.., fragment(quote))
        .fold(String::new, |mut text, fragment: String| {
            text.push_str(&fragment);
            text
        })
        .parse_next(input)?;
    quote.parse_next(input)?;
    Ok(text)
}

fn fragment<'a>(quote: char) -> impl ModalParser<&'a str, String, winnow::error::ContextError> {
    alt((
        take_till(1.., move |c| c == quote || c == '\\').map(str::to_owned),
        preceded('\\', escaped).map(String::from),
    ))
}

fn escaped(input: &mut &str) -> ModalResult<char> {
    alt((
        one_of(['\'', '"', '\\']),
        preceded('u', take(4_usize)).verify_map(|digits: &str| {
            let is_hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
            u32::from_str_radix(digits, 16).ok().filter(|_| is_hex).and_then(char::from_u32)
        }),
    ))
    .parse_next(input)
}

/// A token for a message.
pub(super) fn excerpt(text: &str, span: &Range<usize>) -> String {
    match &text[span.clone()] {
        "" => "the end".to_owned(),
        token => format!("{:?}", token.chars().take(40).collect::<String>()),
    }
}
