//! What goes over connections, and how one takes the place of another.

use std::future::{Future, pending};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use fleetwave_protocol::Profile;
use fleetwave_protocol::profile::plain;
use rumqttc::{AsyncClient, Event, EventLoop, Outgoing, Packet, QoS, SubscribeFilter, SubscribeReasonCode};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::access::Access;
use super::dial::Line;
use super::{Arrival, LinkError, quality};

/// How long the old connection is listened to after the new one is there. The hub closes it at once.
const DRAIN: Duration = Duration::from_secs(2);
/// Pauses between tries to renew; meanwhile the old connection serves.
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);
const RENEWED: &str = "the token is renewed: another connection takes the place of this one";
const LONGEST_RENEWAL_PAUSE: Duration = Duration::from_secs(60);

/// What is to go over whatever connection there is.
#[derive(Debug)]
pub(super) enum Request {
    Subscribe,
    Publish { topic: String, qos: QoS, payload: Vec<u8> },
    Farewell,
}

/// A connection that is being made.
type Dialling<'a> = Pin<Box<dyn Future<Output = Result<Line, LinkError>> + Send + 'a>>;

enum After {
    Renewed(Box<Line>),
    Lost(LinkError),
    Closed,
}

/// Connects, carries, and renews until the connection is lost or a farewell was said.
pub(super) async fn run(access: Arc<Access>, mut requests: Receiver<Request>, arrivals: Sender<Arrival>) {
    // Nobody may listen any more (after `close`): the farewell is still to be sent, so errors are passed over.
    let mut line = match access.dial().await {
        Ok(line) => line,
        Err(error) => {
            let _ = arrivals.send(Arrival::Lost(error)).await;
            return;
        }
    };
    loop {
        if access.profile() == Profile::Plain && line.session_present {
            hello(&line.client, &line.station.device);
        }
        let (device, session_present) = (line.station.device.clone(), line.session_present);
        let _ = arrivals.send(Arrival::Connected { device, session_present }).await;
        match carry(&access, &mut line, &mut requests, &arrivals).await {
            After::Renewed(new) => {
                let mut new = *new;
                drain(&mut line.events, &arrivals).await;
                new.events.pending.append(&mut line.events.pending);
                line = new;
            }
            After::Lost(error) => {
                let _ = arrivals.send(Arrival::Lost(error)).await;
                return;
            }
            After::Closed => return,
        }
    }
}

async fn carry(
    access: &Access,
    line: &mut Line,
    requests: &mut Receiver<Request>,
    arrivals: &Sender<Arrival>,
) -> After {
    let Line { client, events, station, renew_at, .. } = line;
    let mut due = *renew_at;
    let mut pause = RENEWAL_PAUSE;
    // The connection that is to take the place of this one, while it is made.
    let mut next: Option<Dialling<'_>> = None;
    loop {
        let polled = {
            // Not dropped half-way: it may be in the middle of writing.
            let mut polled = pin!(events.poll());
            loop {
                tokio::select! {
                    polled = &mut polled => break polled,
                    // What is said while the hub turns to the next connection could be lost with this one: it waits.
                    Some(request) = requests.recv(), if next.is_none() => {
                        queue(client, access.profile(), &station.device, request);
                    }
                    () = at(due) => {
                        due = None;
                        next = Some(Box::pin(access.dial()));
                    }
                    dialled = ready(&mut next) => match dialled {
                        Ok(line) => {
                            tracing::info!("{RENEWED}");
                            return After::Renewed(Box::new(line));
                        }
                        Err(error) => {
                            tracing::warn!(%error, "the token could not be renewed yet");
                            next = None;
                            due = Some(Instant::now() + pause);
                            pause = (2 * pause).min(LONGEST_RENEWAL_PAUSE);
                        }
                    },
                }
            }
        };
        match polled {
            Ok(Event::Outgoing(Outgoing::Disconnect)) => return After::Closed,
            Ok(Event::Incoming(Packet::SubAck(ack)))
                if ack.return_codes.contains(&SubscribeReasonCode::Failure) =>
            {
                let why = "it refused a subscription".to_owned();
                return After::Lost(LinkError::Broken { host: station.peer.clone(), why });
            }
            Ok(event) => forward(event, arrivals).await,
            Err(error) => {
                // The hub may have closed this one because the next one is there already.
                if let Some(next) = next
                    && let Ok(line) = next.await
                {
                    tracing::info!("{RENEWED}");
                    return After::Renewed(Box::new(line));
                }
                return After::Lost(LinkError::of(error, &station.peer, (access.clock)()));
            }
        }
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

async fn ready<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

/// Takes what the hub sent on the old connection before it heard of the new one, and leaves in `pending` what had not
/// been sent on it.
async fn drain(events: &mut EventLoop, arrivals: &Sender<Arrival>) {
    let end = Instant::now() + DRAIN;
    // Without a network it would connect anew.
    while events.network.is_some()
        && let Ok(Ok(event)) = timeout_at(end, events.poll()).await
    {
        forward(event, arrivals).await;
    }
    // The library keeps what was read together with the end of the connection.
    while let Some(event) = events.state.events.pop_front() {
        forward(event, arrivals).await;
    }
    events.clean();
}

async fn forward(event: Event, arrivals: &Sender<Arrival>) {
    if let Event::Incoming(Packet::Publish(message)) = event {
        let _ = arrivals.send(Arrival::Message(message)).await;
    }
}

fn queue(client: &AsyncClient, profile: Profile, device: &str, request: Request) {
    let queued = match request {
        Request::Subscribe => {
            let filters = profile.filters(device).into_iter();
            let filters = filters.map(|(filter, qos)| SubscribeFilter::new(filter, quality(qos)));
            let queued = client.try_subscribe_many(filters);
            if profile == Profile::Plain {
                hello(client, device);
            }
            queued
        }
        Request::Publish { topic, qos, payload } => client.try_publish(topic, qos, false, payload),
        Request::Farewell => {
            if profile == Profile::Plain {
                // A broker publishes no will after a DISCONNECT.
                let _ = client.try_publish(plain::bye_topic(device), QoS::AtMostOnce, false, "");
            }
            client.try_disconnect()
        }
    };
    // One that finds no place is lost, as it can be on its way, too: the machine asks again.
    if queued.is_err() {
        tracing::warn!("a message could not be queued");
    }
}

/// A broker tells the hub of nobody who connects.
fn hello(client: &AsyncClient, device: &str) {
    let _ = client.try_publish(plain::hello_topic(device), QoS::AtMostOnce, false, "");
}
