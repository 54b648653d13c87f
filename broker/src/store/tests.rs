//! The store on a disk that fails, and on files that are not what they should be.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fleetwave_hub_core::{C2dMessage, DeviceSpec, Input};
use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use serde::{Deserialize, Serialize};

use super::file::DataFile;
use super::*;
use crate::control::{ControlError, NewDevice, TwinChange};
use crate::{HubServer, HubServerBuilder};

/// A disk that takes nothing any more when it is told so.
#[derive(Debug)]
struct FailingDisk {
    memory: InMemoryBackend,
    full: Arc<AtomicBool>,
}

impl FailingDisk {
    fn check(&self) -> Result<(), io::Error> {
        match self.full.load(Ordering::SeqCst) {
            true => Err(io::Error::from(io::ErrorKind::StorageFull)),
            false => Ok(()),
        }
    }
}

impl StorageBackend for FailingDisk {
    fn len(&self) -> Result<u64, io::Error> {
        self.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.memory.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.check()?;
        self.memory.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.check()?;
        self.memory.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.check()?;
        self.memory.write(offset, data)
    }
}

fn failing() -> (Store, Arc<AtomicBool>) {
    let full = Arc::new(AtomicBool::new(false));
    let disk = FailingDisk { memory: InMemoryBackend::new(), full: full.clone() };
    (Store::with_file(Path::new("the-folder"), DataFile::on(disk)).unwrap(), full)
}

fn hub() -> HubServerBuilder {
    HubServer::builder().shards(2)
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    n: u32,
}

#[test]
fn a_full_disk_ends_the_hub_and_nothing_is_acknowledged_any_more() {
    let (store, full) = failing();
    let hub = hub().start_with(store.clone()).unwrap();
    let control = hub.control();
    control.create_devices((0..10).map(|n| NewDevice::new(format!("d{n}")))).unwrap();
    full.store(true, Ordering::SeqCst);
    let change = TwinChange { tags: Some(br#"{"a":1}"#.to_vec()), ..TwinChange::default() };
    assert!(matches!(control.patch_twin("d0", change.clone()), Err(ControlError::Stopped)));
    // The other shard ends too, at the latest when it is asked for something.
    let other = (1..10).map(|n| format!("d{n}")).find(|id| control.shard_of(id) != control.shard_of("d0"));
    assert!(matches!(control.patch_twin(&other.unwrap(), change), Err(ControlError::Stopped)));
    let error = store.failure().unwrap().to_string();
    assert!(error.starts_with("the store the-folder has failed: "), "{error}");
    // Room alone does not bring it back: what was lost on the way is not known.
    full.store(false, Ordering::SeqCst);
    let table = store.table::<Row>("rows");
    assert_eq!(table.write_blocking([("k", Some(&Row { n: 1 }))]), Err(store.failure().unwrap()));
    assert_eq!(table.load_all().unwrap(), []);
}

#[test]
fn rows_come_back_by_table_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let rows = |store: &Store| store.table::<Row>("b").load_all().unwrap();
    {
        let store = Store::open(dir.path()).unwrap();
        let table = store.table::<Row>("b");
        let [one, two, three] = [1, 2, 3].map(|n| Row { n });
        table.write_blocking([("x", Some(&one)), ("y", Some(&two)), ("z", Some(&three))]).unwrap();
        store.table::<Row>("a").write_blocking([("x", Some(&three))]).unwrap();
        store.table::<Row>("bc").write_blocking([("x", Some(&three))]).unwrap();
        table.write_blocking([("y", None), ("x", Some(&two))]).unwrap();
    }
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(rows(&store), [("x".into(), Row { n: 2 }), ("z".into(), Row { n: 3 })]);
    let wrong = store.table::<Vec<u8>>("b").load_all().unwrap_err().to_string();
    assert!(wrong.starts_with("the row \"x\" of the table \"b\" cannot be read: "), "{wrong}");
    let nothing = Store::none().table::<Row>("b");
    nothing.write_blocking([("x", Some(&Row { n: 1 }))]).unwrap();
    assert_eq!(nothing.load_all().unwrap(), []);
}

#[test]
fn two_hubs_do_not_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let first = hub().data(dir.path()).start().unwrap();
    let error = hub().data(dir.path()).start().err().unwrap().to_string();
    let (dir_shown, pid) = (dir.path().display(), std::process::id());
    assert_eq!(
        error,
        format!(
            "{dir_shown} is in use by another hub (process {pid}): stop that one, or give this one a folder of its own"
        )
    );
    drop(first);
    drop(hub().data(dir.path()).start().unwrap());
}

