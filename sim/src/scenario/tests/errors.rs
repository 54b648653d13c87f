use super::*;

/// The minimal scenario with each `from` replaced by its `to`.
fn changed(changes: &[(&str, &str)]) -> String {
    changes.iter().fold(MINIMAL.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    })
}

/// What is said about the minimal scenario with each change by itself.
fn said(cases: &[(&str, &str)]) -> String {
    cases.iter().map(|case| format!("{}\n", refused(&changed(&[*case]), &[]))).collect()
}

const STEPS: &str = "[[step]]\nwait = { until";

fn steps(new: &[&str]) -> String {
    new.iter()
        .map(|step| format!("{}\n", refused(&changed(&[(STEPS, &format!("{step}\n\n{STEPS}"))]), &[])))
        .collect()
}

#[test]
fn text_that_is_not_toml() {
    insta::assert_snapshot!(said(&[
        ("devices = 100", "devices = = 100"),
        ("\"minimal\"", "\"minimal"),
        ("[fleet]", "[fleet"),
        ("seq = 2", "seq = 2\nseq = 3"),
        ("name = \"minimal\"", "name \"minimal\""),
    ]));
}

#[test]
fn unknown_keys() {
    insta::assert_snapshot!(said(&[
        ("[fleet]", "sed = 4\n[fleet]"),
        ("devices = 100", "devices = 100\ndevcies = 5"),
        ("seq = 2", "seq = 2\nversion = \"2.0\""),
        ("over = \"10s\"", "over = \"10s\", grup = \"x\""),
        ("[[step]]\nconnect", "[[step]]\nfault.hub_restrat = { down_for = \"1s\" }\n[[step]]\nconnect"),
        ("[[step]]\nconnect", "[[step]]\nfault.power_cut = { at = \"now\" }\n[[step]]\nconnect"),
        ("\"devices.missing\"", "\"device.missing\""),
        ("\"devices.missing\"", "\"fan_out_latency.p95\""),
        ("\"devices.missing\"", "\"happiness\""),
        ("[expect]", "[expects]"),
    ]));
}

#[test]
fn missing_keys() {
    insta::assert_snapshot!(said(&[
        ("schema = 1\n", ""),
        ("name = \"minimal\"\n", ""),
        ("devices = 100\n", ""),
        ("seq = 2\n", ""),
        (", release = \"fw-2\"", ""),
        ("[[step]]\nconnect", "[[step]]\nfault.link_down = { share = \"5%\" }\n[[step]]\nconnect"),
        ("connect = { over = \"10s\" }", "name = \"nothing\""),
    ]));
    insta::assert_snapshot!("nothing at all", refused("", &[]));
}

#[test]
fn values_of_the_wrong_kind() {
    insta::assert_snapshot!(said(&[
        ("schema = 1", "schema = 2"),
        ("\"minimal\"", "5"),
        ("devices = 100", "devices = \"lots\""),
        ("devices = 100", "devices = -1"),
        ("devices = 100", "devices = 1.5"),
        ("seq = 2", "seq = 2\nsize = 65536"),
        ("seq = 2", "seq = 2\nsize = \"64Kb\""),
        ("seq = 2", "seq = 2\nboot_failure = \"200%\""),
        ("seq = 2", "seq = 2\nboot_failure = 0.2"),
        ("seq = 2", "seq = 2\nsignature = \"good-ish\""),
        ("over = \"10s\"", "over = 10"),
        ("over = \"10s\"", "over = \"10s\", rate = \"5/s\""),
        ("wait = {", "connect = { storm = true }\nwait = {"),
        ("until = \"converged >= 100%\"", "for = \"1s\", timeout = \"1m\""),
        ("until = \"converged >= 100%\"", "timeout = \"1m\""),
        ("until = \"converged >= 100%\"", "until = \"convergd >= 100%\""),
        ("[[release]]", "[hub]\ntier = \"S4\"\n[[release]]"),
        ("[[release]]", "[release]"),
        ("name = \"minimal\"", "name = \"minimal\"\nclock = 02:00:00"),
        (
            "[fleet]",
            "[fleet.release]\nid = \"x\"\nseq = 1\n[[fleet.group]]\nname = \"g\"\nlink.latency = { median = \"1s\", p99 = \"1s\" }\n[fleet]"
        ),
        ("[fleet]", "[[fleet.group]]\nname = \"g\"\nshare = \"some\"\n[fleet]"),
    ]));
}

#[test]
fn everything_that_is_wrong_is_said_at_once_and_in_order() {
    insta::assert_snapshot!(refused(
        &changed(&[
            ("name = \"minimal\"", "name = \"minimal\"\nsed = 1"),
            ("devices = 100", "devices = \"many\""),
            ("seq = 2", "seq = 2\nsize = 5\nboot_failure = \"1\""),
            ("over = \"10s\"", "over = \"10 bananas\""),
            ("id = \"c\"", "id = 7"),
            (
                "\"devices.missing\" = 0",
                "\"devices.missing\" = \"<= 5%\"\n\"fan_out_latency.p99\" = \"<= 64KiB\""
            ),
        ]),
        &[]
    ));
}

