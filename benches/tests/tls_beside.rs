//! The program `tls_beside`, at a size that shows that it works, not what it measures.

use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_tls_beside");

#[test]
fn connections_and_sessions_are_counted_beside_openssl() {
    let arguments = ["--rounds", "1", "--seconds", "1", "--sessions", "60", "--json"];
    let output = Command::new(PROGRAM).args(arguments).output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one document");
    assert!(document["hub"][0].as_f64() > Some(0.0), "{document}");
    assert_eq!(
        document["openssl"][0].as_f64() > Some(0.0),
        !document["openssl_version"].is_null(),
        "{document}"
    );
    assert_eq!(document["sessions"].as_u64(), Some(60), "{document}");
    assert!(document["bytes_a_session"].is_u64(), "{document}");
}

#[test]
fn sessions_beyond_the_descriptors_are_told_what_would_do() {
    let limited = "ulimit -n 150 && exec \"$0\" --sessions 200";
    let output = Command::new("sh").args(["-c", limited, PROGRAM]).output().expect("there is a shell");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("take --sessions 50"), "{errors}");
}
