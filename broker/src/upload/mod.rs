//! File upload: a device asks for a place in a blob container, writes to it on its own, and says how that ended.
//!
//! Source: the IoT Hub guide "Upload files with IoT Hub".

mod probe;
mod storage;

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use fleetwave_hub_core::{ErrorCode, HubError, Iso8601};
use fleetwave_protocol::{Instant, Now, WallTime};
use tokio_rustls::TlsConnector;
use uuid::Uuid;

pub(crate) use probe::Blob;
pub use storage::{StorageAccount, StorageError};

/// How many uploads a device may have under way.
const ACTIVE: usize = 10;
/// The longest name of a blob.
const NAME_SIZE: usize = 1024;
/// From how many devices with uploads on those are forgotten that are over.
const SWEEP: usize = 1024;

/// An upload that was granted.
#[derive(Clone, Debug)]
struct Upload {
    correlation: String,
    blob: String,
    until: Instant,
}

#[derive(Debug)]
struct Active {
    of_devices: HashMap<String, Vec<Upload>>,
    sweep_at: usize,
}

/// What a device is told of an upload that it may begin.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) correlation: String,
    pub(crate) blob: String,
    /// The query, without its question mark.
    pub(crate) signature: String,
}

/// The uploads of a hub's devices.
pub(crate) struct Uploads {
    account: StorageAccount,
    connector: Option<TlsConnector>,
    // Held for a few lines at a time.
    active: Mutex<Active>,
}

impl Uploads {
    pub(crate) fn new(account: StorageAccount) -> Self {
        let connector = probe::connector(&account);
        let active = Mutex::new(Active { of_devices: HashMap::new(), sweep_at: SWEEP });
        Self { account, connector, active }
    }

    pub(crate) fn account(&self) -> &StorageAccount {
        &self.account
    }

    /// Lets a device begin an upload to `{device}/{name}`.
    pub(crate) fn begin(&self, device: &str, name: &str, now: Now) -> Result<Grant, HubError> {
        let blob = format!("{device}/{name}");
        if name.is_empty() || blob.len() > NAME_SIZE || name.chars().any(char::is_control) {
            let message = format!("blobName: 1 to {NAME_SIZE} characters with the device's id were expected");
            return Err(HubError::new(ErrorCode::ArgumentInvalid, message));
        }
        let lifetime = self.account.upload_lifetime();
        let mut active = self.active.lock().expect("nothing panics under this lock");
        active.sweep(now.at, lifetime);
        let uploads = active.of_devices.entry(device.to_owned()).or_default();
        if uploads.iter().filter(|upload| upload.until > now.at).count() >= ACTIVE {
            return Err(HubError::new(
                ErrorCode::DeviceMaximumActiveFileUploadLimitExceeded,
                format!("{ACTIVE} uploads are under way: say how they ended, or wait until they expire"),
            ));
        }
        let end = now.wall.as_unix_millis().saturating_add(lifetime.as_millis() as u64);
        let until = WallTime::from_unix_millis(end);
        let text = format!("{}_{}_{name}_ver2.0", Iso8601(now.wall), Uuid::new_v4());
        let correlation = URL_SAFE.encode(text);
        uploads.push(Upload {
            correlation: correlation.clone(),
            blob: blob.clone(),
            until: now.at + lifetime,
        });
        let signature = self.account.signature(&blob, "rw", until);
        Ok(Grant { correlation, blob, signature })
    }

    /// Takes what a device says of an upload's end. The blob, if that was a good one.
    pub(crate) async fn end(
        &self,
        device: &str,
        correlation: &str,
        success: bool,
        now: Now,
    ) -> Result<Option<(String, Blob)>, HubError> {
        let upload = self.find(device, correlation, now.at)?;
        let mut found = None;
        if success {
            let soon = WallTime::from_unix_millis(now.wall.as_unix_millis() + 60_000);
            let signature = self.account.signature(&upload.blob, "r", soon);
            let looked = probe::look(&self.account, self.connector.as_ref(), &upload.blob, &signature).await;
            let blob = looked.map_err(|error| {
                HubError::new(ErrorCode::ServiceUnavailable, format!("the storage account: {error}"))
            })?;
            let Some(blob) = blob else {
                let container = self.account.container();
                return Err(HubError::new(
                    ErrorCode::InvalidFileUploadCompletionStatus,
                    format!("there is no blob {:?} in the container {container:?}", upload.blob),
                ));
            };
            found = Some((upload.blob, blob));
        }
        self.forget(device, correlation);
        Ok(found)
    }

