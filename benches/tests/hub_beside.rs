//! The program `hub_beside`, at a size that shows that it works, not what it measures.

use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_hub_beside");

#[test]
fn a_small_fleet_is_connected_and_told_beside_raw_sockets() {
    let arguments = ["--devices", "40", "--rounds", "1", "--json"];
    let output = Command::new(PROGRAM).args(arguments).output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one document");
    for connects in document["connects"].as_array().expect("one for each window") {
        assert!(connects["hub_to_raw"].as_f64() > Some(0.0), "{document}");
        // Where Mosquitto is not installed there is nothing to compare with.
        let compared = connects["hub_to_mosquitto"].as_f64() > Some(0.0);
        assert_eq!(compared, !document["mosquitto"].is_null(), "{document}");
    }
    assert!(document["fan_out"]["hub_to_raw"].as_f64() > Some(0.0), "{document}");
    let size = document["fan_out"]["message_bytes"].as_u64().expect("a size");
    assert!((200..400).contains(&size), "a notification of {size} bytes");
}

#[test]
fn a_fleet_beyond_the_descriptors_is_told_what_would_do() {
    let limited = "ulimit -n 100 && exec \"$0\" --devices 200";
    let output = Command::new("sh").args(["-c", limited, PROGRAM]).output().expect("there is a shell");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("take --devices 36"), "{errors}");
}