#[test]
fn fleets_that_cannot_be() {
    let group = |groups: &str| format!("{groups}\n[[release]]");
    insta::assert_snapshot!(said(&[
        ("devices = 100", "devices = 0"),
        (
            "[[release]]",
            &group(
                "[[fleet.group]]\nname = \"a\"\nshare = \"60%\"\n[[fleet.group]]\nname = \"b\"\nshare = \"50%\""
            )
        ),
        ("[[release]]", &group("[[fleet.group]]\nname = \"a\"\nshare = \"60%\"")),
        (
            "[[release]]",
            &group("[[fleet.group]]\nname = \"a\"\nshare = \"60%\"\n[[fleet.group]]\nname = \"a\"")
        ),
        ("[[release]]", &group("[[fleet.group]]\nname = \"a\"\nlink.latency = \"0ms..5ms\"")),
        ("[[release]]", &group("[[fleet.group]]\nname = \"a\"\ntags = { \"a.b\" = 1 }")),
        (
            "[[release]]",
            &group("[[fleet.group]]\nname = \"a\"\nwindow = { opens = \"02:00\", lasts = \"25h\" }")
        ),
        (
            "[[release]]",
            &group(concat!(
                "[[fleet.group]]\nname = \"a\"\nwindow = { opens = \"02:00\", lasts = \"1h\" }\n",
                "download_window = { opens = \"02:00\", lasts = \"8d\", days = [] }\n",
                "install_window = { opens = \"02:00\", lasts = \"1h\", days = [\"monday\"] }"
            ))
        ),
        (
            "[[release]]",
            &group(concat!(
                "[[fleet.group]]\nname = \"a\"\nutc_offset_minutes = 900\nbusy = \"10%\"\n",
                "download_window = { opens = \"02:00\", lasts = \"8d\", days = [] }"
            ))
        ),
        ("seq = 2", "seq = 2\n[[release]]\nid = \"fw-2\"\nseq = 3"),
        ("seq = 2", "seq = 2\nsize = \"0B\""),
        ("seq = 2", "seq = 2\n[[release]]\nid = \"fw-1\"\nseq = 3"),
    ]));
}

#[test]
fn what_real_agents_do_not_have() {
    let group =
        |text: &str| format!("[[fleet.group]]\nname = \"a\"\ndriver = \"agent\"\n{text}\n[[release]]");
    insta::assert_snapshot!(said(&[
        ("[[release]]", &group("busy = \"10%\"")),
        ("[[release]]", &group("install_window = { opens = \"02:00\", lasts = \"90s\" }")),
        (
            "[[release]]",
            &group(
                "[[step]]\nfault.link_down = { group = \"a\", lasts = \"1m\" }\n[[step]]\nfault.power_cut = { group = \"a\" }"
            )
        ),
    ]));
}

#[test]
fn settings_that_cannot_be() {
    let section = |text: &str| format!("{text}\n[[release]]");
    insta::assert_snapshot!(said(&[
        ("[[release]]", &section("[agent]\nattempts = 0")),
        ("[[release]]", &section("[agent]\nbackoff = { first = \"2m\", max = \"1m\" }")),
        ("[[release]]", &section("[agent]\ncheckpoint = \"0B\"\nrequest_timeout = \"0s\"")),
        ("[[release]]", &section("[agent]\nlocks = { retry = \"0s\" }\nupdate_cap = \"0B\"")),
        ("[[release]]", &section("[hub]\ntier = \"S3\"\nunits = 11")),
        ("[[release]]", &section("[hub]\nconfiguration_cycle = \"0s\"")),
        ("[[release]]", &section("[hub]\nconfiguration_cycle = \"sometimes\"")),
        ("[[release]]", &section("[live]\nhub_threads = 0")),
        ("[[release]]", &section("[harness]\nmax_duration = \"0s\"")),
    ]));
}

#[test]
fn steps_that_refer_to_what_is_not_there() {
    insta::assert_snapshot!(steps(&[
        "[[step]]\nconnect = { storm = true, group = \"canary\" }",
        "[[step]]\nconfigure = { id = \"d\", release = \"fw2\" }",
        "[[step]]\nconfigure = { id = \"D d\", release = \"fw-2\" }",
        "[[step]]\nconfigure = { id = \"d\", release = \"fw-2\", target = \"tags.site == 'x'\" }",
        "[[step]]\nconfigure = { id = \"d\", release = \"fw-2\", target = \"tags.site = \" }",
        "[[step]]\ncancel = { configuration = \"d\" }",
        "[[step]]\nfault.power_cut = { group = \"canary\" }",
        "[[step]]\nfault.blob_error = { status = 500 }",
        "[[step]]\nname = \"x\"\nconnect = { storm = true }\n[[step]]\nname = \"x\"\nwait = { for = \"1s\" }",
    ]));
    insta::assert_snapshot!(
        "sequence",
        said(&[
            ("seq = 2", "seq = 1"),
            (
                "[[step]]\nwait",
                "[[release]]\nid = \"fw-3\"\nseq = 2\n[[step]]\nconfigure = { id = \"d\", release = \"fw-3\" }\n[[step]]\nwait"
            ),
        ])
    );
}