    fn find(&self, device: &str, correlation: &str, now: Instant) -> Result<Upload, HubError> {
        let active = self.active.lock().expect("nothing panics under this lock");
        let uploads = active.of_devices.get(device).map_or(&[][..], Vec::as_slice);
        let upload = uploads.iter().find(|upload| upload.correlation == correlation).ok_or_else(|| {
            let message = "the device has no upload of this correlationId: it is over, or another device's";
            HubError::new(ErrorCode::InvalidFileUploadCorrelationId, message)
        })?;
        if upload.until <= now {
            let message = "the upload took too long: begin it again";
            return Err(HubError::new(ErrorCode::ExpiredFileUploadCorrelationId, message));
        }
        Ok(upload.clone())
    }

    fn forget(&self, device: &str, correlation: &str) {
        let mut active = self.active.lock().expect("nothing panics under this lock");
        if let Some(uploads) = active.of_devices.get_mut(device) {
            uploads.retain(|upload| upload.correlation != correlation);
            if uploads.is_empty() {
                active.of_devices.remove(device);
            }
        }
    }
}

impl Active {
    /// Forgets uploads that are long over; those that have just expired can be told from those that never were.
    fn sweep(&mut self, now: Instant, lifetime: Duration) {
        if self.of_devices.len() >= self.sweep_at {
            self.of_devices.retain(|_, uploads| {
                uploads.retain(|upload| upload.until + lifetime > now);
                !uploads.is_empty()
            });
            self.sweep_at = SWEEP.max(2 * self.of_devices.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now {
            at: Instant::from_micros(seconds * 1_000_000),
            wall: WallTime::from_unix_millis(1_700_000_000_000 + seconds * 1000),
        }
    }

    fn uploads() -> Uploads {
        Uploads::new(StorageAccount::parse("UseDevelopmentStorage=true", "files").unwrap())
    }

    fn end(uploads: &Uploads, device: &str, correlation: &str, now: Now) -> Result<(), ErrorCode> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let ended = runtime.block_on(uploads.end(device, correlation, false, now));
        ended.map(drop).map_err(|error| error.code)
    }

    #[test]
    fn a_device_has_at_most_ten_uploads_under_way() {
        let uploads = uploads();
        let granted: Vec<_> =
            (0..10).map(|n| uploads.begin("d", &format!("f{n}"), at(n)).unwrap().correlation).collect();
        let code = |now| uploads.begin("d", "more", now).map(|_| ()).map_err(|error| error.code);
        assert_eq!(code(at(20)), Err(ErrorCode::DeviceMaximumActiveFileUploadLimitExceeded));
        uploads.begin("e", "f", at(20)).unwrap();
        assert_eq!(end(&uploads, "d", &granted[3], at(21)), Ok(()));
        assert_eq!(code(at(22)), Ok(()));
        assert_eq!(code(at(23)), Err(ErrorCode::DeviceMaximumActiveFileUploadLimitExceeded));
        assert_eq!(code(at(3600)), Ok(()), "the first has expired");
    }

    #[test]
    fn an_upload_ends_once_in_time_and_by_its_own_device() {
        let uploads = uploads();
        let correlation = uploads.begin("d", "a/b c", at(0)).unwrap().correlation;
        assert_eq!(end(&uploads, "e", &correlation, at(1)), Err(ErrorCode::InvalidFileUploadCorrelationId));
        assert_eq!(
            end(&uploads, "d", &correlation, at(3600)),
            Err(ErrorCode::ExpiredFileUploadCorrelationId)
        );
        assert_eq!(end(&uploads, "d", &correlation, at(3599)), Ok(()));
        assert_eq!(
            end(&uploads, "d", &correlation, at(3599)),
            Err(ErrorCode::InvalidFileUploadCorrelationId)
        );
        for name in ["", "a\nb", &"x".repeat(1024)] {
            assert_eq!(uploads.begin("d", name, at(0)).unwrap_err().code, ErrorCode::ArgumentInvalid);
        }
    }
}
