//! Whatever a client of the AMQP endpoint sends, it is answered or closed.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((first, rest)) = bytes.split_first() {
        fleetwave_hub::fuzz::amqp(rest, usize::from(*first) * 4);
    }
});
