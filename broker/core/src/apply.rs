//! Configuration content that is written into one device and its modules, once.
//!
//! This is how an edge device gets its deployment. Modules that the content names and an edge device does not have
//! are made, as IoT Hub does it: nobody can connect as one before it has keys.

use fleetwave_protocol::Now;
use serde_json::{Map, Value};

use crate::configuration::{Content, bad_content};
use crate::error::{ErrorCode, HubError};
use crate::hub::Hub;
use crate::identity::split;
use crate::io::{DeviceIx, Done, Output};
use crate::limits::{self, Section};
use crate::tree::Tree;

/// What is to be written: the desired properties of the device itself, and of modules by name.
struct Plan {
    own: Option<Tree>,
    modules: Vec<(String, Tree)>,
}

impl Hub {
    pub(crate) fn apply_content(&mut self, now: Now, ix: DeviceIx, content: &[u8], out: &mut Vec<Output>) {
        let plan = match self.plan_content(ix, content) {
            Ok(plan) => plan,
            Err(error) => return out.push(Output::Service(Err(Box::new(error)))),
        };
        out.push(Output::Service(Ok(Done::TwinWritten { hidden: false })));
        // Before anything is interned: making a module may sweep the tables.
        for (name, _) in &plan.modules {
            self.add_module(now, ix, name, None);
        }
        if let Some(tree) = plan.own {
            self.write_own(now, ix, tree, out);
        }
        for (name, tree) in plan.modules {
            if let Some(module) = self.module(ix, &name) {
                self.write_own(now, module, tree, out);
            }
        }
    }

    /// The module of a device.
    fn module(&self, device: DeviceIx, name: &str) -> Option<DeviceIx> {
        let is_named = |&ix: &DeviceIx| split(self.registry.id(ix)).1 == Some(name);
        self.modules_of(device).iter().copied().find(is_named)
    }

    /// Checks all of the content before any of it is done.
    fn plan_content(&self, ix: DeviceIx, content: &[u8]) -> Result<Plan, HubError> {
        let device = self.existing(ix)?;
        if device.module {
            return Err(limits::invalid("content is applied to a device; it names the modules"));
        }
        let mut members = object(
            "the content",
            serde_json::from_slice(content)
                .map_err(|error| HubError::new(ErrorCode::IotHubFormatError, format!("not JSON: {error}")))?,
        )?;
        let mut take = |name: &str| object(name, members.remove(name).unwrap_or(Value::Null));
        let (device_content, modules_content) = (take("deviceContent")?, take("modulesContent")?);
        if !take("moduleContent")?.is_empty() {
            return Err(bad_content("moduleContent is for configurations that target modules"));
        }
        // Tools leave a `$schema` there.
        if let Some(name) = members.keys().find(|name| !name.starts_with('$')) {
            return Err(bad_content(format!("{name:?} is neither deviceContent nor modulesContent")));
        }
        let own = match device_content.is_empty() {
            true => None,
            false => Some(self.laid_over(ix, device_content)?),
        };
        let mut modules = Vec::new();
        let mut missing = 0;
        for (name, content) in modules_content {
            let module = self.module(ix, &name);
            if module.is_none() {
                limits::check_id("module", &name)?;
                if !self.identity(ix).edge {
                    let message = format!("the device has no module {name:?}");
                    return Err(HubError::new(ErrorCode::ModuleNotFound, message));
                }
                missing += 1;
            }
            let tree = self.module_tree(module, object(&name, content)?)?;
            modules.push((name, tree));
        }
        if self.modules_of(ix).len() + missing > limits::MODULES {
            let message =
                format!("with {missing} more the device would have over {} modules", limits::MODULES);
            return Err(HubError::new(ErrorCode::TooManyModulesOnDevice, message));
        }
        Ok(Plan { own, modules })
    }

    /// The desired properties that a module is to have.
    fn module_tree(&self, module: Option<DeviceIx>, content: Map<String, Value>) -> Result<Tree, HubError> {
        let content = Content::of_any(content)?;
        fitting(match module {
            Some(ix) => content.lay_over(self.own_tree(ix)),
            None => content.lay_over(&Tree::empty()),
        })
    }

    fn laid_over(&self, ix: DeviceIx, content: Map<String, Value>) -> Result<Tree, HubError> {
        fitting(Content::of(content)?.lay_over(self.own_tree(ix)))
    }

    /// The desired properties that the back end itself wrote.
    fn own_tree(&self, ix: DeviceIx) -> &Tree {
        let layer = self.device(ix).expect("a device of this hub").layer;
        &self.store.doc(self.store.layer(layer).own).tree
    }

    /// Makes a document the back end's own desired properties of a device.
    fn write_own(&mut self, now: Now, ix: DeviceIx, tree: Tree, out: &mut Vec<Output>) {
        let Some(device) = self.device(ix) else { return };
        let before = device.twin_version;
        let targeted = self.store.layer(device.layer).targeted;
        let own = self.store.intern(tree);
        let layer = self.layer_for(ix, own, targeted);
        self.move_to(now, ix, layer, None, out);
        if let Some(device) = self.registry.get_mut(ix) {
            device.twin_version = before.saturating_add(1);
        }
    }
}

fn fitting(tree: Tree) -> Result<Tree, HubError> {
    Section::Desired.check_size(tree.size())?;
    Ok(tree)
}

/// An object; null is an empty one.
fn object(what: &str, value: Value) -> Result<Map<String, Value>, HubError> {
    match value {
        Value::Object(members) => Ok(members),
        Value::Null => Ok(Map::new()),
        _ => Err(bad_content(format!("{what} is not a JSON object"))),
    }
}
