//! The histograms of a run as an HdrHistogram interval log (format V2), which other tools read and merge
//! without loss.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, IntervalLogWriterError, Tag};

/// One histogram of the log.
#[derive(Clone, Copy, Debug)]
pub struct Interval<'a> {
    /// The metric that it holds, e.g. `fan_out_latency`; the log's `Tag=`.
    pub tag: &'a str,
    /// Values in microseconds, or in the metric's own unit where that is not a time.
    pub histogram: &'a Histogram<u32>,
}

/// Why an interval log could not be written.
#[derive(Debug, thiserror::Error)]
pub enum IntervalLogError {
    /// The writer failed.
    #[error("the histograms could not be written: {0}")]
    Io(#[from] io::Error),
    /// A tag has a character that the format uses itself.
    #[error("{0:?} is no tag: the log's format keeps commas, spaces and line ends for itself")]
    Tag(String),
    /// The histogram's counts do not fit the format.
    #[error("the histogram {tag} could not be encoded: {reason}")]
    Encode {
        /// Which one.
        tag: String,
        /// What the encoder said.
        reason: String,
    },
}

/// Writes `intervals` as a log of one interval, `duration` long, that began at `start`. Empty histograms are left out.
///
/// # Errors
/// When the writer fails, or a tag is not one.
pub fn write(
    out: &mut impl Write,
    start: SystemTime,
    duration: Duration,
    intervals: &[Interval<'_>],
) -> Result<(), IntervalLogError> {
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("fleetwave run; values in microseconds, blob.* in bytes a second")
        .with_start_time(start)
        .with_base_time(start)
        .begin_log_with(out, &mut serializer)?;
    for interval in intervals.iter().filter(|interval| !interval.histogram.is_empty()) {
        let tag = Tag::new(interval.tag).ok_or_else(|| IntervalLogError::Tag(interval.tag.to_owned()))?;
        log.write_histogram(interval.histogram, Duration::ZERO, duration, Some(tag)).map_err(|error| {
            match error {
                IntervalLogWriterError::IoError(error) => IntervalLogError::Io(error),
                other => {
                    IntervalLogError::Encode { tag: interval.tag.to_owned(), reason: format!("{other:?}") }
                }
            }
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;

    #[test]
    fn a_log_read_back_has_the_same_counts_under_the_same_tags() {
        let mut histogram = Histogram::<u32>::new(3).unwrap();
        for value in [1, 1000, 60_000_000] {
            histogram.record(value).unwrap();
        }
        let empty = Histogram::<u32>::new(3).unwrap();
        let mut log = Vec::new();
        let intervals = [
            Interval { tag: "fan_out_latency", histogram: &histogram },
            Interval { tag: "grant_latency", histogram: &empty },
        ];
        write(&mut log, SystemTime::UNIX_EPOCH, Duration::from_secs(9), &intervals).unwrap();

        let entries: Vec<_> = IntervalLogIterator::new(&log).collect::<Result<_, _>>().unwrap();
        let read: Vec<_> = entries
            .iter()
            .filter_map(|entry| match entry {
                LogEntry::Interval(interval) => Some(interval),
                _ => None,
            })
            .collect();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].tag().map(|tag| tag.as_str()), Some("fan_out_latency"));
        let bytes = base64_decode(read[0].encoded_histogram());
        let back: Histogram<u32> = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
        assert_eq!(back, histogram);
    }

    #[test]
    fn a_tag_with_a_comma_is_refused() {
        let mut histogram = Histogram::<u32>::new(3).unwrap();
        histogram.record(1).unwrap();
        let interval = Interval { tag: "a,b", histogram: &histogram };
        let error = write(&mut Vec::new(), SystemTime::UNIX_EPOCH, Duration::ZERO, &[interval]).unwrap_err();
        assert!(matches!(error, IntervalLogError::Tag(tag) if tag == "a,b"));
    }

    fn base64_decode(text: &str) -> Vec<u8> {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.decode(text).unwrap()
    }
}
