//! Whatever a client sends is packets or a fault, however it is cut into pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((first, rest)) = bytes.split_first() {
        fleetwave_hub::fuzz::packets(rest, first & 1 == 1);
    }
});
