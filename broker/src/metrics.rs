//! What a hub counts.

macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// What a hub has done since it started.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct HubMetrics {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl HubMetrics {
            /// The sums of both.
            #[must_use]
            pub fn plus(self, other: Self) -> Self {
                Self { $($name: self.$name + other.$name,)+ }
            }
        }
    };
}

metrics! {
    /// Devices that exist.
    devices,
    /// Modules that exist.
    modules,
    /// Connections that are open now.
    connections,
    /// Connections that were accepted.
    accepted,
    /// Connections that were refused.
    refused,
    /// Of these: the client id is none.
    refused_client_id,
    /// Of these: the user name does not fit, or is missing.
    refused_user_name,
    /// Of these: the token or the certificate is no good.
    refused_credentials,
    /// Of these: there is no such device or module.
    refused_unknown,
    /// Of these: the device is disabled.
    refused_disabled,
    /// Of these: the hub's limit of new connections is used up.
    refused_throttled,
    /// Connections that were closed because of what they sent.
    faulty,
    /// Connections that were closed because nothing came in time, or their token ended.
    expired,
    /// Connections that were closed because they read too slowly.
    slow,
    /// Connections that another one of the same device replaced.
    taken_over,
    /// Connections that ended because the device was disabled or deleted.
    withdrawn,
    /// Packets from devices.
    packets_in,
    /// Bytes from devices.
    bytes_in,
    /// Packets to devices.
    packets_out,
    /// Bytes to devices.
    bytes_out,
    /// C2D messages that wait for their devices now.
    c2d_waiting,
    /// Operations that waited for the hub's limits.
    delayed,
    /// Operations that were refused because of the hub's limits.
    throttled,
    /// Device-to-cloud messages that were accepted.
    telemetry,
    /// Twins that devices have read.
    twin_reads,
    /// Reports that were accepted.
    reports,
    /// Reports that were refused.
    reports_refused,
    /// Twins that the back end has written.
    twin_writes,
    /// Changes of desired properties that were sent to a device.
    desired,
    /// Direct methods that were sent to a device.
    methods,
    /// Direct methods that a device has answered.
    methods_answered,
    /// Direct methods that ended without an answer.
    methods_failed,
    /// C2D messages that were sent to a device, repetitions included.
    c2d,
    /// Feedback about C2D messages.
    feedback,
    /// Operations that wait for the hub's limits now.
    waiting,
    /// Commands that wait for a shard now.
    inbox,
    /// Bytes that sessions hold for partial packets and unsent answers.
    buffered,
}
