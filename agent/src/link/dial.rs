//! Making one connection: the name, the token or certificate, CONNECT and its answer.

use std::time::Duration;

use fleetwave_protocol::profile::plain;
use fleetwave_protocol::{Profile, WallTime, rng};
use rumqttc::{
    AsyncClient, Event, EventLoop, LastWill, MqttOptions, Packet, QoS, TlsConfiguration, Transport,
};
use std::sync::Arc;
use tokio::time::Instant;

use super::LinkError;
use super::access::{Access, Station};
use crate::identity::{CertificateSource, Proof, read_secret};

/// A twin is at most 32 KiB in each of its parts, a queued message 64 KiB.
const MAX_PACKET: usize = 256 * 1024;
/// Packets that wait to be sent: more than the machine ever has under way.
pub(super) const QUEUE: usize = 32;
/// Which of the hub's interfaces is meant.
const API: &str = "2021-04-12";

/// One connection.
pub(super) struct Line {
    pub(super) client: AsyncClient,
    pub(super) events: EventLoop,
    pub(super) station: Arc<Station>,
    pub(super) session_present: bool,
    /// When it is to be replaced, before its token ends.
    pub(super) renew_at: Option<Instant>,
}

impl Access {
    /// Connects to the hub.
    pub(super) async fn dial(&self) -> Result<Line, LinkError> {
        self.clock_is_needed().await;
        let (station, proof) = self.station().await?;
        let line = self.connect(station, proof).await;
        match &line {
            Ok(_) => self.note(false),
            Err(error) if error.is_refusal() => self.note(true),
            Err(_) => {}
        }
        line
    }

    async fn connect(&self, station: Arc<Station>, proof: Proof) -> Result<Line, LinkError> {
        let Station { hub, peer, port, device } = &*station;
        let certificate = match &proof {
            Proof::Certificate(certificate) => Some(certificate),
            _ => None,
        };
        let mut options = self.options(device, peer, *port, certificate)?;
        let mut renew_at = None;
        let user = || format!("{hub}/{device}/?api-version={API}");
        match &proof {
            Proof::Sas(signer) => {
                let life = self.hub.token_life();
                renew_at = Some(Instant::now() + renewal(life, device));
                let token = signer.token(&format!("{hub}/devices/{device}"), self.expiry(life), None)?;
                options.set_credentials(user(), token);
            }
            Proof::Certificate(_) if self.profile() == Profile::IotHub => {
                options.set_credentials(user(), "");
            }
            Proof::Password { user, file } => {
                options.set_credentials(user, read_secret(file)?);
            }
            Proof::Certificate(_) | Proof::Nothing => {}
        }
        if self.profile() == Profile::Plain {
            options.set_last_will(LastWill::new(plain::bye_topic(device), "", QoS::AtLeastOnce, false));
        }
        let (client, mut events) = self.client(options);
        let session_present = match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(ack))) => ack.session_present,
            Ok(event) => {
                let why = format!("{event:?} in place of an answer to CONNECT");
                return Err(LinkError::Broken { host: peer.clone(), why });
            }
            Err(error) => return Err(LinkError::of(error, peer, (self.clock)())),
        };
        Ok(Line { client, events, station, session_present, renew_at })
    }

    /// What every connection of the device has in common.
    pub(super) fn options(
        &self,
        client: &str,
        host: &str,
        port: u16,
        certificate: Option<&CertificateSource>,
    ) -> Result<MqttOptions, LinkError> {
        let mut options = MqttOptions::new(client, host, port);
        options
            .set_keep_alive(Duration::from_secs(self.hub.keep_alive_seconds.into()))
            .set_clean_session(false)
            .set_max_packet_size(MAX_PACKET, MAX_PACKET);
        if !self.hub.plain {
            let config = self.tls.config(certificate)?;
            options.set_transport(Transport::Tls(TlsConfiguration::Rustls(config)));
        }
        Ok(options)
    }

    pub(super) fn client(&self, options: MqttOptions) -> (AsyncClient, EventLoop) {
        let (client, mut events) = AsyncClient::new(options, QUEUE);
        events.network_options.set_connection_timeout(self.hub.connect_timeout().as_secs());
        (client, events)
    }

    /// The end of a token that is good for at least so long: tokens end at whole seconds.
    pub(super) fn expiry(&self, life: Duration) -> WallTime {
        let millis = u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
        let end = (self.clock)().as_unix_millis().saturating_add(millis);
        WallTime::from_unix_millis(end.div_ceil(1000).saturating_mul(1000))
    }

    /// Waits for the clock where it matters: tokens end by it, and certificates are valid by it.
    async fn clock_is_needed(&self) {
        if !(self.hub.plain && self.profile() == Profile::Plain) {
            self.clock_is_set().await;
        }
    }
}

/// When a token that is good for `life` is renewed: after 80 to 90 % of it, another time for each device, so that a
/// fleet which came back together does not renew together.
fn renewal(life: Duration, device: &str) -> Duration {
    life.mul_f64(0.8 + 0.1 * share(device))
}

/// A number from 0 to 1, another one for each device and each time.
pub(super) fn share(device: &str) -> f64 {
    let nanos =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let draw = device.bytes().fold(nanos as u64, |seed, byte| rng::mix(seed ^ u64::from(byte)));
    (draw >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_between_80_and_90_percent_of_their_life() {
        let life = Duration::from_secs(3600);
        let draws: Vec<_> = (0..1000).map(|n| renewal(life, &n.to_string()).as_secs()).collect();
        assert!(draws.iter().all(|seconds| (2880..=3240).contains(seconds)), "{draws:?}");
        let spread = draws.iter().max().expect("some") - draws.iter().min().expect("some");
        assert!(spread > 300, "{spread}");
    }
}
