//! What a connection does with sessions and links: the second half of [`Connection`].

use bytes::Bytes;

use super::connection::{Connection, Delivery, Event, Violation};
use super::link::{Flow as Direction, Link, LinkId, Partial, State};
use super::performative::{
    Attach, Begin, Composite as _, Detach, Disposition, End, Error, Flow, Outcome, Performative, Source,
    Symbol, Target, Transfer,
};
use super::session::{HANDLE_MAX, Session};
use super::value::Value;

/// How this side attaches.
#[derive(Debug, Default)]
pub(crate) struct Accept {
    /// For a link on which the peer sends: how many deliveries it may have open.
    pub(crate) window: u32,
    /// The capabilities of those that the peer desires that it gets.
    pub(crate) capabilities: Vec<Symbol>,
    /// The filters that are kept, for a link on which the peer receives.
    pub(crate) filter: Value,
}

impl Connection {
    pub(super) fn performative(&mut self, channel: u16, performative: Performative) -> Result<(), Violation> {
        if let Performative::Begin(begin) = performative {
            return self.begin(channel, &begin);
        }
        if !self.sessions.contains_key(&channel) {
            return Err(Error::new("amqp:not-allowed", format!("no session began on channel {channel}")));
        }
        match performative {
            Performative::Attach(attach) => self.attach(channel, attach),
            Performative::Flow(flow) => self.flow(channel, &flow),
            Performative::Transfer(transfer, payload) => self.transfer(channel, &transfer, payload),
            Performative::Disposition(disposition) => {
                self.disposition(channel, &disposition);
                Ok(())
            }
            Performative::Detach(detach) => self.detached(channel, &detach),
            Performative::End(_) => {
                self.put(channel, &End::default());
                let session = self.sessions.remove(&channel).unwrap_or_default();
                for link in session.handles.into_values() {
                    self.links.remove(&link);
                    self.events.push_back(Event::Detached(link));
                }
                Ok(())
            }
            Performative::Open(_) | Performative::Begin(_) | Performative::Close(_) => {
                Err(Error::new("amqp:not-allowed", "this is not the time for it"))
            }
        }
    }

    fn begin(&mut self, channel: u16, begin: &Begin) -> Result<(), Violation> {
        if channel > self.config.channel_max || begin.remote_channel.is_some() {
            return Err(Error::new("amqp:not-allowed", "a session on a channel that it cannot have"));
        }
        if self.sessions.contains_key(&channel) {
            return Err(Error::new("amqp:not-allowed", format!("a session is on channel {channel} already")));
        }
        let session = Session::new(begin);
        self.put(channel, &session.answer(channel));
        self.sessions.insert(channel, session);
        Ok(())
    }

    fn attach(&mut self, channel: u16, attach: Box<Attach>) -> Result<(), Violation> {
        let handle = attach.handle;
        let Some(session) = self.sessions.get_mut(&channel) else { return Ok(()) };
        if handle > HANDLE_MAX {
            return Err(Error::new("amqp:connection:framing-error", "a handle above handle-max"));
        }
        if session.handles.contains_key(&handle) {
            return Err(Error::new("amqp:session:handle-in-use", format!("handle {handle} is in use")));
        }
        let id = LinkId(self.next_link);
        self.next_link = self.next_link.wrapping_add(1);
        session.handles.insert(handle, id);
        let flow = if attach.role {
            let settled = attach.snd_settle_mode == Some(1);
            Direction::Out { delivery_count: 0, credit: 0, drain: false, settled }
        } else {
            let delivery_count = attach.initial_delivery_count.unwrap_or(0);
            Direction::In { delivery_count, credit: 0, open: 0, window: 0, partial: None }
        };
        self.links.insert(id, Link { channel, handle, state: State::Asked, flow });
        self.events.push_back(Event::Attach(id, attach));
        Ok(())
    }

