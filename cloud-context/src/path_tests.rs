//! One table: places, views, and what they mean.

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

const A1: &str = "aws/1/use1/use1-az1/vpc-a/prod/web";
const A2: &str = "aws/1/use1/use1-az1/vpc-a/prod/pay";
const A_ZONE_2: &str = "aws/1/use1/use1-az2/vpc-a/prod/web";
const A_WEST: &str = "aws/1/usw2/usw2-az1/vpc-w/prod/web";
const A_LAB: &str = "aws/1/use1/use1-az1/vpc-b/lab/web";
const A_LAB_WEST: &str = "aws/1/usw2/usw2-az1/vpc-w/lab/web";
const G1: &str = "gcp/p/euw1/euw1-b/default/data/db";

/// What, client's place, server's place, client's view, server's view, class, crosses, via.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    [&'static str; 2],
    [&'static str; 2],
    &'static str,
    &'static str,
    &'static str,
);

const TABLE: &[Row] = &[
    (
        "no NAT",
        A1,
        A1,
        ["10.1.0.2:4000", "10.1.0.3:80"],
        ["10.1.0.3:80", "10.1.0.2:4000"],
        "same-cluster",
        "",
        "",
    ),
    (
        "no NAT, v4-mapped at one end",
        A1,
        A1,
        ["10.1.0.2:4000", "10.1.0.3:80"],
        ["10.1.0.3:80", "[::ffff:10.1.0.2]:4000"],
        "same-cluster",
        "",
        "",
    ),
    (
        "two namespaces",
        A1,
        A2,
        ["10.1.0.2:4000", "10.1.0.3:80"],
        ["10.1.0.3:80", "10.1.0.2:4000"],
        "same-cluster",
        "namespace",
        "",
    ),
    (
        "one cluster, two zones",
        A1,
        A_ZONE_2,
        ["10.1.0.2:4000", "10.1.9.3:80"],
        ["10.1.9.3:80", "10.1.0.2:4000"],
        "cross-zone",
        "zone",
        "",
    ),
    (
        "two clusters, one region",
        A1,
        A_LAB,
        ["10.1.0.2:4000", "10.2.0.3:80"],
        ["10.2.0.3:80", "10.1.0.2:4000"],
        "cross-cluster",
        "network cluster",
        "",
    ),
    (
        "one cluster, two regions",
        A1,
        A_WEST,
        ["10.1.0.2:4000", "10.2.0.3:80"],
        ["10.2.0.3:80", "10.1.0.2:4000"],
        "cross-region",
        "region zone network",
        "",
    ),
    (
        "two clusters, two regions",
        A1,
        A_LAB_WEST,
        ["10.1.0.2:4000", "10.2.0.3:80"],
        ["10.2.0.3:80", "10.1.0.2:4000"],
        "cross-cluster",
        "region zone network cluster",
        "",
    ),
    (
        "two clouds through both NATs",
        A1,
        G1,
        ["10.1.0.2:4000", "203.0.113.9:443"],
        ["10.9.0.3:8443", "198.51.100.1:51713"],
        "cross-cloud",
        "cloud account region zone network cluster namespace",
        "198.51.100.1 203.0.113.9",
    ),
    (
        "two clouds, the very same addresses",
        A1,
        G1,
        ["10.1.0.2:4000", "203.0.113.9:443"],
        ["10.1.0.2:4000", "198.51.100.1:51713"],
        "cross-cloud",
        "cloud account region zone network cluster namespace",
        "198.51.100.1 203.0.113.9",
    ),
    // A ClusterIP: private, and the source is the client's own.
    (
        "ClusterIP",
        A1,
        A1,
        ["10.1.0.2:4000", "172.20.0.10:80"],
        ["10.1.0.3:8080", "10.1.0.2:4000"],
        "same-cluster",
        "",
        "172.20.0.10",
    ),
    (
        "ClusterIP, masqueraded by the node",
        A1,
        A1,
        ["10.1.0.2:4000", "172.20.0.10:80"],
        ["10.1.0.3:8080", "10.1.7.1:33000"],
        "same-cluster",
        "",
        "10.1.7.1 172.20.0.10",
    ),
    (
        "ClusterIP to pods in shared space",
        A1,
        A1,
        ["100.64.0.2:4000", "172.20.0.10:80"],
        ["100.64.0.3:8080", "10.1.7.1:33000"],
        "same-cluster",
        "",
        "10.1.7.1 172.20.0.10",
    ),
    (
        "internal load balancer in one zone",
        A1,
        A_LAB,
        ["10.1.0.2:4000", "10.1.0.99:80"],
        ["10.2.0.3:80", "10.2.0.1:4000"],
        "cross-cluster",
        "network cluster",
        "10.2.0.1 10.1.0.99",
    ),
    (
        "LoadBalancer service taken on the node",
        A1,
        A1,
        ["10.1.0.2:4000", "203.0.113.9:443"],
        ["10.1.0.3:8443", "10.1.0.2:4000"],
        "same-cluster",
        "",
        "203.0.113.9",
    ),
    // Hairpins.
    (
        "out and back in, both rewritten",
        A1,
        A1,
        ["10.1.0.2:4000", "203.0.113.9:443"],
        ["10.1.0.3:8443", "198.51.100.1:51713"],
        "hairpin",
        "",
        "198.51.100.1 203.0.113.9",
    ),
    (
        "the gateway's own inside address as source",
        A1,
        A1,
        ["10.1.0.2:4000", "203.0.113.9:443"],
        ["10.1.0.3:8443", "10.1.0.1:51713"],
        "hairpin",
        "",
        "10.1.0.1 203.0.113.9",
    ),
    (
        "one public address for both",
        A1,
        A1,
        ["10.1.0.2:4000", "203.0.113.9:443"],
        ["10.1.0.3:8443", "203.0.113.9:51713"],
        "hairpin",
        "",
        "203.0.113.9",
    ),
    (
        "the server has its public address itself",
        A1,
        A1,
        ["10.1.0.2:4000", "203.0.113.9:443"],
        ["203.0.113.9:443", "198.51.100.1:51713"],
        "hairpin",
        "",
        "198.51.100.1",
    ),
    (
        "one cluster, two zones, by the gateway",
        A1,
        A_ZONE_2,
        ["10.1.0.2:4000", "203.0.113.9:443"],
        ["10.1.9.3:8443", "198.51.100.1:51713"],
        "hairpin",
        "zone",
        "198.51.100.1 203.0.113.9",
    ),
    (
        "one zone, two networks, by public addresses",
        A1,
        A_LAB,
        ["10.1.0.2:4000", "203.0.113.9:443"],
        ["10.2.0.3:8443", "198.51.100.1:51713"],
        "hairpin",
        "network cluster",
        "198.51.100.1 203.0.113.9",
    ),
    (
        "one zone, no cluster, source kept by a router",
        "onprem//hq/r1/lan",
        "onprem//hq/r1/lan",
        ["10.1.0.2:4000", "203.0.113.9:443"],
        ["10.1.0.3:8443", "10.1.0.2:4000"],
        "hairpin",
        "",
        "203.0.113.9",
    ),
    (
        "NAT66",
        A1,
        A1,
        ["[fd01::2]:4000", "[2001:db8:9::9]:443"],
        ["[fd01::3]:8443", "[2001:db8:9::1]:51713"],
        "hairpin",
        "",
        "2001:db8:9::1 2001:db8:9::9",
    ),
    (
        "public neighbours without NAT",
        A1,
        A1,
        ["203.0.113.8:4000", "203.0.113.9:443"],
        ["203.0.113.9:443", "203.0.113.8:4000"],
        "same-cluster",
        "",
        "",
    ),
    (
        "by public addresses, but far",
        A1,
        A_WEST,
        ["10.1.0.2:4000", "203.0.113.9:443"],
        ["10.2.0.3:8443", "198.51.100.1:51713"],
        "cross-region",
        "region zone network",
        "198.51.100.1 203.0.113.9",
    ),
    (
        "one Google network, two regions",
        "gcp/p/euw1//default",
        "gcp/p/use1//default",
        ["10.1.0.2:4000", "203.0.113.9:443"],
        ["10.2.0.3:8443", "198.51.100.1:51713"],
        "cross-region",
        "region",
        "198.51.100.1 203.0.113.9",
    ),
    // Little known.
    (
        "nothing known of either",
        "",
        "",
        ["10.1.0.2:4000", "203.0.113.9:443"],
        ["10.2.0.3:8443", "198.51.100.1:51713"],
        "unknown",
        "",
        "198.51.100.1 203.0.113.9",
    ),
    (
        "nothing known of one",
        A1,
        "",
        ["10.1.0.2:4000", "10.1.0.3:80"],
        ["10.1.0.3:80", "10.1.0.2:4000"],
        "unknown",
        "",
        "",
    ),
    (
        "clouds only",
        "aws",
        "gcp",
        ["10.1.0.2:4000", "10.1.0.3:80"],
        ["10.1.0.3:80", "10.1.0.2:4000"],
        "cross-cloud",
        "cloud",
        "",
    ),
    (
        "one region, zones unknown",
        "aws/1/use1",
        "aws/1/use1",
        ["10.1.0.2:4000", "10.1.0.3:80"],
        ["10.1.0.3:80", "10.1.0.2:4000"],
        "unknown",
        "",
        "",
    ),
    (
        "one zone, nothing else",
        "aws/1/use1/az1",
        "aws/1/use1/az1",
        ["10.1.0.2:4000", "10.1.0.3:80"],
        ["10.1.0.3:80", "10.1.0.2:4000"],
        "same-zone",
        "",
        "",
    ),
    (
        "one zone name in two regions",
        "azure/s/west/1",
        "azure/s/north/1",
        ["10.1.0.2:4000", "10.1.0.3:80"],
        ["10.1.0.3:80", "10.1.0.2:4000"],
        "cross-region",
        "region zone",
        "",
    ),
];

