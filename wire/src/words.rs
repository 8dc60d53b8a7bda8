//! The words by which enumerations go in JSON, in stores and in filters; the same as their serde names.

use crate::model::{Application, HalfState, NameSource, Protocol, Role};
use crate::query::{Confidence, ConnectionState, PathClass, Report, Unmatched};

/// Gives an enumeration its words: `ALL`, `as_str`, `named`.
macro_rules! words {
    ($type:ty { $($variant:ident = $word:literal),+ $(,)? }) => {
        impl $type {
            /// Every one of them, in order.
            pub const ALL: &[Self] = &[$(Self::$variant),+];
            /// The words of [`Self::ALL`].
            pub const WORDS: &[&str] = &[$($word),+];

            /// Its word.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }

            /// The one that goes by a word.
            pub fn named(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

words!(Protocol { Tcp = "tcp", Udp = "udp" });
words!(Role { Client = "client", Server = "server" });
words!(Application {
    Unknown = "unknown",
    Tls = "tls",
    Http1 = "http1",
    Http2 = "http2",
    Postgres = "postgres",
    Mysql = "mysql",
    Redis = "redis",
    Kafka = "kafka",
    Mongodb = "mongodb",
    Amqp = "amqp",
    Dns = "dns",
    Quic = "quic",
});
words!(NameSource {
    DnsProcess = "dns-process",
    DnsPod = "dns-pod",
    DnsNode = "dns-node",
    Sni = "sni",
    HttpHost = "http-host",
});
words!(HalfState {
    Open = "open",
    Closed = "closed",
    Refused = "refused",
    TimedOut = "timed-out",
    Aborted = "aborted",
    HostRestarted = "host-restarted",
    AgentGone = "agent-gone",
});
words!(ConnectionState { Open = "open", Closed = "closed", Failed = "failed" });
words!(Confidence { Low = "low", Medium = "medium", High = "high", Exact = "exact" });
words!(PathClass {
    SameNode = "same-node",
    SameCluster = "same-cluster",
    SameZone = "same-zone",
    CrossZone = "cross-zone",
    CrossRegion = "cross-region",
    CrossCluster = "cross-cluster",
    CrossCloud = "cross-cloud",
    NorthSouth = "north-south",
    Hairpin = "hairpin",
    Unknown = "unknown",
});
words!(Unmatched {
    Pending = "pending",
    NoPartner = "no-partner",
    Ambiguous = "ambiguous",
    NoFingerprint = "no-fingerprint",
    NotEstablished = "not-established",
});
words!(Report {
    CrossCluster = "cross-cluster",
    CrossCloud = "cross-cloud",
    CrossRegion = "cross-region",
    CrossNamespace = "cross-namespace",
    NorthSouth = "north-south",
    Hairpins = "hairpins",
    Dependencies = "dependencies",
});

#[cfg(test)]
mod tests {
    use super::*;

    /// serde's names are what answers carry; these must not drift from them.
    #[test]
    fn words_are_the_serde_names() {
        fn check<T: Copy + serde::Serialize + PartialEq + std::fmt::Debug>(
            all: &[T],
            word: fn(T) -> &'static str,
            named: fn(&str) -> Option<T>,
        ) {
            for value in all {
                let json = serde_json::to_string(value).unwrap();
                assert_eq!(json, format!("\"{}\"", word(*value)));
                assert_eq!(named(word(*value)), Some(*value));
            }
        }
        check(Protocol::ALL, Protocol::as_str, Protocol::named);
        check(Role::ALL, Role::as_str, Role::named);
        check(Application::ALL, Application::as_str, Application::named);
        check(NameSource::ALL, NameSource::as_str, NameSource::named);
        check(HalfState::ALL, HalfState::as_str, HalfState::named);
        check(
            ConnectionState::ALL,
            ConnectionState::as_str,
            ConnectionState::named,
        );
        check(Confidence::ALL, Confidence::as_str, Confidence::named);
        check(PathClass::ALL, PathClass::as_str, PathClass::named);
        check(Unmatched::ALL, Unmatched::as_str, Unmatched::named);
        check(Report::ALL, Report::as_str, Report::named);
    }
}