    /// Answers [`Event::Attach`]: the link is there.
    pub(crate) fn accept(&mut self, id: LinkId, attach: &Attach, accept: Accept) {
        let max_message = self.config.max_message as u64;
        let Some(link) = self.links.get_mut(&id).filter(|link| link.state == State::Asked) else { return };
        link.state = State::Attached;
        let mut source = attach.source.clone().unwrap_or_default();
        source.filter = accept.filter;
        let answer = Attach {
            name: attach.name.clone(),
            handle: attach.handle,
            role: !attach.role,
            snd_settle_mode: attach.snd_settle_mode,
            rcv_settle_mode: attach.rcv_settle_mode,
            source: Some(source),
            target: Target::from_value(attach.target.clone()).unwrap_or_default().to_value(),
            initial_delivery_count: attach.role.then_some(0),
            max_message_size: Value::Ulong(max_message),
            offered_capabilities: accept.capabilities,
            ..Attach::default()
        };
        let channel = link.channel;
        if let Direction::In { window, .. } = &mut link.flow {
            *window = accept.window;
        }
        self.put(channel, &answer);
        self.replenish(id);
    }

    /// Answers [`Event::Attach`]: there will be no link, and why. The terminus that there is not stays null.
    pub(crate) fn refuse(&mut self, id: LinkId, attach: &Attach, error: Error) {
        let Some(link) = self.links.get_mut(&id).filter(|link| link.state == State::Asked) else { return };
        let channel = link.channel;
        link.state = State::Attached;
        let answer = Attach {
            name: attach.name.clone(),
            handle: attach.handle,
            role: !attach.role,
            source: attach.source.clone().filter(|_| !attach.role),
            target: if attach.role { attach.target.clone() } else { Value::Null },
            initial_delivery_count: attach.role.then_some(0),
            ..Attach::default()
        };
        self.put(channel, &answer);
        self.detach(id, Some(error));
    }

    /// Ends a link from this side.
    pub(crate) fn detach(&mut self, id: LinkId, error: Option<Error>) {
        let Some(link) = self.links.get_mut(&id).filter(|link| link.state == State::Attached) else { return };
        link.state = State::Detaching;
        let (channel, handle) = (link.channel, link.handle);
        self.put(channel, &Detach { handle, closed: true, error });
        self.events.push_back(Event::Detached(id));
    }

    fn detached(&mut self, channel: u16, detach: &Detach) -> Result<(), Violation> {
        let id = self.link_of(channel, detach.handle)?;
        let state = self.links.remove(&id).map(|link| link.state);
        if let Some(session) = self.sessions.get_mut(&channel) {
            session.forget(detach.handle, id);
        }
        if state != Some(State::Detaching) {
            self.put(channel, &Detach { handle: detach.handle, closed: detach.closed, error: None });
            self.events.push_back(Event::Detached(id));
        }
        Ok(())
    }

    fn link_of(&self, channel: u16, handle: u32) -> Result<LinkId, Violation> {
        let session = self.sessions.get(&channel);
        session.and_then(|session| session.handles.get(&handle)).copied().ok_or_else(|| {
            Error::new("amqp:session:unattached-handle", format!("no link is attached at handle {handle}"))
        })
    }

    fn flow(&mut self, channel: u16, flow: &Flow) -> Result<(), Violation> {
        if let Some(session) = self.sessions.get_mut(&channel) {
            session.flow_came(flow);
            session.pump(channel, self.remote_frame, &mut self.output);
        }
        let Some(handle) = flow.handle else {
            if flow.echo {
                self.tell(channel, None);
            }
            return Ok(());
        };
        let id = self.link_of(channel, handle)?;
        if let Some(Link { flow: Direction::Out { delivery_count, credit, drain, .. }, .. }) =
            self.links.get_mut(&id)
        {
            let theirs = flow.delivery_count.unwrap_or(0);
            let ahead = delivery_count.wrapping_sub(theirs);
            *credit = flow.link_credit.unwrap_or(0).saturating_sub(ahead);
            *drain = flow.drain;
        }
        if flow.echo {
            self.tell(channel, Some(id));
        }
        Ok(())
    }

