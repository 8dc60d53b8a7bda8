//! How the bytes of a connection travelled, from what its two ends saw.
//!
//! # The class
//!
//! [`Path::crosses`] names every boundary between the two sites. The class is the one most telling word, by this
//! order, first that applies:
//!
//! 1. `hairpin` (below);
//! 2. `cross-cloud`, `cross-cluster`, `cross-region`, `cross-zone`: the farthest crossing, in the design's order;
//! 3. `same-node`, `same-cluster`, `same-zone`: where nothing of 2 is crossed, the closest thing shared;
//! 4. `unknown`.
//!
//! One cluster over two zones is therefore `cross-zone`: that is what costs. Two namespaces, accounts or networks
//! alone make no class of their own and are in `crosses`. One host has one place, whatever two labels say.
//!
//! # Hairpins
//!
//! Both ends are near each other, and the path left the network:
//!
//! - *near*: one node; or in one cluster, one zone, or one network, without a known boundary of region or cloud between them
//!   (a Google network spans the world, so a shared network alone is not near);
//! - *left*: an address in between, that is neither end's own, is public ([`AddressClass::is_public`]): the one the client
//!   called, or the one the server was called from. A private address in between (RFC 1918, RFC 4193) shows a translation, but
//!   one inside the network: a ClusterIP, an internal load balancer, a node's masquerade. Shared space (RFC 6598) shows
//!   neither, as providers also give it to pods.
//!
//! A public address that is the server's own, called by a client whose source arrives unchanged, was not translated: the two
//! may well be neighbours on one link, so that is no hairpin.
//!
//! One exception. Inside one cluster or one node, a client that calls a public address and arrives with its own private
//! source never left: kube-proxy and its successors take the address of a `LoadBalancer` service on the client's node. A NAT
//! that really turns a path back has to rewrite the source, or the answer would go past it (RFC 5382, REQ-8;
//! RFC 4787, REQ-9). Outside one cluster that argument is weaker (a router between two subnets sees both directions anyway) and
//! the path did reach the holder of the public address, so there a kept source does not excuse it.
//!
//! What this cannot tell without provider metadata: a kube-proxy that also masquerades looks like a gateway that
//! turns the path back, and is called a hairpin; a detour through another of our networks by private addresses only is
//! not seen.
//!
//! # One end unseen
//!
//! `north-south`, as far as is known, if it was established; [`Path::unmatched`] carries the reason and with it how far
//! that is to be trusted. Where several of our halves would fit, the other end is ours: `unknown`.

use std::net::{IpAddr, SocketAddr};

use weft_wire::Site;
use weft_wire::query::{Path, PathClass, Unmatched};

use crate::address::{AddressClass, canonical};
use crate::place::{Boundary, Comparison};

/// One end of a connection, as its agent saw it.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Name of the agent; unique within its federator.
    pub agent: &'a str,
    /// Name of its home.
    pub federator: &'a str,
    /// Its place.
    pub site: &'a Site,
    /// Own address.
    pub local: SocketAddr,
    /// The peer as seen from here.
    pub remote: SocketAddr,
}

/// How a connection travelled whose two ends were joined. See the module for the rules.
pub fn classify(client: &End<'_>, server: &End<'_>) -> Path {
    let places = Places {
        same_node: client.agent == server.agent && client.federator == server.federator,
        sites: Comparison::new(client.site, server.site),
    };
    let between = Between::new(client, server);
    let class = if places.near() && between.left_the_network(&places) {
        PathClass::Hairpin
    } else {
        places.class()
    };
    let crosses = Boundary::ALL
        .into_iter()
        .filter(|b| places.crosses(*b))
        .map(|b| b.as_str().to_owned());
    Path {
        class,
        crosses: crosses.collect(),
        via: between.addresses(),
        unmatched: None,
    }
}

/// How a connection travelled of which one end was seen, and why only one.
pub fn classify_unmatched(reason: Unmatched) -> Path {
    let class = match reason {
        Unmatched::NotEstablished | Unmatched::Ambiguous => PathClass::Unknown,
        Unmatched::Pending | Unmatched::NoPartner | Unmatched::NoFingerprint => {
            PathClass::NorthSouth
        }
    };
    Path {
        class,
        crosses: Vec::new(),
        via: Vec::new(),
        unmatched: Some(reason),
    }
}

struct Places {
    same_node: bool,
    sites: Comparison,
}

impl Places {
    fn crosses(&self, boundary: Boundary) -> bool {
        !self.same_node && self.sites.crosses(boundary)
    }

    fn near(&self) -> bool {
        let shared = [Boundary::Cluster, Boundary::Zone, Boundary::Network]
            .iter()
            .any(|b| self.sites.shares(*b));
        self.same_node
            || (shared && !self.crosses(Boundary::Region) && !self.crosses(Boundary::Cloud))
    }

    fn one_cluster(&self) -> bool {
        self.same_node || self.sites.shares(Boundary::Cluster)
    }

    fn class(&self) -> PathClass {
        if self.same_node {
            PathClass::SameNode
        } else if self.crosses(Boundary::Cloud) {
            PathClass::CrossCloud
        } else if self.crosses(Boundary::Cluster) {
            PathClass::CrossCluster
        } else if self.crosses(Boundary::Region) {
            PathClass::CrossRegion
        } else if self.crosses(Boundary::Zone) {
            PathClass::CrossZone
        } else if self.sites.shares(Boundary::Cluster) {
            PathClass::SameCluster
        } else if self.sites.shares(Boundary::Zone) {
            PathClass::SameZone
        } else {
            PathClass::Unknown
        }
    }
}

/// Addresses that stand between the ends, each where it is not the end's own.
struct Between {
    /// What the client called instead of the server.
    called: Option<IpAddr>,
    /// What the server was called from instead of the client.
    caller: Option<IpAddr>,
}

impl Between {
    fn new(client: &End<'_>, server: &End<'_>) -> Self {
        let unless_own = |seen: SocketAddr, own: SocketAddr| {
            let seen = canonical(seen.ip());
            (seen != canonical(own.ip())).then_some(seen)
        };
        Self {
            called: unless_own(client.remote, server.local),
            caller: unless_own(server.remote, client.local),
        }
    }

    fn left_the_network(&self, places: &Places) -> bool {
        let public =
            |address: Option<IpAddr>| address.is_some_and(|a| AddressClass::of(a).is_public());
        let taken_on_the_node = places.one_cluster() && self.caller.is_none();
        public(self.caller) || (public(self.called) && !taken_on_the_node)
    }

    fn addresses(&self) -> Vec<String> {
        let mut found: Vec<_> = [self.caller, self.called].into_iter().flatten().collect();
        found.dedup();
        found.iter().map(IpAddr::to_string).collect()
    }
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