#[test]
fn both_ends_seen() {
    for (what, client_site, server_site, client, server, class, crosses, via) in TABLE {
        let (client_site, server_site) = (site(client_site), site(server_site));
        let path = classify(
            &end("node-a", &client_site, client),
            &end("node-b", &server_site, server),
        );
        assert_eq!(path.class.as_str(), *class, "{what}");
        assert_eq!(path.crosses.join(" "), *crosses, "{what}");
        assert_eq!(path.via.join(" "), *via, "{what}");
        assert_eq!(path.unmatched, None, "{what}");
    }
}

#[test]
fn one_node_is_one_place() {
    let (here, mislabelled) = (site(A1), site(G1));
    for (client, server, class) in [
        (
            ["127.0.0.1:4000", "127.0.0.1:80"],
            ["127.0.0.1:80", "127.0.0.1:4000"],
            "same-node",
        ),
        (
            ["10.1.0.2:4000", "203.0.113.9:80"],
            ["10.1.0.2:80", "10.1.0.2:4000"],
            "same-node",
        ),
        (
            ["10.1.0.2:4000", "203.0.113.9:80"],
            ["10.1.0.2:80", "203.0.113.1:4000"],
            "hairpin",
        ),
    ] {
        let path = classify(
            &end("node-a", &here, &client),
            &end("node-a", &mislabelled, &server),
        );
        assert_eq!(path.class.as_str(), class, "{client:?}");
        assert!(path.crosses.is_empty());
    }
}

#[test]
fn an_agent_name_is_unique_only_within_its_federator() {
    let place = site(A1);
    let client = end("node-a", &place, &["10.1.0.2:4000", "10.1.0.3:80"]);
    let server = End {
        federator: "fed-b",
        ..end("node-a", &place, &["10.1.0.3:80", "10.1.0.2:4000"])
    };
    assert_eq!(classify(&client, &server).class, PathClass::SameCluster);
}

#[test]
fn one_end_seen() {
    for (reason, class) in [
        (Unmatched::NoPartner, PathClass::NorthSouth),
        (Unmatched::Pending, PathClass::NorthSouth),
        (Unmatched::NoFingerprint, PathClass::NorthSouth),
        (Unmatched::Ambiguous, PathClass::Unknown),
        (Unmatched::NotEstablished, PathClass::Unknown),
    ] {
        let path = classify_unmatched(reason);
        assert_eq!((path.class, path.unmatched), (class, Some(reason)));
    }
}

fn end<'a>(agent: &'a str, site: &'a Site, view: &[&str; 2]) -> End<'a> {
    End {
        agent,
        federator: "fed-a",
        site,
        local: view[0].parse().unwrap(),
        remote: view[1].parse().unwrap(),
    }
}
