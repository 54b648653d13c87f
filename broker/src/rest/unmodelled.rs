//! What IoT Hub has or once had, and this hub does not: refused by name.

use super::Operation;
use super::router::{Handler, Verb};
use crate::policy::Rights;

const INTERFACES: Handler =
    Handler::NotModelled("digital twin interfaces of the preview: use /digitaltwins/{id} and its components");
const MODELS: Handler = Handler::NotModelled("a model repository: models are the client's to resolve");

pub(super) const OPERATIONS: &[Operation] = &[
    Operation::new(
        "Read a digital twin's interfaces",
        Verb::Get,
        "/digitalTwins/{id}/interfaces",
        Rights::SERVICE_CONNECT,
        INTERFACES,
    ),
    Operation::new(
        "Change a digital twin's interfaces",
        Verb::Patch,
        "/digitalTwins/{id}/interfaces",
        Rights::SERVICE_CONNECT,
        INTERFACES,
    ),
    Operation::new(
        "Read a digital twin's interface",
        Verb::Get,
        "/digitalTwins/{id}/interfaces/{interface}",
        Rights::SERVICE_CONNECT,
        INTERFACES,
    ),
    Operation::new(
        "Call an interface's command",
        Verb::Post,
        "/digitalTwins/{id}/interfaces/{interface}/commands/{command}",
        Rights::SERVICE_CONNECT,
        INTERFACES,
    ),
    Operation::new(
        "Read a model",
        Verb::Get,
        "/digitalTwins/models/{model}",
        Rights::SERVICE_CONNECT,
        MODELS,
    ),
];
