use core::fmt::{Debug, Display};
use core::str::FromStr;
use core::time::Duration;

use fleetwave_protocol::CounterRng;
use proptest::prelude::*;

use super::*;
use crate::scenario::compare::Comparison;
use crate::scenario::dist::Dist;
use crate::scenario::progress::{Bound, Progress, ProgressCondition};
use crate::scenario::quantity::{Bandwidth, ByteSize, Count, Percent, QuantityError, Rate, Span, TimeOfDay};

fn same<Q: FromStr<Err = QuantityError> + Display + PartialEq + Debug>(quantity: Q) {
    let text = quantity.to_string();
    assert_eq!(text.parse::<Q>().as_ref(), Ok(&quantity), "{text}");
}

proptest! {
    #[test]
    fn quantities_print_what_parses_to_the_same(
        n in any::<u64>(),
        rate in 1..u64::MAX,
        millionths in 0..=1_000_000u32,
        minute in 0..1440u16,
    ) {
        same(Span::from_micros(n));
        same(ByteSize::from_bytes(n));
        same(Bandwidth::from_bits_per_second(rate));
        same(format!("{rate}/h").parse::<Rate>().unwrap());
        same(Percent::from_millionths(millionths));
        same(Count(n));
        same(format!("{:02}:{:02}", minute / 60, minute % 60).parse::<TimeOfDay>().unwrap());
    }

    #[test]
    fn ranges_and_conditions_print_what_parses_to_the_same(
        a in any::<u64>(),
        b in any::<u64>(),
        progress in prop::sample::select(Progress::ALL.to_vec()),
        comparison in prop::sample::select(vec![
            Comparison::Below, Comparison::AtMost, Comparison::Equal, Comparison::AtLeast, Comparison::Above,
        ]),
        millionths in 0..=1_000_000u32,
    ) {
        same(Dist::Uniform { low: Span::from_micros(a.min(b)), high: Span::from_micros(a.max(b)) });
        for bound in [Bound::Devices(Count(a)), Bound::Share(Percent::from_millionths(millionths))] {
            same(ProgressCondition { progress, comparison, bound });
        }
    }

    #[test]
    fn draws_stay_between_the_shortest_and_the_longest(
        median in 1..1_000_000_000u64,
        factor in 2..1000u64,
        seed in any::<u64>(),
    ) {
        let median = Span::from_micros(median);
        let p99 = Span::from_micros(median.as_micros() * factor);
        for dist in [Dist::LogNormal { median, p99 }, Dist::Uniform { low: median, high: p99 }] {
            let mut rng = CounterRng::new(seed);
            for _ in 0..50 {
                let draw = dist.sample(&mut rng);
                prop_assert!(draw >= dist.min() && draw <= dist.max(), "{dist}: {draw:?}");
            }
        }
    }

    #[test]
    fn no_text_makes_a_quantity_panic(text in "[0-9._]{0,25}[a-zA-Z%/.: ]{0,6}.{0,3}") {
        let _ = text.parse::<Span>();
        let _ = text.parse::<ByteSize>();
        let _ = text.parse::<Bandwidth>();
        let _ = text.parse::<Rate>();
        let _ = text.parse::<Percent>();
        let _ = text.parse::<Count>();
        let _ = text.parse::<TimeOfDay>();
        let _ = text.parse::<Dist>();
        let _ = text.parse::<ProgressCondition>();
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC*", lines in prop::collection::vec("[\\[\\]a-z_.=\"' 0-9%{}\n#é]{0,40}", 0..12)) {
        let _ = load_text("test.toml", &text, &[]);
        let _ = load_text("test.toml", &lines.join("\n"), &[]);
        let _ = load_text("test.toml", MINIMAL, std::slice::from_ref(&text));
    }

    #[test]
    fn no_part_of_a_scenario_that_is_missing_or_twice_there_makes_the_reader_panic(
        from in 0..MINIMAL.len(),
        length in 0..40usize,
        insert in "[\\[\\]a-z_.=\"' 0-9%{}\n]{0,6}",
        key in "[a-z.\\[\\]0-9é-]{0,20}",
    ) {
        let to = (from + length).min(MINIMAL.len());
        let text = format!("{}{insert}{}", &MINIMAL[..from], &MINIMAL[to..]);
        let _ = load_text("test.toml", &text, &[]);
        let _ = load_text("test.toml", MINIMAL, &[format!("{key}={insert}")]);
        let _ = load_text("test.toml", MINIMAL, &[format!("fleet.group.{key}={insert}"), format!("step{key}={insert}")]);
    }
}

