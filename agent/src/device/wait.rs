//! What a device waits for: each of these ends with the next thing of its kind, or never.

use std::future::{pending, poll_fn};
use std::task::Poll;
use std::time::Duration;

use fleetwave_protocol::Instant;

use super::methods::Reply;
use crate::install::Later;
use crate::link::{Arrival, Link};
use crate::unit::{Step, Unit};

pub(super) async fn next_arrival(link: &mut Option<Link>) -> Arrival {
    match link {
        Some(link) => link.next().await,
        None => pending().await,
    }
}

/// A few units share one task: each is asked when any of them is woken.
pub(super) async fn next_step(units: &mut [Unit]) -> (usize, Step) {
    poll_fn(|cx| {
        for (index, unit) in units.iter_mut().enumerate() {
            if let Poll::Ready(step) = unit.poll(cx) {
                return Poll::Ready((index, step));
            }
        }
        Poll::Pending
    })
    .await
}

pub(super) async fn next_reply(chores: &mut Vec<Later<Reply>>) -> Reply {
    poll_fn(|cx| {
        for at in 0..chores.len() {
            if let Poll::Ready(reply) = chores[at].as_mut().poll(cx) {
                drop(chores.swap_remove(at));
                return Poll::Ready(reply);
            }
        }
        Poll::Pending
    })
    .await
}

pub(super) async fn next_zone(zone: &mut Option<Later<i32>>) -> i32 {
    match zone {
        Some(zone) => zone.await,
        None => pending().await,
    }
}

pub(super) async fn until(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => pending().await,
    }
}

pub(super) async fn at(origin: tokio::time::Instant, wake: Option<Instant>) {
    until(wake.map(|wake| origin + Duration::from_micros(wake.as_micros()))).await;
}
