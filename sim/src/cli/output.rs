//! What a command leaves on standard output and in files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fleetwave_report::intervallog::{self, IntervalLogError};
use fleetwave_report::{RunRecord, summary};

use crate::measure::Meter;

/// Why a result could not be put where it belongs.
#[derive(Debug, thiserror::Error)]
pub(super) enum OutputError {
    #[error("cannot write into the directory {}, given by --out", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Histograms { path: PathBuf, source: IntervalLogError },
    #[error("cannot write to standard output")]
    Stdout(#[source] io::Error),
}

/// Prints to standard output. A reader that has gone away has seen what it wanted.
pub(super) fn print(text: &str) -> Result<(), OutputError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(OutputError::Stdout),
    }
}

/// The record as one JSON document.
pub(super) fn json(record: &RunRecord) -> String {
    let mut text =
        serde_json::to_string_pretty(record).expect("a record has only text keys and plain values");
    text.push('\n');
    text
}

/// A directory for results that was seen to be writable.
#[derive(Debug)]
pub(super) struct OutDir(PathBuf);

impl OutDir {
    /// Makes the directory, if need be, and makes sure that files can be written into it, so that no run is made
    /// whose result has nowhere to go.
    pub(super) fn prepare(path: &Path) -> Result<Self, OutputError> {
        let probe = path.join(format!(".fleetwave-{}", std::process::id()));
        let tried = fs::create_dir_all(path)
            .and_then(|()| OpenOptions::new().write(true).create_new(true).open(&probe))
            .and_then(|mut file| file.write_all(b"probe"))
            .and_then(|()| fs::remove_file(&probe));
        match tried {
            Ok(()) => Ok(Self(path.to_owned())),
            Err(source) => Err(OutputError::Directory { path: path.to_owned(), source }),
        }
    }

    /// Writes the results, in place of those of an earlier run. Each file is whole or not there.
    pub(super) fn write(
        &self,
        record: &RunRecord,
        meter: &Meter,
        started: SystemTime,
    ) -> Result<(), OutputError> {
        self.file("run.json", |file| file.write_all(json(record).as_bytes()))?;
        self.file("summary.txt", |file| file.write_all(summary(record).as_bytes()))?;
        let mut log = Vec::new();
        let duration = Duration::try_from_secs_f64(record.duration_seconds).unwrap_or_default();
        intervallog::write(&mut log, started, duration, &meter.intervals())
            .map_err(|source| OutputError::Histograms { path: self.0.join("histograms.hlog"), source })?;
        self.file("histograms.hlog", |file| file.write_all(&log))
    }

    fn file(
        &self,
        name: &str,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), OutputError> {
        let path = self.0.join(name);
        let partial = self.0.join(format!("{name}.partial"));
        let result = File::create(&partial).and_then(|file| {
            let mut file = BufWriter::new(file);
            write(&mut file)?;
            file.into_inner().map_err(io::IntoInnerError::into_error)?;
            fs::rename(&partial, &path)
        });
        result.map_err(|source| OutputError::File { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{judge, tests as runs};

    #[test]
    fn a_run_is_written_as_a_record_a_summary_and_histograms() {
        let dir = tempfile::tempdir().expect("a directory for the test");
        let path = dir.path().join("new/results");
        let (plan, outcome) = (runs::plan(""), runs::outcome(0));
        let record = judge(&plan, &outcome);
        let out = OutDir::prepare(&path).expect("the directory can be made");
        for _ in 0..2 {
            out.write(&record, &outcome.meter, SystemTime::UNIX_EPOCH).expect("the results can be written");
        }
        let read = |name: &str| fs::read_to_string(path.join(name)).expect("the file is there");
        let back: RunRecord = serde_json::from_str(&read("run.json")).expect("the record is JSON");
        assert_eq!(back, record);
        assert_eq!(read("summary.txt"), summary(&record));
        assert!(read("histograms.hlog").contains("Tag=fan_out_latency,"));
        assert_eq!(
            fs::read_dir(&path).expect("the directory can be read").count(),
            3,
            "nothing is left behind"
        );
    }

    #[test]
    fn a_path_that_is_a_file_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file for the test");
        assert!(matches!(OutDir::prepare(file.path()), Err(OutputError::Directory { .. })));
    }
}
