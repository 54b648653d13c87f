//! Mistakes that operators make in the configuration, and what they are told: the line, and what would be right.

use std::path::Path;

use fleetwave_agent::Config;

/// A device with one of everything that can be mistaken.
const GOOD: &str = r#"state = "/var/lib/fleetwave-agent"
[hub]
connection_string = "HostName=localhost;DeviceId=dev-1;SharedAccessKey=c2VjcmV0"
ca = "/etc/ca.pem"
[trust]
threshold = 1
keys = { k1 = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=" }
[firmware]
installer = "slot"
installed = { id = "fw-1", seq = 1 }
slots = { a = "/dev/mmcblk0p5", b = "/dev/mmcblk0p6" }
boot = { loader = "grub", environment = "/boot/grub/grubenv" }
[firmware.probation]
checks = [["/usr/bin/check"]]
[component.app]
installer = "component"
dir = "/opt/app"
[component.app.health]
command = ["/usr/bin/app-check"]
[component.app.hooks]
before_install = { run = ["/usr/bin/backup"], timeout_seconds = 600 }
[limits]
splay_seconds = 60
probation_seconds = 600
[download]
rate = "500 KiB/s"
total_timeout = "6 hours"
[ledger]
per_update = "200 MiB"
[windows]
install = { days = ["sat", "sun"], from = "02:00", to = "04:00" }
[locks]
files = ["/run/app/busy"]
retry_seconds = 60
[telemetry]
heartbeat = "6 hours"
[metrics]
listen = "127.0.0.1:9099"
[watchdog]
device = "/dev/watchdog0"
[log]
level = "info"
"#;

fn told(text: &str) -> Result<(), String> {
    Config::parse(text, Path::new("config.toml")).map(drop).map_err(|error| error.to_string())
}

#[test]
fn each_mistake_is_told_at_its_place_with_what_would_be_right() {
    assert_eq!(told(GOOD), Ok(()));
    let mut wrong = Vec::new();
    for (from, to, says) in [
        // A name that was mistyped, in every kind of section.
        ("[limits]", "[limit]", "config.toml:22:2: unknown field `limit`: did you mean `limits`?"),
        (
            "[component.app]",
            "[components.app]",
            "15:2: unknown field `components`: did you mean `component`?",
        ),
        ("state =", "stat =", "1:1: unknown field `stat`: did you mean `state`?"),
        ("ca =", "cacert =", "4:1: unknown field `cacert`"),
        ("threshold", "treshold", "6:1: unknown field `treshold`: did you mean `threshold`?"),
        (
            "installer = \"slot\"",
            "instaler = \"slot\"",
            "9:1: unknown field `instaler`: did you mean `installer`?",
        ),
        ("installer = \"slot\"\n", "", "8:1: missing field `installer`: component, directory,"),
        ("installed", "instaled", "10:1: unknown field `instaled`: did you mean `installed`?"),
        ("seq = 1", "sequence = 1", "10:28: unknown field `sequence`"),
        ("slots", "slot", "11:1: unknown field `slot`: did you mean `slots`?"),
        ("b = \"/dev", "c = \"/dev", "11:33: unknown field `c`"),
        ("environment", "enviroment", "12:8: unknown field `enviroment`: did you mean `environment`?"),
        ("checks", "check", "14:1: unknown field `check`: did you mean `checks`?"),
        ("dir = ", "directory = ", "17:1: unknown field `directory`"),
        (
            "[component.app.hooks]",
            "[component.app.hook]",
            "20:16: unknown field `hook`: did you mean `hooks`?",
        ),
        ("command", "comand", "19:1: unknown field `comand`: did you mean `command`?"),
        (
            "before_install",
            "before_instal",
            "21:1: unknown field `before_instal`: did you mean `before_install`?",
        ),
        (
            "timeout_seconds",
            "timeout_secs",
            "21:47: unknown field `timeout_secs`: did you mean `timeout_seconds`?",
        ),
        ("splay_seconds", "splay_secs", "23:1: unknown field `splay_secs`: did you mean `splay_seconds`?"),
        ("total_timeout", "total_time", "27:1: unknown field `total_time`: did you mean `total_timeout`?"),
        ("per_update", "per_updat", "29:1: unknown field `per_updat`: did you mean `per_update`?"),
        ("from", "form", "31:36: unknown field `form`: did you mean `from`?"),
        ("install = { days", "instal = { days", "31:1: unknown field `instal`: did you mean `install`?"),
        ("retry_seconds = 60", "retry = 60", "34:1: unknown field `retry`: did you mean `retry_seconds`?"),
        ("heartbeat", "heart_beat", "36:1: unknown field `heart_beat`: did you mean `heartbeat`?"),
        ("listen", "listens", "38:1: unknown field `listens`: did you mean `listen`?"),
        ("device = \"/dev/w", "devise = \"/dev/w", "40:1: unknown field `devise`: did you mean `device`?"),
        ("level", "levels", "42:1: unknown field `levels`: did you mean `level`?"),
        // What there is not.
        ("\"slot\"", "\"slots\"", "8:1: there is no installer \"slots\": did you mean \"slot\"?"),
        ("\"grub\"", "\"lilo\"", "unknown variant `lilo`: There are tryboot, uboot, grub"),
        ("installer = \"component\"", "installer = \"rauc\"", "the installer \"rauc\" is for [firmware]"),
        ("\"info\"", "\"loud\"", "42:9: \"loud\" is no log level"),
        // Numbers and units.
        ("seq = 1", "seq = -1", "10:34: invalid value: integer `-1`"),
        ("threshold = 1", "threshold = 0", "threshold is 0, with 1 keys"),
        ("splay_seconds = 60", "splay_seconds = -1", "23:17: a number of seconds, from 0"),
        ("splay_seconds = 60", "splay_seconds = \"60 s\"", "23:17: invalid type: string \"60 s\""),
        ("probation_seconds = 600", "probation_seconds = 0", "24:21: probation_seconds of [limits] is zero"),
        ("retry_seconds = 60", "retry_seconds = 0", "34:17: retry_seconds of [locks] is zero"),
        ("timeout_seconds = 600", "timeout_seconds = 0", "timeout_seconds is 0: at least 1"),
        (
            "retry_seconds = 60",
            "retry_seconds = 1000000001",
            "34:17: a number of seconds, from 0 to 1000000000",
        ),
        (
            "device = \"/dev/watchdog0\"",
            "timeout_seconds = 0",
            "40:19: a number of seconds, from 1 to 1000000000",
        ),
        ("500 KiB/s", "500 KiB", "26:8: \"500 KiB\" is not a rate: a whole number and B/s"),
        ("\"200 MiB\"", "200", "29:14: invalid type: integer `200`, expected text with a unit: \"30 s\""),
        ("200 MiB", "1.5 GiB", "29:14: \"1.5 GiB\" is not a size: a whole number"),
        (
            "\"6 hours\"\n[ledger]",
            "\"6 weeks\"\n[ledger]",
            "27:17: \"6 weeks\" is not a time: a whole number and s, min",
        ),
        (
            "heartbeat = \"6 hours\"",
            "heartbeat = \"5 s\"",
            "36:13: each heartbeat costs a message: 60 s or more",
        ),
        // Times that cannot be.
        ("02:00", "24:00", "31:43: \"24:00\" is not a time of the day"),
        ("\"sat\"", "\"saturday\"", "\"saturday\" is not a day: mon, tue"),
        ("[\"sat\", \"sun\"]", "[]", "a window without days never opens"),
        // Paths that depend on where the agent is started.
        ("\"/var/lib/fleetwave-agent\"", "\"state\"", "1:9: \"state\" is not an absolute path"),
        ("/etc/ca.pem", "ca.pem", "4:6: \"ca.pem\" is not an absolute path"),
        ("/dev/mmcblk0p6", "mmcblk0p6", "11:37: \"mmcblk0p6\" is not an absolute path"),
        ("/opt/app", "app", "17:7: \"app\" is not an absolute path"),
        ("/run/app/busy", "busy", "33:10: \"busy\" is not an absolute path"),
        // What is no shell, and not for everybody.
        ("[\"/usr/bin/app-check\"]", "\"/usr/bin/app-check --fast\"", "19:11: no shell runs it"),
        ("127.0.0.1:9099", "0.0.0.0:9099", "can be reached from elsewhere"),
        ("DeviceId=", "Device=", "3:21: `Device` in the connection string is not supported"),
    ] {
        assert!(GOOD.contains(from), "{from}");
        let error = told(&GOOD.replacen(from, to, 1)).expect_err(to);
        if !error.contains(says) {
            wrong.push(format!("{from} -> {to}:\n  told     {error}\n  expected {says}"));
        }
        assert!(!error.contains("c2VjcmV0"), "{error}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
