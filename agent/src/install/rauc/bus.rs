//! RAUC's interface on the bus: `de.pengutronix.rauc.Installer`. A connection lives for one step.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use zbus::export::futures_core::Stream;
use zbus::{OwnedVariant, Variant};

use super::Slots;
use crate::install::InstallError;

/// How long RAUC may take to answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How often is asked whether it still installs.
const LOOK: Duration = Duration::from_secs(5);
/// How long the bus may take with a signal that was sent before an answer.
const SIGNAL: Duration = Duration::from_secs(1);

#[zbus::proxy(
    interface = "de.pengutronix.rauc.Installer",
    default_service = "de.pengutronix.rauc",
    default_path = "/"
)]
trait Installer {
    fn install_bundle(&self, source: &str, args: HashMap<&str, Variant<'_>>) -> zbus::Result<()>;
    fn mark(&self, state: &str, slot: &str) -> zbus::Result<(String, String)>;
    fn get_slot_status(&self) -> zbus::Result<Vec<(String, HashMap<String, OwnedVariant>)>>;
    fn get_primary(&self) -> zbus::Result<String>;

    #[zbus(property(emits_changed_signal = "false"))]
    fn operation(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn last_error(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn boot_slot(&self) -> zbus::Result<String>;

    #[zbus(signal)]
    fn completed(&self, result: i32) -> zbus::Result<()>;
}

/// A slot's name for the boot loader: `A`, `system0`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct SlotName(String);

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A bootable slot.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    /// RAUC's name for it: `rootfs.0`.
    pub(super) name: String,
    pub(super) boot_name: SlotName,
    /// When RAUC wrote it last.
    pub(super) written: Option<String>,
    /// Slots of the same class take each other's place: a rescue system is of another one.
    class: String,
    booted: bool,
}

impl Slot {
    /// `None` for a slot that is no system of its own.
    fn read(name: String, status: &HashMap<String, OwnedVariant>) -> Option<Self> {
        let text = |key: &str| match &**status.get(key)? {
            Variant::Str(text) => Some(text.as_str().to_owned()),
            _ => None,
        };
        let boot_name = SlotName(text("bootname")?);
        let written = text("installed.timestamp");
        let booted = text("state").as_deref() == Some("booted");
        Some(Self { name, boot_name, written, class: text("class")?, booted })
    }
}

/// A connection to RAUC.
pub(super) struct Bus {
    rauc: InstallerProxy<'static>,
}

fn refused(what: &str, error: &zbus::Error) -> InstallError {
    let hint = match error {
        zbus::Error::FDO(fdo) if matches!(**fdo, zbus::fdo::Error::ServiceUnknown(_)) => {
            " (is RAUC installed, with its D-Bus service?)"
        }
        _ => "",
    };
    InstallError::Refused(format!("RAUC, {what}: {error}{hint}"))
}

impl Bus {
    pub(super) async fn connect(address: Option<&str>) -> Result<Self, InstallError> {
        let builder = match address {
            Some(address) => zbus::connection::Builder::address(address),
            None => zbus::connection::Builder::system(),
        };
        let connecting = async {
            let connection = builder.method_timeout(ANSWER).build().await?;
            InstallerProxy::builder(&connection)
                .cache_properties(zbus::proxy::CacheProperties::No)
                .build()
                .await
        };
        let rauc = timeout(ANSWER, connecting)
            .await
            .map_err(|_| InstallError::Refused(format!("the system's bus did not answer within {ANSWER:?}")))?
            .map_err(|error| refused("connecting by D-Bus", &error))?;
        Ok(Self { rauc })
    }

    /// The slot that runs, and the one that updates go into.
    pub(super) async fn slots(&self) -> Result<Slots, InstallError> {
        let status = self.rauc.get_slot_status().await.map_err(|error| refused("its slots", &error))?;
        let slots = status.into_iter().filter_map(|(name, status)| Slot::read(name, &status));
        let (booted, mut others): (Vec<Slot>, Vec<Slot>) = slots.partition(|slot| slot.booted);
        let Ok([booted]) = <[Slot; 1]>::try_from(booted) else {
            return Err(InstallError::Refused(
                "RAUC does not say which slot runs: does the kernel's command line have rauc.slot=?".into(),
            ));
        };
        others.retain(|slot| slot.class == booted.class);
        let count = others.len();
        match <[Slot; 1]>::try_from(others) {
            Ok([other]) => Ok(Slots { booted, other }),
            Err(_) => Err(InstallError::Refused(format!(
                "RAUC has {count} other slots of class {:?} with a bootname: it must be one",
                booted.class
            ))),
        }
    }

    /// Whether this slot boots next, as far as RAUC can tell.
    pub(super) async fn boots(&self, slot: &Slot) -> Result<bool, InstallError> {
        match self.rauc.get_primary().await {
            Ok(name) => Ok(name == slot.name),
            // So it answers if the tries of all slots are used up.
            Err(error @ zbus::Error::MethodError(..)) => {
                tracing::warn!(%error, "RAUC cannot tell which slot boots next");
                Ok(false)
            }
            Err(error) => Err(refused("which slot boots next", &error)),
        }
    }

    pub(super) async fn mark(&self, state: &str, slot: &str) -> Result<(), InstallError> {
        let marked = self.rauc.mark(state, slot).await;
        let (_, message) = marked.map_err(|error| refused(&format!("mark-{state} {slot}"), &error))?;
        tracing::info!(message, "RAUC");
        Ok(())
    }

    /// Has RAUC install a bundle, and waits for the end of that.
    pub(super) async fn install(&self, bundle: &Path, limit: Duration) -> Result<(), InstallError> {
        let Some(source) = bundle.to_str() else {
            return Err(InstallError::Refused(format!("D-Bus cannot carry the name {}", bundle.display())));
        };
        let what = "installing a bundle";
        let completed = self.rauc.receive_completed().await.map_err(|error| refused(what, &error))?;
        let mut completed = pin!(completed);
        self.rauc.install_bundle(source, HashMap::new()).await.map_err(|error| refused(what, &error))?;
        let signal = async {
            let signal = poll_fn(|cx| completed.as_mut().poll_next(cx)).await;
            signal.and_then(|signal| signal.args().ok().map(|args| *args.result()))
        };
        let waiting = ended(signal, LOOK, async || {
            let operation = self.rauc.operation().await.map_err(|error| refused(what, &error))?;
            Ok(operation == "idle")
        });
        let result = timeout(limit, waiting).await;
        let result = result.map_err(|_| {
            InstallError::Refused(format!("RAUC did not install the bundle within {limit:?}"))
        })??;
        if result == 0 {
            return Ok(());
        }
        let error = self.rauc.last_error().await.unwrap_or_default();
        let why = if error.is_empty() { "it did not say why" } else { &error };
        Err(InstallError::Payload(format!("RAUC did not install it: {why}")))
    }
}

/// How an installation has ended that `signal` tells the end of, with `None` if the connection is lost.
async fn ended(
    signal: impl Future<Output = Option<i32>>,
    look: Duration,
    mut is_idle: impl AsyncFnMut() -> Result<bool, InstallError>,
) -> Result<i32, InstallError> {
    let mut signal = pin!(signal);
    let told = |result: Option<i32>| {
        result.ok_or_else(|| InstallError::Refused("the connection to RAUC was lost".into()))
    };
    loop {
        if let Ok(result) = timeout(look, signal.as_mut()).await {
            return told(result);
        }
        // A service that died and was started anew sends no signal about what it does not know of. One that has just
        // done its work has sent it before it was idle.
        if is_idle().await? {
            return timeout(SIGNAL, signal).await.map_or(Ok(1), told);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, ready};
    use std::task::Poll;

    use super::*;

    #[tokio::test]
    async fn an_installation_that_ends_while_it_is_looked_after_has_not_failed() {
        let done = Cell::new(false);
        let signal = poll_fn(|_| if done.get() { Poll::Ready(Some(0)) } else { Poll::Pending });
        let ended = ended(signal, Duration::ZERO, async || {
            done.set(true);
            Ok(true)
        });
        assert_eq!(ended.await.expect("it ended"), 0);
    }

    #[tokio::test]
    async fn a_service_that_was_started_anew_has_not_installed_it() {
        let looks = Cell::new(0);
        let ended = ended(pending(), Duration::ZERO, async || {
            looks.set(looks.get() + 1);
            Ok(looks.get() == 3)
        });
        assert_eq!((ended.await.expect("it ended"), looks.get()), (1, 3));
    }

    #[tokio::test]
    async fn a_connection_that_is_lost_is_no_end() {
        let error = ended(ready(None), LOOK, async || Ok(false)).await.expect_err("lost");
        assert!(error.to_string().contains("was lost"), "{error}");
    }
}
