//! Plays a script, once with each driver, and compares.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use fleetwave::live::{Wish, Witness, run_witnessed};
use fleetwave::progress::Progress;
use fleetwave::rollout;
use fleetwave::run::{RunPlan, Target};
use fleetwave::scenario::load_text;
use fleetwave_agent_core::Unsigned;
use fleetwave_hub::blob::{BlobControl, Fault, FaultKind};
use fleetwave_hub::recorder::{Entry, Recorder, Voice};
use fleetwave_hub::{HubControl, MethodCall, TwinChange};
use fleetwave_report::record::{Engine, Transport};
use serde_json::{Map, Value};

use crate::diff::diff;
use crate::script::{Act, Extras, read};
use crate::told::{lines, transcript};

/// The only device.
const DEVICE: &str = "dev-0000000";
/// How long anything may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Plays a script with both, and fails with the differences.
pub(crate) fn compare(name: &str, text: &str) {
    let (simulated, real) = thread::scope(|scope| {
        let simulated = scope.spawn(|| play(name, text, "simulated"));
        let real = scope.spawn(|| play(name, text, "agent"));
        (simulated.join().expect("it was played"), real.join().expect("it was played"))
    });
    let mut differences = String::new();
    for (voice, who) in [
        (Voice::Device, "the device to the hub"),
        (Voice::Hub, "the hub to the device"),
        (Voice::Download, "the device to the blob store"),
    ] {
        if let Some(difference) = diff(&lines(&simulated, voice), &lines(&real, voice)) {
            differences.push_str(&format!("{who} (- simulated, + real agent):\n{difference}\n"));
        }
    }
    assert!(
        differences.is_empty(),
        "{name}\n\n{differences}simulated:\n{}\nreal agent:\n{}",
        transcript(&simulated),
        transcript(&real)
    );
}

/// What was said when a device with this driver played it.
fn play(name: &str, text: &str, driver: &str) -> Vec<Entry> {
    let (scenario, Extras { mut set, act, seen, ahead }) = read(name, text);
    set.push(format!("fleet.group.all.driver='{driver}'"));
    let loaded = load_text(name, &scenario, &set).unwrap_or_else(|problems| panic!("{name}: {problems}"));
    let plan = RunPlan {
        scenario: loaded.scenario,
        sha256: loaded.sha256,
        overrides: Vec::new(),
        engine: Engine::Live,
        target: Target::Hub,
        transport: Transport::Tcp,
        threads: None,
        replay: String::new(),
    };
    let recorder = Arc::new(Recorder::default());
    let stage = recorder.clone();
    let (wish, wishes) = mpsc::channel();
    let ready = move |control: HubControl, blobs: BlobControl| {
        thread::spawn(move || perform(&act, &control, &blobs, &stage, &wish));
    };
    let ahead = Duration::from_millis(ahead);
    let witness = Witness { recorder: recorder.clone(), ready: Box::new(ready), wishes, ahead };
    let outcome = run_witnessed(&plan, &Progress::default(), &AtomicBool::new(false), witness);
    let outcome = outcome.unwrap_or_else(|error| panic!("{name}, {driver}: {error}"));
    let entries = recorder.entries();
    let said = || format!("{name}, {driver}:\n{}", transcript(&entries));
    assert!(outcome.violations.is_empty(), "{:?}\n{}", outcome.violations, said());
    assert!(outcome.disturbances.is_empty(), "{:?}\n{}", outcome.disturbances, said());
    for wanted in seen {
        let found = entries.iter().any(|entry| entry.to_string().contains(&wanted));
        assert!(found, "{wanted:?} was never said: {}", said());
    }
    entries
}

/// Does what the script says, as it becomes due.
fn perform(
    acts: &[Act],
    control: &HubControl,
    blobs: &BlobControl,
    recorder: &Recorder,
    wishes: &mpsc::Sender<Wish>,
) {
    let mut from = 0;
    for Act { after, pause, store, call, desire, release, cut, free, restart } in acts {
        let heard = |entry: &Entry| entry.to_string().contains(after);
        // What is not done shows in what is said.
        let Some(next) = recorder.wait(from, PATIENCE, heard) else { return };
        from = next;
        thread::sleep(Duration::from_millis(*pause));
        if let Some(trouble) = store {
            let status =
                trouble.status.map(|code| FaultKind::Status { code, retry_after: trouble.retry_after });
            let kinds = [
                status,
                trouble.truncated.then_some(FaultKind::Truncated),
                trouble.corrupted.then_some(FaultKind::Corrupted),
            ];
            let faults: Vec<Fault> =
                kinds.into_iter().flatten().map(|kind| Fault { kind, share: 1.0 }).collect();
            blobs.set_faults(&faults);
        }
        if let Some(patch) = desire {
            change(control, patch.clone());
        }
        if let Some(release) = release {
            let unsigned = Unsigned {
                target: release.target.as_deref(),
                compatible: release.compatible.iter().map(String::as_str).collect(),
                ..Unsigned::new(&release.id, release.seq, release.size, [9; 32])
            };
            let reference = Value::Object(rollout::sign_for_all(&unsigned));
            change(control, Map::from_iter([("firmware".to_owned(), reference)]));
        }
        if let Some(millis) = cut {
            // The run may be over.
            let _ = wishes.send(Wish::Cut(Duration::from_millis(*millis)));
        }
        if *free {
            let _ = wishes.send(Wish::Free);
        }
        if let Some(millis) = restart {
            control.restart(Duration::from_millis(*millis)).expect("the hub lives");
        }
        if let Some(call) = call {
            let call = MethodCall {
                name: call.method.clone(),
                payload: call.payload.to_string().into(),
                connect_timeout: Duration::ZERO,
                response_timeout: Duration::from_secs(30),
            };
            // The answer is among what is said.
            let _ = control.invoke_method(DEVICE, call);
        }
    }
}

fn change(control: &HubControl, patch: Map<String, Value>) {
    let desired = Some(Value::Object(patch).to_string().into_bytes());
    let change = TwinChange { desired, ..TwinChange::default() };
    control.patch_twin(DEVICE, change).expect("the hub takes it");
}
