//! Boundaries between two sites.

use weft_wire::Site;

/// A boundary that two sites can lie on either side of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Boundary {
    /// Two providers.
    Cloud,
    /// Two accounts, projects or subscriptions.
    Account,
    /// Two regions.
    Region,
    /// Two zones.
    Zone,
    /// Two networks (VPCs).
    Network,
    /// Two Kubernetes clusters.
    Cluster,
    /// Two Kubernetes namespaces.
    Namespace,
}

/// How two values of one part of a site compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// At least one is not known.
    Unknown,
    Same,
    Different,
}

/// Two sites, part by part.
///
/// A part that either site leaves empty is unknown: it neither makes a boundary nor shows that there is none.
///
/// Some names mean something only inside a larger one, so they differ when that differs: a region within its cloud; a
/// zone within its region (Azure calls the zones of every region 1, 2 and 3); a network within its account (every
/// Google project has a network `default`). Clusters and namespaces are compared by name alone: an operator labels clusters
/// uniquely and may stretch one over regions, and a namespace of one name is one namespace in all clusters (the
/// namespace sameness of Kubernetes SIG Multicluster).
///
/// AWS maps zone names to zones account by account: label zones there with zone ids (`use1-az1`).
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    cloud: Part,
    account: Part,
    region: Part,
    zone: Part,
    network: Part,
    cluster: Part,
    namespace: Part,
}

impl Comparison {
    /// Compares two sites.
    pub fn new(a: &Site, b: &Site) -> Self {
        let cloud = by_name(&a.cloud, &b.cloud);
        let account = within(cloud, by_name(&a.account, &b.account));
        let region = within(cloud, by_name(&a.region, &b.region));
        Self {
            cloud,
            account,
            region,
            zone: within(region, within(cloud, by_name(&a.zone, &b.zone))),
            network: within(account, within(cloud, by_name(&a.network, &b.network))),
            cluster: by_name(&a.cluster, &b.cluster),
            namespace: by_name(&a.namespace, &b.namespace),
        }
    }

    /// Whether the two are known to be on different sides.
    pub fn crosses(&self, boundary: Boundary) -> bool {
        self.part(boundary) == Part::Different
    }

    /// Whether the two are known to be on the same side.
    pub fn shares(&self, boundary: Boundary) -> bool {
        self.part(boundary) == Part::Same
    }

    fn part(&self, boundary: Boundary) -> Part {
        match boundary {
            Boundary::Cloud => self.cloud,
            Boundary::Account => self.account,
            Boundary::Region => self.region,
            Boundary::Zone => self.zone,
            Boundary::Network => self.network,
            Boundary::Cluster => self.cluster,
            Boundary::Namespace => self.namespace,
        }
    }
}

/// Every boundary between two sites, largest first.
pub fn crossed(a: &Site, b: &Site) -> Vec<Boundary> {
    let comparison = Comparison::new(a, b);
    Boundary::ALL
        .into_iter()
        .filter(|boundary| comparison.crosses(*boundary))
        .collect()
}

impl Boundary {
    /// All of them, largest first.
    pub const ALL: [Self; 7] = [
        Self::Cloud,
        Self::Account,
        Self::Region,
        Self::Zone,
        Self::Network,
        Self::Cluster,
        Self::Namespace,
    ];

    /// Its name in answers (`path.crosses`).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Account => "account",
            Self::Region => "region",
            Self::Zone => "zone",
            Self::Network => "network",
            Self::Cluster => "cluster",
            Self::Namespace => "namespace",
        }
    }
}

fn by_name(a: &str, b: &str) -> Part {
    if a.is_empty() || b.is_empty() {
        Part::Unknown
    } else if a == b {
        Part::Same
    } else {
        Part::Different
    }
}

/// `inner` as seen from the outside: equal names in two different outer places are two places.
fn within(outer: Part, inner: Part) -> Part {
    match (outer, inner) {
        (_, Part::Unknown) => Part::Unknown,
        (Part::Different, _) => Part::Different,
        (_, inner) => inner,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `cloud/account/region/zone/network/cluster/namespace`.
    fn site(text: &str) -> Site {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Site {
            cloud: next(),
            account: next(),
            region: next(),
            zone: next(),
            network: next(),
            cluster: next(),
            namespace: next(),
        }
    }

    #[test]
    fn boundaries_follow_from_names_and_what_they_live_in() {
        for (a, b, expected) in [
            ("aws/1/use1/a/v/c/n", "aws/1/use1/a/v/c/n", ""),
            ("", "aws/1/use1/a/v/c/n", ""),
            ("aws//////", "gcp//////", "cloud"),
            (
                "aws/1/r/1/default/c/n",
                "gcp/1/r/1/default/c/n",
                "cloud account region zone network",
            ),
            ("azure/s/west/1///", "azure/s/north/1///", "region zone"),
            (
                "gcp/p1/r/z/default//",
                "gcp/p2/r/z/default//",
                "account network",
            ),
            // The region is not known: equal zone names are all there is to go by.
            ("azure/s//1///", "azure/s/north/1///", ""),
            ("/////prod/web", "/////lab/web", "cluster"),
            ("/////prod/web", "/////prod/pay", "namespace"),
            ("aws//use1///prod/", "aws//usw2///prod/", "region"),
        ] {
            let found: Vec<_> = crossed(&site(a), &site(b))
                .into_iter()
                .map(Boundary::as_str)
                .collect();
            assert_eq!(found.join(" "), expected, "{a} and {b}");
            assert_eq!(crossed(&site(b), &site(a)), crossed(&site(a), &site(b)));
        }
    }
}