#[test]
fn quantities_read_as_they_are_meant() {
    let span = |text: &str| text.parse::<Span>().map(Span::as_micros).unwrap();
    assert_eq!(
        [span("250ms"), span("1.5h"), span("2 s"), span("1_000us")],
        [250_000, 5_400_000_000, 2_000_000, 1000]
    );
    let size = |text: &str| text.parse::<ByteSize>().map(ByteSize::bytes).unwrap();
    assert_eq!([size("64KiB"), size("1.5MB"), size("7B")], [65_536, 1_500_000, 7]);
    let bandwidth = |text: &str| text.parse::<Bandwidth>().map(Bandwidth::bytes_per_second).unwrap();
    assert_eq!([bandwidth("10Gbit/s"), bandwidth("5MB/s"), bandwidth("1bit/s")], [1.25e9, 5e6, 0.125]);
    let rate = |text: &str| text.parse::<Rate>().map(Rate::per_second).unwrap();
    assert_eq!([rate("1000/s"), rate("90/m"), rate("2k/s"), rate("36/h")], [1000.0, 1.5, 2000.0, 0.01]);
    let count = |text: &str| text.parse::<Count>().map(|count| count.0).unwrap();
    assert_eq!([count("10k"), count("1.5M"), count("1_000")], [10_000, 1_500_000, 1000]);
    assert_eq!("1..3s".parse::<Dist>(), "1s..3s".parse::<Dist>());
}

#[test]
fn quantities_that_are_wrong_say_what_would_have_been_right() {
    let mut said = String::new();
    let mut ask = |what: &str, problem: Result<String, QuantityError>| {
        said += &format!("{what}: {}\n", problem.expect_err(what));
    };
    for text in
        ["", "fast", "5", "5 parsecs", "64KiB", "5MS", "0.0000001s", "99999999999d", "-3s", "1.2.3s", "1.s"]
    {
        ask(text, text.parse::<Span>().map(|q| q.to_string()));
    }
    for text in ["64kb", "64K", "10s", "1.5B"] {
        ask(text, text.parse::<ByteSize>().map(|q| q.to_string()));
    }
    for text in ["10Mbps", "10MB", "0MB/s"] {
        ask(text, text.parse::<Bandwidth>().map(|q| q.to_string()));
    }
    for text in ["1000", "5/y", "0/s"] {
        ask(text, text.parse::<Rate>().map(|q| q.to_string()));
    }
    for text in ["0.5", "101%", "5s"] {
        ask(text, text.parse::<Percent>().map(|q| q.to_string()));
    }
    for text in ["10K", "1.5", "many"] {
        ask(text, text.parse::<Count>().map(|q| q.to_string()));
    }
    for text in ["2:00", "24:00", "02:00:00"] {
        ask(text, text.parse::<TimeOfDay>().map(|q| q.to_string()));
    }
    for text in ["80ms..20ms", "20..80", "..5s", "1s..x"] {
        ask(text, text.parse::<Dist>().map(|q| q.to_string()));
    }
    for text in ["converged", "convergd >= 5%", ">= 5%", "failed > five", "failed >= 101%"] {
        ask(text, text.parse::<ProgressCondition>().map(|q| q.to_string()));
    }
    insta::assert_snapshot!(said);
}

#[test]
fn a_log_normal_has_the_median_and_the_tail_that_it_was_given() {
    let dist = Dist::LogNormal { median: Span::from_millis(40), p99: Span::from_millis(400) };
    let mut rng = CounterRng::new(11);
    let mut draws: Vec<Duration> = (0..20_000).map(|_| dist.sample(&mut rng)).collect();
    draws.sort();
    let at = |share: f64| draws[(draws.len() as f64 * share) as usize].as_secs_f64() * 1e3;
    assert!((at(0.5) - 40.0).abs() < 1.5, "{}", at(0.5));
    assert!((at(0.99) - 400.0).abs() < 40.0, "{}", at(0.99));
}

#[test]
fn a_share_of_nothing_is_never_reached() {
    let condition: ProgressCondition = "converged >= 0%".parse().unwrap();
    assert!(!condition.holds(0, 0));
    let all: ProgressCondition = "converged >= 99.9%".parse().unwrap();
    assert!(all.holds(999, 1000) && !all.holds(998, 1000) && !all.holds(9_989, 10_000));
}
