//! Direct methods: a call, its device's answer, and the times that both may take.

use core::time::Duration;
use std::sync::Arc;

use fleetwave_protocol::Now;

use crate::error::{ErrorCode, HubError};
use crate::hub::Hub;
use crate::io::{DeviceIx, MethodAnswer, Output, Topics};
use crate::limits;
use crate::timers::{Due, Ticket};

/// A call without an answer yet.
#[derive(Debug)]
pub(crate) struct Call {
    device: DeviceIx,
    tag: u64,
    timer: Ticket,
    /// What is to be sent once the device is there; `None` when it was sent.
    unsent: Option<Box<Unsent>>,
}

#[derive(Debug)]
struct Unsent {
    name: Arc<str>,
    payload: Arc<[u8]>,
    response_timeout: Duration,
}

/// What a service asks for.
pub(crate) struct Invocation<'a> {
    pub(crate) name: &'a str,
    pub(crate) payload: &'a [u8],
    pub(crate) connect_timeout: Duration,
    pub(crate) response_timeout: Duration,
    pub(crate) tag: u64,
}

fn failed(tag: u64, code: ErrorCode, message: impl Into<std::borrow::Cow<'static, str>>) -> Output {
    Output::MethodResult { tag, result: Err(Box::new(HubError::new(code, message))) }
}

impl Hub {
    pub(crate) fn invoke(&mut self, now: Now, ix: DeviceIx, call: &Invocation<'_>, out: &mut Vec<Output>) {
        let tag = call.tag;
        if let Err(error) = self.existing(ix) {
            return out.push(Output::MethodResult { tag, result: Err(Box::new(error)) });
        }
        if call.payload.len() > limits::METHOD_SIZE {
            let message =
                format!("the payload has {} bytes, the limit is {}", call.payload.len(), limits::METHOD_SIZE);
            return out.push(failed(tag, ErrorCode::MessageTooLarge, message));
        }
        let online = self.device(ix).is_some_and(|device| device.hears(Topics::METHODS));
        if !online && call.connect_timeout.is_zero() {
            return out.push(failed(tag, ErrorCode::DeviceNotOnline, "the device is not connected"));
        }
        self.calls_made = self.calls_made.wrapping_add(1);
        let number = self.calls_made;
        let name = self.method_name(call.name);
        let payload = Arc::from(call.payload);
        let wait = if online { call.response_timeout } else { call.connect_timeout };
        let timer = self.timers.set(now.at + wait, Due::Method(number));
        let unsent = if online {
            out.push(Output::Method { device: ix, call: number, name, payload });
            None
        } else {
            self.waiting.entry(ix).or_default().push(number);
            Some(Box::new(Unsent { name, payload, response_timeout: call.response_timeout }))
        };
        self.calls.insert(number, Call { device: ix, tag, timer, unsent });
    }

    /// Names are few: each is held once.
    fn method_name(&mut self, name: &str) -> Arc<str> {
        const KEPT: usize = 64;
        if let Some(known) = self.method_names.iter().find(|known| &***known == name) {
            return Arc::clone(known);
        }
        if self.method_names.len() == KEPT {
            self.method_names.clear();
        }
        let name: Arc<str> = name.into();
        self.method_names.push(Arc::clone(&name));
        name
    }

    /// Sends what waited for the device, if it is connected and listens.
    pub(crate) fn send_waiting(&mut self, now: Now, ix: DeviceIx, out: &mut Vec<Output>) {
        if !self.device(ix).is_some_and(|device| device.hears(Topics::METHODS)) {
            return;
        }
        for number in self.waiting.remove(&ix).unwrap_or_default() {
            let Some(call) = self.calls.get_mut(&number) else { continue };
            let Some(unsent) = call.unsent.take() else { continue };
            self.timers.cancel(call.timer);
            call.timer = self.timers.set(now.at + unsent.response_timeout, Due::Method(number));
            out.push(Output::Method { device: ix, call: number, name: unsent.name, payload: unsent.payload });
        }
    }

    pub(crate) fn answer(
        &mut self,
        ix: DeviceIx,
        number: u32,
        status: i32,
        body: &[u8],
        out: &mut Vec<Output>,
    ) {
        let expected = self.calls.get(&number).is_some_and(|call| call.device == ix && call.unsent.is_none());
        if !expected {
            return;
        }
        let Some(call) = self.calls.remove(&number) else { return };
        self.timers.cancel(call.timer);
        out.push(if body.len() > limits::METHOD_SIZE {
            let message =
                format!("the answer has {} bytes, the limit is {}", body.len(), limits::METHOD_SIZE);
            failed(call.tag, ErrorCode::MessageTooLarge, message)
        } else {
            let answer = MethodAnswer { status, payload: body.to_vec() };
            Output::MethodResult { tag: call.tag, result: Ok(answer) }
        });
    }

    pub(crate) fn time_out(&mut self, number: u32, out: &mut Vec<Output>) {
        let Some(call) = self.calls.remove(&number) else { return };
        out.push(if call.unsent.is_some() {
            self.stop_waiting(call.device, number);
            failed(call.tag, ErrorCode::DeviceNotOnline, "the device did not connect in time")
        } else {
            failed(call.tag, ErrorCode::GatewayTimeout, "the device did not answer in time")
        });
    }

    fn stop_waiting(&mut self, ix: DeviceIx, number: u32) {
        if let Some(waiting) = self.waiting.get_mut(&ix) {
            waiting.retain(|&other| other != number);
            if waiting.is_empty() {
                self.waiting.remove(&ix);
            }
        }
    }

    /// A device is gone: its calls end.
    pub(crate) fn forget_calls(&mut self, ix: DeviceIx, out: &mut Vec<Output>) {
        self.waiting.remove(&ix);
        let mut numbers: Vec<u32> =
            self.calls.iter().filter(|(_, call)| call.device == ix).map(|(&number, _)| number).collect();
        numbers.sort_unstable();
        for number in numbers {
            if let Some(call) = self.calls.remove(&number) {
                self.timers.cancel(call.timer);
                out.push(failed(call.tag, ErrorCode::DeviceNotFound, "the device was deleted"));
            }
        }
    }
}
