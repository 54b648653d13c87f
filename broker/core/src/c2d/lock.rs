//! Messages that a device fetches one by one, without a connection. Each is locked for a minute, in which the device
//! has to complete, reject or abandon it; a message whose lock passes waits again.

use fleetwave_protocol::Now;

use super::{Entry, FeedbackStatus, Holder};
use crate::error::{ErrorCode, HubError};
use crate::hub::Hub;
use crate::io::{DeviceIx, Done, Output, ReceivedC2d, Settlement};
use crate::limits;
use crate::timers::{Due, Ticket};

impl Hub {
    pub(crate) fn receive_c2d(&mut self, now: Now, ix: DeviceIx, lock: u128, out: &mut Vec<Output>) {
        let received = self.existing(ix).map(|_| ()).map(|()| self.lock_next(now, ix, lock));
        out.push(Output::Service(received.map(Done::Received).map_err(Box::new)));
    }

    fn lock_next(&mut self, now: Now, ix: DeviceIx, token: u128) -> Option<ReceivedC2d> {
        if let Some(device) = self.registry.get_mut(ix) {
            device.active(now.wall);
        }
        let queue = self.c2d.get_mut(&ix)?;
        let entry = queue.entries.iter_mut().find(|entry| entry.holder == Holder::Nobody)?;
        let until = self.timers.set(now.at + limits::C2D_LOCK, Due::C2dLock(ix));
        entry.holder = Holder::Lock { token, until };
        entry.queued.deliveries += 1;
        self.changes.device(ix);
        Some(ReceivedC2d {
            message: entry.message.clone(),
            deliveries: entry.queued.deliveries,
            expires: entry.queued.expires,
        })
    }

    pub(crate) fn settle_c2d(
        &mut self,
        now: Now,
        ix: DeviceIx,
        lock: u128,
        outcome: Settlement,
        out: &mut Vec<Output>,
    ) {
        let is_locked = |entry: &Entry| matches!(entry.holder, Holder::Lock { token, .. } if token == lock);
        let found = self.existing(ix).map(|_| ()).and_then(|()| {
            let mut entries = self.c2d.get(&ix).into_iter().flat_map(|queue| &queue.entries);
            if entries.any(is_locked) {
                return Ok(Done::Settled);
            }
            Err(HubError::new(
                ErrorCode::DeviceMessageLockLost,
                "no message has this lock: it was settled or has expired, or the lock has passed",
            ))
        });
        let settled = found.is_ok();
        out.push(Output::Service(found.map_err(Box::new)));
        if settled {
            match outcome {
                Settlement::Complete => self.end_c2d(now, ix, FeedbackStatus::Success, out, is_locked),
                Settlement::Reject => self.end_c2d(now, ix, FeedbackStatus::Rejected, out, is_locked),
                Settlement::Abandon => self.put_back_c2d(now, ix, out, is_locked),
            }
        }
    }

    pub(crate) fn unlock_c2d(&mut self, now: Now, ix: DeviceIx, ticket: Ticket, out: &mut Vec<Output>) {
        let is_over = |entry: &Entry| matches!(entry.holder, Holder::Lock { until, .. } if until == ticket);
        self.put_back_c2d(now, ix, out, is_over);
    }

    /// Lets a message wait again, unless it was delivered as often as allowed.
    fn put_back_c2d(
        &mut self,
        now: Now,
        ix: DeviceIx,
        out: &mut Vec<Output>,
        which: impl Fn(&Entry) -> bool,
    ) {
        let most = self.options.c2d_max_deliveries;
        let worn = |entry: &Entry| which(entry) && entry.queued.deliveries >= most;
        self.end_c2d(now, ix, FeedbackStatus::DeliveryCountExceeded, out, worn);
        for entry in self.c2d.get_mut(&ix).into_iter().flat_map(|queue| &mut queue.entries) {
            if which(entry)
                && let Holder::Lock { until, .. } = entry.holder
            {
                self.timers.cancel(until);
                entry.holder = Holder::Nobody;
                self.changes.device(ix);
            }
        }
        self.deliver_c2d(ix, out);
    }
}