#[test]
fn a_newer_format_is_refused_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    let path = dir.path().join("hub.redb");
    let database = redb::Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    transaction.open_table(meta).unwrap().insert("format", 2).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = Store::open(dir.path()).err().unwrap().to_string();
    assert_eq!(
        error,
        format!(
            "{} was written by a newer version of this hub (format 2; this one reads up to 1): use that version",
            path.display()
        )
    );
}

#[test]
fn what_is_no_store_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub.redb");
    for bytes in [&b""[..], b"not a store", &[0; 9000]] {
        fs::write(&path, bytes).unwrap();
        let error = Store::open(dir.path()).err().unwrap().to_string();
        assert!(error.starts_with(&format!("{} is damaged: ", path.display())), "{error}");
        assert!(error.ends_with("the file is as it was found"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn a_damaged_file_is_refused_or_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let hub_of = |dir: &Path| HubServer::builder().data(dir).start();
    {
        let hub = hub_of(dir.path()).unwrap();
        let tags = |n: u32| Some(format!(r#"{{"n":{n},"text":"{}"}}"#, "x".repeat(300)).into());
        let devices = (0..200).map(|n| NewDevice { tags: tags(n), ..NewDevice::new(format!("d{n}")) });
        hub.control().create_devices(devices).unwrap();
    }
    let path = dir.path().join("hub.redb");
    let whole = fs::read(&path).unwrap();
    let mut refused = 0;
    for place in (0..whole.len()).step_by(whole.len() / 60) {
        let mut torn = whole.clone();
        torn[place..(place + 64).min(whole.len())].fill(0xA5);
        fs::write(&path, &torn).unwrap();
        match hub_of(dir.path()) {
            Err(error) => {
                refused += 1;
                let error = error.to_string();
                assert!(error.contains(&path.display().to_string()), "{error}");
            }
            // It was a page that nothing needs.
            Ok(hub) => {
                for n in 0..200 {
                    let twin = hub.control().twin(&format!("d{n}")).unwrap();
                    let twin: serde_json::Value = serde_json::from_slice(&twin).unwrap();
                    assert_eq!(twin["tags"]["n"], n);
                }
            }
        }
    }
    assert!(refused > 0);
}

#[test]
fn a_hub_with_other_shards_finds_everything() {
    let dir = tempfile::tempdir().unwrap();
    let start = |shards: usize| HubServer::builder().shards(shards).data(dir.path()).start().unwrap();
    let all = |hub: &HubServer| -> Vec<String> {
        (0..40).map(|n| String::from_utf8(hub.control().twin(&format!("d{n}")).unwrap()).unwrap()).collect()
    };
    let hub = start(1);
    let tags: Option<Arc<str>> = Some(r#"{"shared":true}"#.into());
    let devices = (0..40).map(|n| NewDevice { tags: tags.clone(), ..NewDevice::new(format!("d{n}")) });
    hub.control().create_devices(devices).unwrap();
    let message = C2dMessage { body: b"x"[..].into(), ..C2dMessage::default() };
    hub.control().send_c2d("d7", message).unwrap();
    let module = hub
        .control()
        .with_device_blocking("d7", |shard| shard.create("d7/m", DeviceSpec::default()).map(drop));
    module.unwrap().unwrap();
    let mut before = all(&hub);
    drop(hub);
    for shards in [3, 2, 2, 5, 1] {
        let hub = start(shards);
        assert_eq!(all(&hub), before, "{shards} shards");
        let module = hub.control().with_device_blocking("d7", |shard| shard.find("d7/m").is_ok());
        assert!(module.unwrap());
        // Something is written before the next one starts.
        let touched = hub.control().with_device_blocking("d9", |shard| {
            let device = shard.find("d9").unwrap();
            let (tags, desired) = (Some(&br#"{"shared":true}"#[..]), None);
            let input = Input::PatchTwin { device, tags, desired, if_match: None };
            shard.apply(input).map(drop)
        });
        touched.unwrap().unwrap();
        let after = all(&hub);
        assert_eq!([&after[..9], &after[10..]], [&before[..9], &before[10..]]);
        before = after;
    }
}
