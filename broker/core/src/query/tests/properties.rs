//! Properties of all queries: printing, and what they mean.

use serde_json::Value as Json;

use super::super::ast::{
    Aggregate, Comparison, Expr, Function, Item, Literal, MEMBERS, Operator, Select, Step, What,
};
use super::super::eval::{is_true, value};
use super::*;
use crate::tree::escape;

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned),
        1 => prop::sample::select(vec!["my-key", "SELECT", "from", "é \"", "1", "a]b"]).prop_map(str::to_owned),
    ]
}

fn key() -> impl Strategy<Value = Box<str>> {
    name().prop_map(|name| escape(&name).into_boxed_str())
}

fn path() -> impl Strategy<Value = Path> {
    let side = || prop::sample::select(vec![Side::Desired, Side::Reported]);
    let root = prop_oneof![
        1 => Just(Root::DeviceId),
        1 => Just(Root::ModuleId),
        4 => Just(Root::Tags),
        1 => Just(Root::Properties),
        4 => side().prop_map(Root::Section),
        1 => side().prop_map(Root::Version),
        1 => side().prop_map(Root::Metadata),
        1 => Just(Root::Configurations),
        1 => prop::sample::select(MEMBERS.to_vec()).prop_map(Root::Member),
    ];
    let rest = prop_oneof![
        3 => Just(Vec::new()),
        1 => (0_u32..3, prop::collection::vec(prop_oneof![
            key().prop_map(Step::Key),
            any::<u32>().prop_map(Step::Index),
        ], 0..2)).prop_map(|(first, mut rest)| {
            rest.insert(0, Step::Index(first));
            rest
        }),
    ];
    let parts = (root, prop::collection::vec(key(), 0..3), rest);
    parts
        .prop_map(|(root, keys, rest)| Path { root, keys: keys.into(), rest: rest.into() })
        .prop_filter("a section's name is itself a root", |path| {
            path.root != Root::Properties || path.keys.is_empty()
        })
}

fn literal() -> impl Strategy<Value = Literal> {
    let leaf = prop_oneof![
        Just(Literal::Undefined),
        Just(Literal::Null),
        any::<bool>().prop_map(Literal::Bool),
        (-3_i32..4).prop_map(|n| Literal::Number(n.into())),
        prop::num::f64::NORMAL.prop_map(Literal::Number),
        prop::sample::select(vec!["a", "b", "x"]).prop_map(|text| Literal::String(text.into())),
        "\\PC{0,6}['\"\\\\\n\u{0}]?".prop_map(|text| Literal::String(text.into())),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop::collection::vec(inner, 0..3).prop_map(|items| Literal::Array(items.into()))
    })
}

fn expr() -> impl Strategy<Value = Expr> {
    over(prop_oneof![path().prop_map(Expr::Path), literal().prop_map(Expr::Literal)])
}

/// Expressions over values of which many fit together: numbers, texts, truths, and little that is undefined.
fn meaningful() -> impl Strategy<Value = Expr> {
    let literal = |literal| Just(Expr::Literal(literal));
    over(prop_oneof![
        3 => (-4_i32..5).prop_map(|n| Expr::Literal(Literal::Number(f64::from(n) / 2.0))),
        2 => prop::sample::select(vec!["", "a", "b", "ab", "12", "Äx"])
            .prop_map(|text| Expr::Literal(Literal::String(text.into()))),
        2 => any::<bool>().prop_map(|value| Expr::Literal(Literal::Bool(value))),
        1 => literal(Literal::Undefined),
        1 => literal(Literal::Null),
        1 => path().prop_map(Expr::Path),
        3 => key().prop_map(|key| Expr::Path(Path {
            root: Root::Tags,
            keys: Box::new([key]),
            rest: Box::default(),
        })),
    ])
}

fn call(functions: &[Function], arguments: [BoxedStrategy<Expr>; 3]) -> BoxedStrategy<Expr> {
    let function = prop::sample::select(functions.to_vec());
    (function, arguments, 1_usize..4)
        .prop_map(|(function, arguments, count)| {
            let (least, most) = function.arguments();
            let count = count.clamp(least, most);
            Expr::Call(function, arguments.into_iter().take(count).collect())
        })
        .boxed()
}

