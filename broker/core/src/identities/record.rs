//! What a store keeps of an identity.

use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::Key;

use super::Kept;
use crate::identity::{Authentication, Identity, Thumbprint};
use crate::record::{RecordError, Value, fields, put_bytes, put_number, put_text};

/// The fields of the record.
mod field {
    pub(super) const AUTHENTICATION: u64 = 1;
    pub(super) const PRIMARY: u64 = 2;
    pub(super) const SECONDARY: u64 = 3;
    pub(super) const GENERATION_ID: u64 = 4;
    pub(super) const STATUS_REASON: u64 = 5;
    pub(super) const EDGE: u64 = 6;
    pub(super) const DEVICE_SCOPE: u64 = 7;
    pub(super) const PARENT_SCOPE: u64 = 8;
    pub(super) const MANAGED_BY: u64 = 9;
    pub(super) const WRITES: u64 = 10;
    pub(super) const STATUS_UPDATED: u64 = 11;
    pub(super) const CONNECTION_UPDATED: u64 = 12;
}

impl Kept {
    pub(crate) fn write_record(&self, out: &mut Vec<u8>) {
        let Self { identity, writes, status_updated, connection_updated } = self;
        let (kind, primary, secondary) = match &identity.authentication {
            Authentication::Derived => (0, None, None),
            Authentication::Sas { primary, secondary } => {
                (1, Some(primary.to_base64()), Some(secondary.to_base64()))
            }
            Authentication::SelfSigned { primary, secondary } => {
                let text = |thumbprint: &Option<Thumbprint>| thumbprint.as_ref().map(ToString::to_string);
                (2, text(primary), text(secondary))
            }
            Authentication::CertificateAuthority => (3, None, None),
            Authentication::None => (4, None, None),
        };
        put_number(field::AUTHENTICATION, kind, out);
        put_text(field::PRIMARY, primary.as_deref(), out);
        put_text(field::SECONDARY, secondary.as_deref(), out);
        put_number(field::GENERATION_ID, identity.generation_id, out);
        put_text(field::STATUS_REASON, identity.status_reason.as_deref(), out);
        put_number(field::EDGE, u64::from(identity.edge), out);
        put_text(field::DEVICE_SCOPE, identity.device_scope.as_deref(), out);
        for scope in &identity.parent_scopes {
            put_bytes(field::PARENT_SCOPE, scope.as_bytes(), out);
        }
        put_text(field::MANAGED_BY, identity.managed_by.as_deref(), out);
        put_number(field::WRITES, u64::from(*writes), out);
        put_number(field::STATUS_UPDATED, status_updated.map_or(0, WallTime::as_unix_millis), out);
        put_number(field::CONNECTION_UPDATED, connection_updated.map_or(0, WallTime::as_unix_millis), out);
    }

    pub(crate) fn read_record(record: &[u8]) -> Result<Box<Self>, RecordError> {
        let mut kept = Self::new(Identity::default());
        let identity = &mut kept.identity;
        let (mut kind, mut primary, mut secondary) = (0, None, None);
        for field in fields(record) {
            let (field, value) = field?;
            let text = |value: Value<'_>| value.text().map(str::to_owned);
            match field {
                field::AUTHENTICATION => kind = value.number()?,
                field::PRIMARY => primary = Some(value.text()?),
                field::SECONDARY => secondary = Some(value.text()?),
                field::GENERATION_ID => identity.generation_id = value.number()?,
                field::STATUS_REASON => identity.status_reason = Some(text(value)?),
                field::EDGE => identity.edge = value.number()? != 0,
                field::DEVICE_SCOPE => identity.device_scope = Some(text(value)?),
                field::PARENT_SCOPE => identity.parent_scopes.push(text(value)?),
                field::MANAGED_BY => identity.managed_by = Some(text(value)?),
                field::WRITES => kept.writes = value.small()?,
                field::STATUS_UPDATED => kept.status_updated = Some(value.time()?),
                field::CONNECTION_UPDATED => kept.connection_updated = Some(value.time()?),
                _ => {}
            }
        }
        let key = |text: Option<&str>| {
            text.and_then(Key::from_base64).ok_or(RecordError::Damaged("a key is missing or not base64"))
        };
        let thumbprint = |text: Option<&str>| text.map(Thumbprint::parse).transpose();
        identity.authentication = match kind {
            0 => Authentication::Derived,
            1 => Authentication::Sas { primary: key(primary)?, secondary: key(secondary)? },
            2 => Authentication::SelfSigned {
                primary: thumbprint(primary)?,
                secondary: thumbprint(secondary)?,
            },
            3 => Authentication::CertificateAuthority,
            4 => Authentication::None,
            _ => return Err(RecordError::Damaged("an identity authenticates in an unknown way")),
        };
        Ok(kept)
    }
}
