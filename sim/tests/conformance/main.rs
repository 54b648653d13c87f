//! The production agent and a simulated device play the same scripts, and what the hub and the blob store saw of each is
//! compared, message by message. `docs/conformance.md` says how to read and write scripts.

mod diff;
mod play;
mod script;
mod told;

/// Plays scripts, each a file of `scripts/`.
macro_rules! scripts {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                let name = stringify!($name);
                let text = include_str!(concat!("scripts/", stringify!($name), ".toml"));
                crate::play::compare(name, text);
            }
        )*

        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

scripts! {
    a_blob_that_is_not_there
    a_grant_by_a_cloud_to_device_message
    a_grant_that_is_refused
    a_grant_that_nobody_asked_for
    a_link_that_has_ended
    a_link_that_is_refused
    a_lock_that_is_given_back
    a_method_that_is_not_there
    a_payload_with_another_digest
    a_plain_update
    a_release_above_the_cap
    a_release_for_another_target
    a_release_for_another_type_of_device
    a_release_larger_than_a_slot
    a_release_that_does_not_boot
    a_release_that_goes_down
    a_release_that_is_none
    a_release_that_is_not_healthy
    a_release_that_may_go_down
    a_release_that_nobody_signed
    a_slot_that_does_not_keep_what_is_written
    a_store_that_ends_in_the_middle
    a_store_that_fails
    a_store_that_is_busy
    a_store_that_is_busy_and_says_no_more
    a_store_that_spoils_bytes
    a_store_with_too_many_requests
    a_window_of_installations_that_opens
    a_window_that_opens
    back_to_the_release_before
    called_off_and_given_again
    called_off_while_fetching
    called_off_while_granting
    cancelled_before_the_window
    cancelled_while_fetching
    cancelled_while_granting
    changed_while_the_hub_was_away
    free_of_locks
    locked_for_too_long
    locked_until_the_deadline
    nothing_to_call_off
    power_cut_at_rest
    power_cut_on_trial
    power_cut_while_committing
    power_cut_while_fetching
    power_cut_while_granting
    power_cut_while_rebooting
    power_cut_while_staging
    power_cut_while_verifying
    superseded_while_fetching
    superseded_while_granting
    the_hub_restarts
    the_hub_restarts_while_fetching
    the_same_release_again
    two_updates_one_after_the_other
    what_is_for_others
}

#[test]
fn every_script_in_the_directory_is_played() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance/scripts");
    let there = std::fs::read_dir(directory).expect("a directory of the sources");
    let mut there: Vec<String> = there
        .map(|file| {
            file.expect("readable").path().file_stem().expect("a name").to_string_lossy().into_owned()
        })
        .collect();
    there.sort_unstable();
    let mut played: Vec<&str> = NAMES.to_vec();
    played.sort_unstable();
    assert_eq!(there, played);
}