/// Expressions whose parts have the types that their operators and functions are for.
fn typed() -> impl Strategy<Value = Expr> {
    use Function::{
        Abs, AsNumber, Ceiling, Concat, Contains, EndsWith, Exp, Floor, IndexOf, Length, Lower, Power, Sign,
        Sqrt, Square, StartsWith, Substring, Upper,
    };
    let number = (-6_i32..7).prop_map(|n| Expr::Literal(Literal::Number(f64::from(n) / 2.0)));
    let numbers = number.prop_recursive(3, 12, 3, |inner| {
        let chain = |operators: &[Operator]| {
            let operator = prop::sample::select(operators.to_vec());
            (inner.clone(), prop::collection::vec((operator, inner.clone()), 1..3))
                .prop_map(|(first, rest)| Expr::Arithmetic(Box::new(first), rest.into()))
        };
        let functions = [Abs, Exp, Power, Square, Ceiling, Floor, Sign, Sqrt, AsNumber];
        prop_oneof![
            2 => chain(&Operator::SUMS),
            2 => chain(&Operator::PRODUCTS),
            1 => inner.clone().prop_map(|inner| Expr::Negate(Box::new(inner))),
            2 => call(&functions, [inner.clone().boxed(), inner.clone().boxed(), inner.clone().boxed()]),
        ]
    });
    let text = prop::sample::select(vec!["", "a", "b", "ab", "12", "Äx", " -1.5e1"])
        .prop_map(|text| Expr::Literal(Literal::String(text.into())));
    let whole = (-1_i32..4).prop_map(|n| Expr::Literal(Literal::Number(n.into()))).boxed();
    let texts = text.prop_recursive(2, 8, 3, move |inner| {
        let (texts, whole) = (inner.boxed(), whole.clone());
        prop_oneof![
            call(&[Concat, Lower, Upper], [texts.clone(), texts.clone(), texts.clone()]),
            call(&[Substring], [texts, whole.clone(), whole]),
        ]
    });
    let (numbers, texts) = (numbers.boxed(), texts.boxed());
    let functions = [StartsWith, EndsWith, Contains, IndexOf, Length, AsNumber];
    prop_oneof![numbers, call(&functions, [texts.clone(), texts.clone(), texts.clone()]), texts,]
}

fn over(leaf: impl Strategy<Value = Expr> + 'static) -> impl Strategy<Value = Expr> {
    use Comparison::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    leaf.prop_recursive(4, 24, 3, |inner| {
        let parts = || prop::collection::vec(inner.clone(), 2..4);
        let chain = |operators: &[Operator]| {
            let operator = prop::sample::select(operators.to_vec());
            (inner.clone(), prop::collection::vec((operator, inner.clone()), 1..3))
                .prop_map(|(first, rest)| Expr::Arithmetic(Box::new(first), rest.into()))
        };
        let comparison =
            prop::sample::select(vec![Equal, NotEqual, Less, LessOrEqual, Greater, GreaterOrEqual]);
        let function = prop::sample::select(Function::all().collect::<Vec<_>>());
        let call = (function, prop::collection::vec(inner.clone(), 4), 0_usize..5).prop_map(
            |(function, mut arguments, count)| {
                let (least, most) = function.arguments();
                arguments.truncate(count.clamp(least, most));
                Expr::Call(function, arguments.into())
            },
        );
        prop_oneof![
            1 => parts().prop_map(Expr::And),
            1 => parts().prop_map(Expr::Or),
            1 => inner.clone().prop_map(|inner| Expr::Not(Box::new(inner))),
            4 => (comparison, inner.clone(), inner.clone())
                .prop_map(|(comparison, left, right)| Expr::Compare(comparison, Box::new((left, right)))),
            1 => (inner.clone(), prop::collection::vec(literal(), 0..4))
                .prop_map(|(left, list)| Expr::In(Box::new(left), list.into())),
            1 => chain(&Operator::SUMS),
            1 => chain(&Operator::PRODUCTS),
            1 => inner.clone().prop_map(|inner| Expr::Negate(Box::new(inner))),
            2 => call,
        ]
    })
}

fn select() -> impl Strategy<Value = Select> {
    let collection = prop::sample::select(vec![Collection::Devices, Collection::Modules]);
    let items = prop::collection::vec(
        prop_oneof![
            path().prop_map(What::Path),
            Just(What::Aggregate(Aggregate::Count, None)),
            (prop::sample::select(Aggregate::ALL.to_vec()), path())
                .prop_map(|(aggregate, path)| What::Aggregate(aggregate, Some(path))),
        ],
        1..4,
    );
    let selection = prop_oneof![
        Just(Selection::Everything),
        items.prop_map(|items| {
            let named = |(place, what)| Item { what, name: format!("n {place}").into() };
            Selection::Items(items.into_iter().enumerate().map(named).collect())
        }),
    ];
    let clauses = (prop::option::of(1_u32..), selection, collection, prop::option::of(expr()));
    clauses.prop_map(|(top, selection, collection, filter)| {
        let mut group: Box<[Path]> = Box::default();
        if let Selection::Items(items) = &selection
            && items.iter().any(|item| matches!(item.what, What::Aggregate(..)))
        {
            let path = |item: &Item| match &item.what {
                What::Path(path) => Some(path.clone()),
                What::Aggregate(..) => None,
            };
            group = items.iter().filter_map(path).collect();
        }
        Select { top, selection, collection, filter, group }
    })
}

