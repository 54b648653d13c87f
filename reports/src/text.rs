//! Figures as people read them, each with its unit.

use crate::metric::{MetricValue, Unit};

/// A metric's value with its unit; `∞` for what never happened.
#[must_use]
pub fn value(unit: Unit, value: MetricValue) -> String {
    let MetricValue::Finite(number) = value else { return "∞".to_owned() };
    match unit {
        Unit::Seconds => seconds(Some(number)),
        Unit::Count => count(number),
        Unit::Bytes | Unit::BytesPerDevice => bytes(number),
        Unit::BytesPerSecond => format!("{}/s", bytes(number)),
        Unit::PerSecond => format!("{}/s", count(number)),
        Unit::PerDevice => per_device(number),
        Unit::Fraction => percent(number),
    }
}

/// A time in the unit that suits it; `∞` for none.
#[must_use]
pub fn seconds(seconds: Option<f64>) -> String {
    let Some(seconds) = seconds else { return "∞".to_owned() };
    match seconds {
        0.0 => "0 s".to_owned(),
        s if s < 999.5e-6 => format!("{:.0} µs", s * 1e6),
        s if s < 9.995e-3 => format!("{:.2} ms", s * 1e3),
        s if s < 0.9995 => format!("{:.0} ms", s * 1e3),
        s if s < 99.95 => format!("{s:.2} s"),
        s if s < 5999.5 => {
            let whole = s.round() as u64;
            format!("{} min {:02} s", whole / 60, whole % 60)
        }
        s => {
            let minutes = (s / 60.0).round() as u64;
            format!("{} h {:02} min", minutes / 60, minutes % 60)
        }
    }
}

/// A number of bytes in powers of 1000.
#[must_use]
pub fn bytes(bytes: f64) -> String {
    // Thresholds are where rounding would show four digits.
    match bytes {
        b if b < 999.5 => format!("{b:.0} B"),
        b if b < 999_500.0 => format!("{} kB", three_digits(b / 1e3)),
        b if b < 999.5e6 => format!("{} MB", three_digits(b / 1e6)),
        b if b < 999.5e9 => format!("{} GB", three_digits(b / 1e9)),
        b => format!("{} TB", three_digits(b / 1e12)),
    }
}

fn three_digits(number: f64) -> String {
    match number {
        n if n < 9.995 => format!("{n:.2}"),
        n if n < 99.95 => format!("{n:.1}"),
        n => format!("{n:.0}"),
    }
}

/// A count, rounded to a whole and with its thousands apart.
#[must_use]
pub fn count(count: f64) -> String {
    let digits = format!("{count:.0}");
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A part of a whole as a percentage that never rounds to a whole that it is not.
#[must_use]
pub fn percent(fraction: f64) -> String {
    let percent = fraction * 100.0;
    let text = format!("{percent:.1}");
    match text.as_str() {
        "0.0" if percent > 0.0 => "<0.1 %".to_owned(),
        "100.0" if percent < 100.0 => ">99.9 %".to_owned(),
        _ => format!("{} %", text.strip_suffix(".0").unwrap_or(&text)),
    }
}

/// A number for each device.
pub(crate) fn per_device(number: f64) -> String {
    three_digits(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_written_in_the_unit_that_suits_its_size() {
        let spans = [0.0, 12e-6, 0.00123, 0.3124, 0.9999, 5.0, 12.345, 61.2, 125.4, 7384.0];
        let written: Vec<String> = spans.into_iter().map(|span| seconds(Some(span))).collect();
        let expected = [
            "0 s",
            "12 µs",
            "1.23 ms",
            "312 ms",
            "1.00 s",
            "5.00 s",
            "12.35 s",
            "61.20 s",
            "2 min 05 s",
            "2 h 03 min",
        ];
        assert_eq!(written, expected);
        assert_eq!(seconds(None), "∞");
        let sizes = [0.0, 999.0, 999.9, 5_230.0, 64_000_000.0, 1.25e9, 3e12];
        let written: Vec<String> = sizes.into_iter().map(bytes).collect();
        assert_eq!(written, ["0 B", "999 B", "1.00 kB", "5.23 kB", "64.0 MB", "1.25 GB", "3.00 TB"]);
        assert_eq!([0.0, 999.0, 1000.0, 1_234_567.0].map(count), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn a_share_that_is_not_all_is_not_shown_as_all() {
        assert_eq!(
            [0.0, 0.0001, 0.5, 0.999, 0.99999, 1.0].map(percent),
            ["0 %", "<0.1 %", "50 %", "99.9 %", ">99.9 %", "100 %"]
        );
    }
}