    /// Sends a flow: of the session, and of a link, if one is given.
    fn tell(&mut self, channel: u16, id: Option<LinkId>) {
        let Some(session) = self.sessions.get_mut(&channel) else { return };
        let mut flow = session.flow();
        if let Some(link) = id.and_then(|id| self.links.get(&id)) {
            flow.handle = Some(link.handle);
            match link.flow {
                Direction::Out { delivery_count, credit, drain, .. } => {
                    (flow.delivery_count, flow.link_credit) = (Some(delivery_count), Some(credit));
                    flow.drain = drain;
                }
                Direction::In { delivery_count, credit, .. } => {
                    (flow.delivery_count, flow.link_credit) = (Some(delivery_count), Some(credit));
                }
            }
        }
        self.put(channel, &flow);
    }

    /// Gives the peer new credit when half of it is used up.
    fn replenish(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id).filter(|link| link.state == State::Attached) else { return };
        let channel = link.channel;
        if let Direction::In { credit, open, window, .. } = &mut link.flow
            && *credit + *open <= *window / 2
        {
            *credit = *window - *open;
            self.tell(channel, Some(id));
        }
    }

    fn transfer(&mut self, channel: u16, transfer: &Transfer, payload: Bytes) -> Result<(), Violation> {
        let id = self.link_of(channel, transfer.handle)?;
        if self.sessions.get_mut(&channel).is_some_and(Session::transfer_came) {
            self.tell(channel, None);
        }
        let limit = self.config.max_message;
        let Some(link) = self.links.get_mut(&id).filter(|link| link.state != State::Detaching) else {
            return Ok(());
        };
        let Direction::In { delivery_count, credit, open, partial, .. } = &mut link.flow else {
            return Err(Error::new("amqp:not-allowed", "a transfer on a link on which the peer receives"));
        };
        let mut current = match partial.take() {
            Some(partial) => partial,
            None if *credit == 0 => {
                let error = Error::new("amqp:link:transfer-limit-exceeded", "a transfer without credit");
                self.detach(id, Some(error));
                return Ok(());
            }
            None => {
                let delivery = transfer
                    .delivery_id
                    .ok_or_else(|| Error::new("amqp:invalid-field", "a delivery without an id"))?;
                *credit -= 1;
                *delivery_count = delivery_count.wrapping_add(1);
                *open += 1;
                Partial { delivery, settled: false, payload: bytes::BytesMut::new(), oversized: false }
            }
        };
        current.settled |= transfer.settled == Some(true);
        let delivery = Delivery { id: current.delivery, settled: current.settled };
        if transfer.aborted {
            self.done(id);
        } else if transfer.more {
            current.add(&payload, limit);
            *partial = Some(current);
        } else {
            // What is whole in one frame is not copied.
            let whole = current.payload.is_empty() && !current.oversized && payload.len() <= limit;
            if !whole {
                current.add(&payload, limit);
            }
            if current.oversized {
                let text = format!("a message may have {limit} bytes");
                let error = Error::new("amqp:link:message-size-exceeded", text);
                self.settle(id, delivery, &Outcome::Rejected(Some(error)));
            } else {
                let payload = if whole { payload } else { current.payload.freeze() };
                self.events.push_back(Event::Message { link: id, delivery, payload });
            }
        }
        Ok(())
    }

    /// Answers [`Event::Message`]: the delivery's outcome.
    pub(crate) fn settle(&mut self, id: LinkId, delivery: Delivery, outcome: &Outcome) {
        let Some(link) = self.links.get(&id).filter(|link| link.state == State::Attached) else { return };
        if !delivery.settled {
            let disposition = Disposition {
                role: true,
                first: delivery.id,
                last: Some(delivery.id),
                settled: true,
                state: outcome.to_value(),
                batchable: false,
            };
            self.put(link.channel, &disposition);
        }
        self.done(id);
    }

    fn done(&mut self, id: LinkId) {
        if let Some(Link { flow: Direction::In { open, .. }, .. }) = self.links.get_mut(&id) {
            *open = open.saturating_sub(1);
        }
        self.replenish(id);
    }

    /// Whether a message can be sent on a link now: there is credit, and nothing waits before it.
    pub(crate) fn can_send(&self, id: LinkId) -> bool {
        let Some(link) = self.links.get(&id).filter(|link| link.state == State::Attached) else {
            return false;
        };
        matches!(link.flow, Direction::Out { credit: 1.., .. })
            && self.sessions.get(&link.channel).is_some_and(Session::is_clear)
    }

    /// Sends a message. With a `tag`, its outcome comes as [`Event::Settled`] if the link is not one of settled
    /// deliveries; false if nothing will come.
    pub(crate) fn send(&mut self, id: LinkId, payload: Bytes, tag: Option<u64>) -> bool {
        let Some(link) = self.links.get_mut(&id) else { return false };
        let Direction::Out { delivery_count, credit, settled, .. } = &mut link.flow else { return false };
        let settled = *settled;
        *credit = credit.saturating_sub(1);
        *delivery_count = delivery_count.wrapping_add(1);
        let Some(session) = self.sessions.get_mut(&link.channel) else { return false };
        let delivery = session.begin_delivery(id, link.handle, settled, payload);
        let tracked = tag.filter(|_| !settled);
        if let Some(tag) = tracked {
            session.unsettled.insert(delivery, (id, tag));
        }
        session.pump(link.channel, self.remote_frame, &mut self.output);
        tracked.is_some()
    }

    /// Nothing is left to be sent on a link: a peer that wants its credit back gets it.
    pub(crate) fn drained(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id).filter(|link| link.state == State::Attached) else { return };
        let channel = link.channel;
        if let Direction::Out { delivery_count, credit, drain: true, .. } = &mut link.flow
            && *credit > 0
        {
            *delivery_count = delivery_count.wrapping_add(*credit);
            *credit = 0;
            self.tell(channel, Some(id));
        }
    }

    fn disposition(&mut self, channel: u16, disposition: &Disposition) {
        // Of its own deliveries, a peer has nothing to say that matters here.
        if !disposition.role {
            return;
        }
        let (first, last) = (disposition.first, disposition.last.unwrap_or(disposition.first));
        let Some(session) = self.sessions.get_mut(&channel).filter(|_| first <= last) else { return };
        let outcome = Outcome::of(&disposition.state);
        if outcome.is_some() || disposition.settled {
            let known: Vec<u32> = session.unsettled.range(first..=last).map(|(id, _)| *id).collect();
            for delivery in known {
                if let Some((link, tag)) = session.unsettled.remove(&delivery) {
                    let outcome = outcome.clone();
                    self.events.push_back(Event::Settled { link, tag, outcome });
                }
            }
        }
        if !disposition.settled && outcome.is_some() {
            let answer = Disposition { role: false, settled: true, ..disposition.clone() };
            self.put(channel, &answer);
        }
    }
}

/// The address of a link's node, from the terminus on this side.
pub(crate) fn address(attach: &Attach) -> Option<String> {
    let value = if attach.role {
        attach.source.as_ref().map(|source: &Source| source.address.clone())
    } else {
        Target::from_value(attach.target.clone()).ok().map(|target| target.address)
    };
    value.as_ref().and_then(Value::text).map(str::to_owned)
}

/// The address of the client's own end of a link on which it receives.
pub(crate) fn target_address(attach: &Attach) -> Option<String> {
    let target = Target::from_value(attach.target.clone()).ok()?;
    target.address.text().map(str::to_owned)
}