/// JSON with few keys and values, so that paths and comparisons hit something.
fn json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        (-3..4).prop_map(Json::from),
        (-3..4).prop_map(|n| Json::from(f64::from(n) / 2.0)),
        prop::sample::select(vec!["a", "b", "x", "", "12"]).prop_map(Json::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Json::from),
            prop::collection::btree_map(name(), inner, 0..4)
                .prop_map(|members| members.into_iter().collect()),
        ]
    })
}

fn document() -> impl Strategy<Value = Json> {
    let object = || {
        prop::collection::btree_map(name(), json(), 0..6)
            .prop_map(|members| members.into_iter().collect::<serde_json::Map<_, _>>())
    };
    (object(), object(), object()).prop_map(|(tags, desired, reported)| {
        serde_json::json!({
            "deviceId": "a", "tags": tags, "properties": { "desired": desired, "reported": reported },
        })
    })
}

/// What an expression means, written down as the rules say it and with no thought for cost. `None` is undefined.
fn naive(expr: &Expr, row: &Json) -> Option<Json> {
    match expr {
        Expr::Path(path) => {
            let mut place = row;
            for name in path.root.names() {
                place = place.get(name)?;
            }
            for key in &path.keys {
                place = place.as_object()?.get(&crate::tree::unescape(key))?;
            }
            for step in &path.rest {
                place = match step {
                    Step::Key(key) => place.as_object()?.get(&crate::tree::unescape(key))?,
                    Step::Index(index) => place.as_array()?.get(*index as usize)?,
                };
            }
            Some(place.clone())
        }
        Expr::Literal(literal) => of_literal(literal),
        Expr::And(parts) => {
            let all: Vec<_> = parts.iter().map(|part| naive_truth(part, row)).collect();
            if all.contains(&Some(false)) {
                Some(false.into())
            } else {
                (!all.contains(&None)).then(|| true.into())
            }
        }
        Expr::Or(parts) => {
            let all: Vec<_> = parts.iter().map(|part| naive_truth(part, row)).collect();
            if all.contains(&Some(true)) {
                Some(true.into())
            } else {
                (!all.contains(&None)).then(|| false.into())
            }
        }
        Expr::Not(inner) => naive_truth(inner, row).map(|value| (!value).into()),
        Expr::Compare(comparison, sides) => {
            let (left, right) = (naive(&sides.0, row)?, naive(&sides.1, row)?);
            naive_compare(*comparison, &left, &right).map(Json::from)
        }
        Expr::In(left, list) => {
            let left = naive(left, row)?;
            let items = list.iter().filter_map(of_literal);
            let hits = items.filter(|item| naive_compare(Comparison::Equal, &left, item) == Some(true));
            Some((hits.count() > 0).into())
        }
        Expr::Negate(inner) => of_number(-naive(inner, row)?.as_f64()?),
        Expr::Arithmetic(first, rest) => {
            let mut result = naive(first, row)?.as_f64()?;
            for (operator, part) in rest {
                let right = naive(part, row)?.as_f64()?;
                result = of_number(match operator {
                    Operator::Add => result + right,
                    Operator::Subtract => result - right,
                    Operator::Multiply => result * right,
                    Operator::Divide => result / right,
                    Operator::Remainder => result % right,
                })?
                .as_f64()?;
            }
            of_number(result)
        }
        Expr::Call(function, arguments) => {
            naive_call(*function, &arguments.iter().map(|part| naive(part, row)).collect::<Vec<_>>())
        }
    }
}

fn of_number(number: f64) -> Option<Json> {
    serde_json::Number::from_f64(number).map(Json::from)
}

fn of_literal(literal: &Literal) -> Option<Json> {
    match literal {
        Literal::Undefined => None,
        Literal::Null => Some(Json::Null),
        Literal::Bool(value) => Some(Json::from(*value)),
        Literal::Number(number) => of_number(*number),
        Literal::String(text) => Some(Json::from(&**text)),
        Literal::Array(items) => Some(items.iter().filter_map(of_literal).collect()),
    }
}

fn naive_truth(expr: &Expr, row: &Json) -> Option<bool> {
    naive(expr, row)?.as_bool()
}

fn naive_compare(comparison: Comparison, left: &Json, right: &Json) -> Option<bool> {
    let equal = matches!(comparison, Comparison::Equal | Comparison::NotEqual);
    let order = match (left, right) {
        (Json::Null, Json::Null) if equal => std::cmp::Ordering::Equal,
        (Json::Bool(a), Json::Bool(b)) if equal => a.cmp(b),
        (Json::Number(a), Json::Number(b)) => a.as_f64()?.partial_cmp(&b.as_f64()?)?,
        (Json::String(a), Json::String(b)) => a.cmp(b),
        _ => return None,
    };
    Some(match comparison {
        Comparison::Equal => order.is_eq(),
        Comparison::NotEqual => order.is_ne(),
        Comparison::Less => order.is_lt(),
        Comparison::LessOrEqual => order.is_le(),
        Comparison::Greater => order.is_gt(),
        Comparison::GreaterOrEqual => order.is_ge(),
    })
}

