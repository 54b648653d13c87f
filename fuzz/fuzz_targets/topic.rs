//! Any topic is a message or none, in either direction and profile; a message that is read and written again is the
//! same one.
#![no_main]

use fleetwave_protocol::profile::iothub;
use fleetwave_protocol::{Profile, bag};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &[u8])| {
    let (topic, payload) = input;
    let mut written = String::new();
    for client in ["d", "d/m", "é"] {
        let _ = iothub::channel(client, topic);
        for profile in [Profile::IotHub, Profile::Plain] {
            if let Ok(up) = profile.decode_up(client, topic, payload) {
                let packet = profile.encode_up(client, &up, &mut written);
                assert_eq!(profile.decode_up(client, &written, packet.payload), Ok(up), "{written}");
            }
            if let Ok(down) = profile.decode_down(client, topic, payload) {
                let packet = profile.encode_down(client, &down, &mut written);
                let payload = packet.payload.to_vec();
                assert_eq!(profile.decode_down(client, &written, &payload), Ok(down), "{written}");
            }
        }
    }
    bag::members(topic).for_each(drop);
    assert_eq!(bag::decode(&bag::encode(topic)).as_deref(), Some(topic));
});
