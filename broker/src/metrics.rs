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
    /// Connections that are open now.
    connections,
    /// Connections that were accepted.
    accepted,
    /// Connections that were refused.
    refused,
    /// Connections that were closed because of what they sent.
    faulty,
    /// Connections that were closed because nothing came in time, or their token ended.
    expired,
    /// Connections that were closed because they read too slowly.
    slow,
    /// Connections that another one of the same device replaced.
    taken_over,
    /// Packets from devices.
    packets_in,
    /// Bytes from devices.
    bytes_in,
    /// Packets to devices.
    packets_out,
    /// Bytes to devices.
    bytes_out,
    /// Operations that waited for the hub's limits.
    delayed,
    /// Operations that were refused because of the hub's limits.
    throttled,
    /// Bytes that sessions hold for partial packets and unsent answers.
    buffered,
}