fn naive_call(function: Function, arguments: &[Option<Json>]) -> Option<Json> {
    let first = arguments[0].as_ref();
    let text = |place: usize| arguments.get(place).and_then(Option::as_ref).and_then(Json::as_str);
    let number = |place: usize| arguments.get(place).and_then(Option::as_ref).and_then(Json::as_f64);
    let index = |place: usize| number(place).filter(|n| *n >= 0.0 && n.fract() == 0.0).map(|n| n as usize);
    match function {
        Function::IsDefined => Some(first.is_some().into()),
        Function::IsNull => Some(first.is_some_and(Json::is_null).into()),
        Function::IsBool => Some(first.is_some_and(Json::is_boolean).into()),
        Function::IsNumber => Some(first.is_some_and(Json::is_number).into()),
        Function::IsString => Some(first.is_some_and(Json::is_string).into()),
        Function::IsObject => Some(first.is_some_and(Json::is_object).into()),
        Function::IsArray => Some(first.is_some_and(Json::is_array).into()),
        Function::IsPrimitive => Some(first.is_some_and(|v| !v.is_object() && !v.is_array()).into()),
        Function::AsNumber => match first? {
            Json::String(text) if !text.trim().chars().any(|c| c.is_alphabetic() && c != 'e' && c != 'E') => {
                of_number(text.trim().parse().ok()?)
            }
            Json::Number(number) => of_number(number.as_f64()?),
            _ => None,
        },
        Function::StartsWith => Some(text(0)?.starts_with(text(1)?).into()),
        Function::EndsWith => Some(text(0)?.ends_with(text(1)?).into()),
        Function::Contains => Some(text(0)?.contains(text(1)?).into()),
        Function::IndexOf => {
            let (text, part): (Vec<_>, Vec<_>) = (text(0)?.chars().collect(), text(1)?.chars().collect());
            let at = (0..=text.len()).find(|at| text[*at..].starts_with(&part));
            of_number(at.map_or(-1.0, |at| at as f64))
        }
        Function::Substring => {
            let (text, start) = (text(0)?, index(1)?);
            let length = if arguments.len() == 3 { index(2)? } else { usize::MAX };
            let part = |(at, _): &(usize, char)| *at >= start && *at - start < length;
            Some(text.chars().enumerate().filter(part).map(|(_, c)| c).collect::<String>().into())
        }
        Function::Concat => (0..arguments.len()).map(text).collect::<Option<String>>().map(Json::from),
        Function::Length => of_number(text(0)?.chars().count() as f64),
        Function::Lower => Some(text(0)?.to_lowercase().into()),
        Function::Upper => Some(text(0)?.to_uppercase().into()),
        Function::Abs => of_number(number(0)?.abs()),
        Function::Exp => of_number(number(0)?.exp()),
        Function::Power => of_number(number(0)?.powf(number(1)?)),
        Function::Square => of_number(number(0)? * number(0)?),
        Function::Ceiling => of_number(number(0)?.ceil()),
        Function::Floor => of_number(number(0)?.floor()),
        Function::Sign => of_number(number(0).map(|n| {
            if n > 0.0 {
                1.0
            } else if n < 0.0 {
                -1.0
            } else {
                0.0
            }
        })?),
        Function::Sqrt => of_number(number(0)?.sqrt()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// A query that is printed and parsed is the same query.
    #[test]
    fn what_is_printed_parses_to_itself(select in select()) {
        let text = select.to_string();
        let parsed = parse::query(&text).map_err(|error| format!("{error}\n{}", error.caret(&text)));
        prop_assert_eq!(parsed, Ok(select), "{}", text);
    }

    /// Expressions have the value that the rules, taken word by word, give them for a row.
    #[test]
    fn expressions_mean_what_the_rules_say(expr in prop_oneof![meaningful(), typed()], row in document()) {
        let expected = naive(&expr, &row);
        let same = match (value(&expr, &JsonRow(&row)), &expected) {
            (Value::Undefined, None) => true,
            (Value::Array, Some(json)) => json.is_array(),
            (Value::Object, Some(json)) => json.is_object(),
            (Value::Number(number), Some(json)) => json.as_f64() == Some(number),
            (seen, Some(json)) => seen == Value::of_json(Some(json)),
            _ => false,
        };
        prop_assert!(same, "{} is {:?}, not {:?}", expr, value(&expr, &JsonRow(&row)), expected);
        prop_assert_eq!(is_true(&expr, &JsonRow(&row)), expected == Some(true.into()));
    }
}