#[test]
fn steps_that_cannot_happen() {
    insta::assert_snapshot!(steps(&[
        "[[step]]\nwait = { until = \"connected > 100%\" }",
        "[[step]]\nwait = { until = \"connected >= 101\" }",
        "[[step]]\nwait = { for = \"1s\", abort_if = \"failed >= 0%\" }",
        "[[step]]\nat = \"5s\"\nwait = { for = \"1s\" }",
        "[[step]]\nwait = { for = \"3h\" }",
    ]));
    insta::assert_snapshot!(
        "order",
        said(&[
            ("connect = { over = \"10s\" }", "wait = { until = \"connected >= 5\" }"),
            ("connect = { over = \"10s\" }", "wait = { until = \"converged >= 5\" }"),
            ("connect = { over = \"10s\" }", "wait = { for = \"1s\", abort_if = \"failed > 5%\" }"),
            ("[expect]", "[[step]]\nfault.late_step = { by = \"1s\" }\n[expect]"),
        ])
    );
}

#[test]
fn expectations_that_no_run_can_meet() {
    let expect = |text: &'static str| ("\"devices.missing\" = 0", text);
    insta::assert_snapshot!(said(&[
        expect("\"devices.missing\" = -1"),
        expect("\"devices.missing\" = \"none\""),
        expect("\"devices.missing\" = \"< 0\""),
        expect("\"devices.missing\" = \"<= 5s\""),
        expect("\"devices.converged\" = \">= 101\""),
        expect("\"devices.failed_share\" = \"<= 101%\""),
        expect("\"devices.failed_share\" = \"> 100%\""),
        expect("\"fan_out_latency.p99\" = \"<= 500\""),
        expect("\"fan_out_latency.p99\" = \"<= -5ms\""),
        expect("\"fan_out_latency.p99\" = \"500ms\""),
        expect("\"fan_out_latency.p99\" = [\"<= 1s\", \">= 2s\"]"),
        expect("\"fan_out_latency.p50\" = \">= 2s\"\n\"fan_out_latency.p99\" = \"<= 1s\""),
        expect("\"fleet_convergence.99.9\" = \"< 1s\"\n\"fleet_convergence.90\" = \"= 1s\""),
        expect("\"messages_per_device\" = \"<= many\""),
        expect("\"blob.bytes_per_second\" = \">= 5MB\""),
        expect("\"fan_out_latency.p99\" = true"),
    ]));
}

#[test]
fn what_is_only_suspicious_is_a_warning() {
    let text = changed(&[
        (
            "devices = 100",
            "devices = 100\n[[fleet.group]]\nname = \"a\"\nshare = \"100%\"\n[[fleet.group]]\nname = \"b\"\n[hub]\nunits = 3",
        ),
        ("seq = 2", "seq = 2\n[[release]]\nid = \"fw-3\"\nseq = 3"),
        (
            "[[step]]\nwait",
            "[[step]]\nconfigure = { id = \"d\", release = \"fw-2\", target = \"tags.site = 'x'\" }\n[[step]]\nfault.power_cut = { share = \"0%\" }\n[[step]]\nwait",
        ),
        ("[expect]\n\"devices.missing\" = 0", ""),
    ]);
    let said: String = loaded(&text, &[]).warnings.iter().map(|warning| format!("{warning}\n")).collect();
    insta::assert_snapshot!(said);
}

#[test]
fn archives_that_no_release_has() {
    let delta = |text: &str| format!("seq = 2\nsize = \"1MB\"\ndelta = {{ {text} }}");
    let refusal = |text: &str| said(&[("seq = 2", &delta(text))]);
    let wrong_key = refusal("archive = \"400kB\", header = \"4kB\", chnaged = \"8%\"");
    assert!(wrong_key.contains("did you mean `changed`?"), "{wrong_key}");
    let lacking = refusal("archive = \"400kB\", header = \"4kB\"");
    assert!(lacking.contains("`changed`"), "{lacking}");
    let short = refusal("archive = \"4kB\", header = \"5kB\", changed = \"8%\"");
    assert!(short.contains("the header, 5kB, is longer than the whole archive, 4kB"), "{short}");
    let nowhere = refusal("archive = \"400kB\", header = \"4kB\", changed = \"8%\", ranges = 0");
    assert!(nowhere.contains("give 1 to 10000"), "{nowhere}");
    let text = changed(&[("seq = 2", &delta("archive = \"400kB\", header = \"11kB\", changed = \"8%\""))]);
    let warnings: Vec<String> = loaded(&text, &[]).warnings.iter().map(ToString::to_string).collect();
    assert!(warnings.iter().any(|warning| warning.contains("fetch all of the payload")), "{warnings:?}");
}
