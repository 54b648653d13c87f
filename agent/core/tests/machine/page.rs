//! `docs/coverage.md`: which fault met the agent in which state, counted over the enumerated runs.

use std::fmt::Write as _;
use std::path::Path;

use fleetwave_agent_core::State;

use crate::changes::{
    aborted_everywhere, cancelled_everywhere, disconnected_everywhere, superseded_everywhere,
};
use crate::coverage::{Cause, Coverage};
use crate::cuts::{between_events, single_cuts};

const READING: &str = "\
* A fault at an effect is counted in the state that the machine is in once it has asked for the effect; a fault between \
two events in the state in which it waits.
* `rolling_back` and `committing` last milliseconds: what comes from the hub finds the device already down, or done.
* A newer release, or a cancellation, that comes in `rebooting`, `probation` or `committing` waits for the end of the \
update; in the other states it ends it. So does who wants an end on the device itself, but that does not wait: it is \
refused.
";

const NOT_EXERCISED: &str = "\
* Two faults at once other than pairs of cuts are drawn at random (`random.rs`), not enumerated; pairs of cuts are \
drawn too, 1,500 for each story.
* A boot loader that boots neither slot, or that boots the slot on trial more than once.
* A driver that breaks its word (events of discarded work, records that are acknowledged and then lost) is only \
shown not to make the machine panic or commit what was not healthy.
* A journal that was damaged: reading it is the driver's business, as are partition writes and signatures of what \
was staged.
* Random numbers of poor quality; a generator whose counter wraps after 2³² draws.
";

fn page() -> String {
    let mut all = Coverage::default();
    let cuts = [single_cuts(), between_events()];
    let changes =
        [superseded_everywhere(), cancelled_everywhere(), aborted_everywhere(), disconnected_everywhere()];
    for coverage in cuts.iter().chain(&changes) {
        all.add(coverage);
    }
    let mut page = String::from(
        "# What the agent's tests reach\n\n\
         Generated from the runs of `agent/core/tests/machine`; `UPDATE_COVERAGE=1 cargo test -p fleetwave-agent-core` \
         writes it again, and the tests fail when it is stale.\n\n\
         Ten stories (all goes well; the release does not boot; it is not healthy; the hub is away in the trial; the \
         download is cut twice; the payload is wrong once; the windows for downloads and for installation close in the \
         middle of it; it is not to be interrupted for a while; bytes are planned and counted; they are more than a window has left, before the first one and in the middle) are run once for each of their effects and each of these \
         faults: the power goes before, in the middle of, or after the effect; a newer release is desired; the release \
         is cancelled, or removed; somebody on the device wants it to end; the connection is lost; and once more with each fault at each place between two \
         events. The figures say how often that met the agent in which state.\n\n\
         | state | cut | supersede | cancel | abort | disconnect |\n|---|---:|---:|---:|---:|---:|\n",
    );
    let mut holes = Vec::new();
    for state in State::ALL {
        write!(page, "| `{}` |", state.name()).expect("a string takes all");
        for cause in Cause::FAULTS {
            let count = all.of(state, cause);
            write!(page, " {count} |").expect("a string takes all");
            if count == 0 {
                holes.push(format!("`{}` × {}", state.name(), cause.name()));
            }
        }
        page.push('\n');
    }
    let holes = if holes.is_empty() { "none".to_owned() } else { holes.join(", ") };
    write!(
        page,
        "\nCombinations that no run met: {holes}.\n\n## How to read it\n\n{READING}\n## Not exercised\n\n{NOT_EXERCISED}"
    )
    .expect("a string takes all");
    page
}

#[test]
fn the_page_on_coverage_says_what_the_runs_reach() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/coverage.md");
    let page = page();
    if std::env::var_os("UPDATE_COVERAGE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/coverage.md is stale: run with UPDATE_COVERAGE=1");
}
