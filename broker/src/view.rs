//! What a job sees of the shard that it runs on.

use fleetwave_hub_core::{DeviceIx, DeviceSpec, Done, Hub, HubError, Input};
use fleetwave_protocol::{Instant, Now};

use crate::control::{MethodCall, MethodOutcome};
use crate::engine::{Engine, Outlet};

/// A shard of the hub, on its own thread, for as long as a job of [`HubControl`](crate::HubControl) runs.
pub struct ShardView<'a> {
    engine: &'a mut Engine,
    outlet: &'a mut dyn Outlet,
}

impl<'a> ShardView<'a> {
    pub(crate) fn new(engine: &'a mut Engine, outlet: &'a mut dyn Outlet) -> Self {
        Self { engine, outlet }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Now {
        self.engine.now()
    }

    /// The shard, to read.
    #[must_use]
    pub fn hub(&self) -> &Hub {
        self.engine.hub()
    }

    /// The device or module of an id.
    ///
    /// # Errors
    /// 404001 if there is no such device, 404010 if the device has no such module.
    pub fn find(&self, id: &str) -> Result<DeviceIx, Box<HubError>> {
        Ok(self.hub().locate(id)?)
    }

    /// Makes a device or a module.
    ///
    /// # Errors
    /// What [`Hub::create_device`] refuses.
    pub fn create(&mut self, id: &str, spec: DeviceSpec<'_>) -> Result<DeviceIx, Box<HubError>> {
        self.engine.create(id, spec)
    }

    /// Does what the back end asks for; devices hear what concerns them. For the inputs that
    /// [`Output::Service`](fleetwave_hub_core::Output::Service) answers.
    ///
    /// # Errors
    /// What the hub refuses.
    pub fn apply(&mut self, input: Input<'_>) -> Result<Done, Box<HubError>> {
        let (_, done): (Instant, _) = self.engine.apply(input, self.outlet);
        done
    }

    /// Takes a message of a device that need not be connected: whoever calls has checked who it is.
    ///
    /// # Errors
    /// 413001 if it is larger than a message may be.
    pub fn post(&mut self, device: DeviceIx, properties: &str, body: &[u8]) -> Result<(), Box<HubError>> {
        self.engine.post(device, properties, body, self.outlet).map(drop)
    }

    /// Calls a direct method; `outcome` is called once, on the shard's thread, at the latest after both timeouts.
    pub fn invoke(
        &mut self,
        device: DeviceIx,
        call: &MethodCall,
        outcome: impl FnOnce(MethodOutcome) + Send + 'static,
    ) {
        self.engine.invoke_for(device, call, Box::new(outcome), self.outlet);
    }
}
