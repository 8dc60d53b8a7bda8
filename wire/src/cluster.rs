//! What there is in a Kubernetes cluster, as the one agent that watches it tells its federator.
//!
//! [`ClusterBatch`]es follow one another in one session, numbered from 1 (frame kind `ClusterObjects`: the number as `u64`,
//! little-endian, then the batch). Each kind of object begins with a snapshot: [`ClusterEvent::Begin`], its objects,
//! [`ClusterEvent::End`]; then come changes. What a complete snapshot does not name is gone. Nothing is acknowledged: with
//! the session everything begins anew, so what was lost is told again.

use serde::{Deserialize, Serialize};

/// Most events of a batch.
pub const MAX_CLUSTER_EVENTS: usize = 1_024;
/// Most entries of each list of an object; of more, the first are told.
pub const MAX_OBJECT_LIST: usize = 1_024;
/// Longest text of an object; what is longer is cut.
pub const MAX_OBJECT_TEXT: usize = 512;

/// Kind of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum ObjectKind {
    /// `v1`.
    Service = 0,
    /// `discovery.k8s.io/v1`.
    EndpointSlice = 1,
    /// `v1`.
    Node = 2,
    /// `v1`.
    Namespace = 3,
    /// `networking.k8s.io/v1`.
    Ingress = 4,
    /// `gateway.networking.k8s.io/v1`.
    Gateway = 5,
    /// `networking.k8s.io/v1`.
    NetworkPolicy = 6,
}

impl ObjectKind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::Namespace,
        Self::Ingress,
        Self::Gateway,
        Self::NetworkPolicy,
    ];

    /// Its name as Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::Namespace => "Namespace",
            Self::Ingress => "Ingress",
            Self::Gateway => "Gateway",
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }
}

/// An object, with what matters of it here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterObject {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its namespace; empty for what is in none.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// What it belongs to, if anything: of an EndpointSlice its Service, of an Ingress or a Gateway its class.
    pub of: String,
    /// Its type or state, if it has one: of a Service `ClusterIP`, `LoadBalancer` …; of a Node its zone.
    pub sort: String,
    /// Addresses under which it is reached or that it stands for: cluster, external and load balancer's addresses of a
    /// Service, endpoints, a Node's addresses and pod ranges, an Ingress's or Gateway's addresses, ranges of a policy.
    pub addresses: Vec<String>,
    /// Ports: `name:port/protocol`, of a Service `>target` and `@node-port` where they differ.
    pub ports: Vec<String>,
    /// Names of hosts of an Ingress or a Gateway, and an external name.
    pub hosts: Vec<String>,
    /// Objects that it refers to: pods behind endpoints, backends, `key=value` of what it selects.
    pub refers_to: Vec<String>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterEvent {
    /// A snapshot of a kind begins, or begins again.
    Begin(ObjectKind),
    /// An object of a snapshot, or one that is new or changed.
    Put(ClusterObject),
    /// An object is gone: its uid.
    Gone(ObjectKind, String),
    /// The snapshot is complete.
    End(ObjectKind),
}

/// Events in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterBatch {
    /// The cluster, as the agent's site calls it.
    pub cluster: String,
    /// What happened, at most [`MAX_CLUSTER_EVENTS`].
    pub events: Vec<ClusterEvent>,
}

impl ClusterObject {
    /// Brings every list and text within its limit.
    pub fn limit(&mut self) {
        let Self {
            kind: _,
            namespace,
            name,
            uid,
            of,
            sort,
            addresses,
            ports,
            hosts,
            refers_to,
        } = self;
        for text in [namespace, name, uid, of, sort] {
            cut(text);
        }
        for list in [addresses, ports, hosts, refers_to] {
            list.truncate(MAX_OBJECT_LIST);
            list.iter_mut().for_each(cut);
        }
    }
}

fn cut(text: &mut String) {
    if text.len() > MAX_OBJECT_TEXT {
        let end = (0..=MAX_OBJECT_TEXT)
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or_default();
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_cut() {
        let mut object = ClusterObject {
            kind: ObjectKind::Service,
            namespace: "ü".repeat(MAX_OBJECT_TEXT),
            name: "a".repeat(MAX_OBJECT_TEXT),
            uid: String::new(),
            of: format!("a{}", "ü".repeat(MAX_OBJECT_TEXT)),
            sort: String::new(),
            addresses: vec![String::new(); MAX_OBJECT_LIST + 1],
            ports: vec!["x".repeat(MAX_OBJECT_TEXT + 1)],
            hosts: Vec::new(),
            refers_to: Vec::new(),
        };
        object.limit();
        assert_eq!(
            (object.namespace.len(), object.name.len(), object.of.len()),
            (512, 512, 511)
        );
        assert_eq!(
            (object.addresses.len(), object.ports[0].len()),
            (MAX_OBJECT_LIST, 512)
        );
    }
}
