//! The topologies, one function each.

use super::{AWS, Cloud, Flow, GCP, Node, Plan, Through, Topology, World, attach, socket};
use crate::error::Result;
use crate::host::{Host, Site};
use crate::net::{self, End};

/// Source NAT with random ports on everything that leaves by `wan`.
pub(super) const MASQUERADE: &str = "table ip weft_snat { chain post { type nat hook postrouting priority srcnat;\n\
     oifname \"wan\" masquerade fully-random\n } }\n";

/// Two clouds of two hosts behind masquerade, each serving through port forwards of its router (source and destination
/// rewritten); one server with a routed public address (source only), and neighbours that talk directly (nothing).
pub fn two_clouds() -> Result<Topology> {
    let world = World::new()?;
    let (aws, gcp) = (world.cloud(&AWS)?, world.cloud(&GCP)?);
    for (plan, cloud) in [(&AWS, &aws), (&GCP, &gcp)] {
        cloud
            .router
            .nft(&format!("{MASQUERADE}{}", forwards(plan)))?;
    }
    let public = public_address(&GCP, &gcp, 1)?;
    let path = [&aws.router, &gcp.router];
    let mut flows = Vec::new();
    for number in 0..2 {
        flows.push(forwarded(&aws.nodes[number], &GCP, &gcp, number, &path)?);
        flows.push(forwarded(
            &gcp.nodes[number],
            &AWS,
            &aws,
            number,
            &[&gcp.router, &aws.router],
        )?);
    }
    flows.push(Flow {
        client: aws.nodes[0].host.clone(),
        target: socket(&format!("{public}:80"))?,
        server: gcp.nodes[1].host.clone(),
        service: socket(&format!("{public}:80"))?,
        path: path.map(Host::clone).to_vec(),
        through: Through::Routers,
    });
    flows.push(Flow {
        client: aws.nodes[1].host.clone(),
        target: AWS.inside(2, 80)?,
        server: aws.nodes[0].host.clone(),
        service: AWS.inside(2, 80)?,
        path: Vec::new(),
        through: Through::Routers,
    });
    world.finish("two clouds", &aws, &gcp, flows)
}

/// The AWS side sits behind a carrier's shared NAT: its connections are translated twice on the way out and once on the way in.
pub fn carrier() -> Result<Topology> {
    let world = World::new()?;
    let gcp = world.cloud(&GCP)?;
    gcp.router.nft(&format!("{MASQUERADE}{}", forwards(&GCP)))?;
    let (aws, carrier) = behind_carrier(&world)?;
    aws.router.nft(MASQUERADE)?;
    let path = [&aws.router, &carrier, &gcp.router];
    let flows = (0..2)
        .map(|n| forwarded(&aws.nodes[n], &GCP, &gcp, n, &path))
        .collect::<Result<_>>()?;
    world.finish("carrier NAT", &aws, &gcp, flows)
}

/// As [`carrier`]; the first two flows are with the servers' name servers, the others with their web servers.
pub fn names() -> Result<Topology> {
    let mut topology = carrier()?;
    let mut flows = topology.flows.clone();
    for (number, flow) in flows.iter_mut().enumerate() {
        flow.target = GCP.outside(if number == 0 { 30 } else { 31 }, 53)?;
        flow.service = GCP.inside(number_to_address(number), 53)?;
    }
    flows.append(&mut topology.flows);
    topology.flows = flows;
    Ok(topology)
}

/// Clients with public addresses call servers inside: only the destination is rewritten.
pub fn destination() -> Result<Topology> {
    let world = World::new()?;
    let (aws, gcp) = (world.cloud(&AWS)?, world.cloud(&GCP)?);
    gcp.router.nft(&format!(
        "{MASQUERADE}table ip weft_dnat {{ chain pre {{ type nat hook prerouting priority dstnat;\n\
         ip daddr {0}.2 tcp dport 8081 dnat to {1}.2:80\n ip daddr {0}.2 tcp dport 80 dnat to {1}.3:80\n }} }}",
        GCP.public4, GCP.private4
    ))?;
    let mut flows = Vec::new();
    for (number, port) in [(0, 8081), (1, 80)] {
        let address = public_address(&AWS, &aws, number)?;
        let client = &aws.nodes[number].host;
        let gateway = format!("{}.1", AWS.private4);
        client.run(
            "ip",
            &[
                "route", "replace", "default", "via", &gateway, "src", &address,
            ],
        )?;
        flows.push(Flow {
            client: client.clone(),
            target: GCP.outside(2, port)?,
            server: gcp.nodes[number].host.clone(),
            service: GCP.inside(number_to_address(number), 80)?,
            path: vec![gcp.router.clone()],
            through: Through::Routers,
        });
    }
    world.finish("destination NAT", &aws, &gcp, flows)
}

/// Two clouds over IPv6 with unique local addresses inside: NAT66 on both sides.
pub fn nat66() -> Result<Topology> {
    let world = World::new()?;
    let (aws, gcp) = (world.cloud(&AWS)?, world.cloud(&GCP)?);
    // The agents reach their federators over IPv4.
    let rules = |plan: &Plan| {
        format!(
            "{MASQUERADE}table ip6 weft_nat {{\n\
             chain post {{ type nat hook postrouting priority srcnat; oifname \"wan\" masquerade fully-random\n }}\n\
             chain pre {{ type nat hook prerouting priority dstnat;\n\
             ip6 daddr {0}::2 tcp dport 8081 dnat to [{1}::2]:80\n\
             ip6 daddr {0}::2 tcp dport 8082 dnat to [{1}::3]:80\n\
             ip6 daddr {0}::2 udp dport 8081 dnat to [{1}::2]:80\n\
             ip6 daddr {0}::2 udp dport 8082 dnat to [{1}::3]:80\n }} }}",
            plan.public6, plan.private6
        )
    };
    aws.router.nft(&rules(&AWS))?;
    gcp.router.nft(&rules(&GCP))?;
    let mut flows = Vec::new();
    for number in 0..2_usize {
        let last = number_to_address(number);
        for (client, plan, server, path) in [
            (&aws, &GCP, &gcp, [&aws.router, &gcp.router]),
            (&gcp, &AWS, &aws, [&gcp.router, &aws.router]),
        ] {
            flows.push(Flow {
                client: client.nodes[number].host.clone(),
                target: socket(&format!("[{}::2]:{}", plan.public6, forward_port(number)))?,
                server: server.nodes[number].host.clone(),
                service: socket(&format!("[{}::{last}]:80", plan.private6))?,
                path: path.map(Host::clone).to_vec(),
                through: Through::Routers,
            });
        }
    }
    world.finish("NAT66", &aws, &gcp, flows)
}

/// As [`nat66`] with the flows of [`names`]: from one cloud to the other's name servers and web servers, over IPv6 alone.
pub fn names66() -> Result<Topology> {
    let mut topology = nat66()?;
    let (gcp, internet) = (&topology.flows[0].path[1], &topology.internet);
    net::route(
        internet,
        &format!("{}:53::/64", GCP.public6),
        &format!("{}::2", GCP.public6),
    )?;
    let mut rules = String::from("add table ip6 weft_names\n");
    rules += "add chain ip6 weft_names pre { type nat hook prerouting priority dstnat - 1; }\n";
    for (public, node) in [(30, 2), (31, 3)] {
        for protocol in ["udp", "tcp"] {
            rules += &format!(
                "add rule ip6 weft_names pre ip6 daddr {}:53::{public} {protocol} dport 53 dnat to {}::{node}\n",
                GCP.public6, GCP.private6
            );
        }
    }
    gcp.feed("nft", &["-f", "-"], &rules)?;
    let web: Vec<Flow> = topology
        .flows
        .iter()
        .filter(|flow| flow.client.name().starts_with(AWS.cloud))
        .cloned()
        .collect();
    let mut flows = web.clone();
    for (number, flow) in flows.iter_mut().enumerate() {
        flow.target = socket(&format!("[{}:53::{}]:53", GCP.public6, 30 + number))?;
        let node = number_to_address(number);
        flow.service = socket(&format!("[{}::{node}]:53", GCP.private6))?;
    }
    flows.extend(web);
    topology.flows = flows;
    topology.name = "NAT66, names";
    Ok(topology)
}

/// Hosts call their own neighbour by the public address: the router turns the connection round and rewrites both ends of it.
pub fn hairpin() -> Result<Topology> {
    let world = World::new()?;
    let (aws, gcp) = (world.cloud(&AWS)?, world.cloud(&GCP)?);
    let mut flows = Vec::new();
    for (plan, cloud) in [(&AWS, &aws), (&GCP, &gcp)] {
        cloud.router.nft(&format!(
            "{MASQUERADE}{}{}",
            forwards(plan),
            turn_round(plan)
        ))?;
        flows.push(forwarded(
            &cloud.nodes[0],
            plan,
            cloud,
            1,
            &[&cloud.router],
        )?);
        flows.push(forwarded(
            &cloud.nodes[1],
            plan,
            cloud,
            0,
            &[&cloud.router],
        )?);
    }
    world.finish("hairpin", &aws, &gcp, flows)
}

/// A SYN proxy on the server's router answers the client before the server does; the client is behind masquerade.
pub fn syn_proxy() -> Result<Topology> {
    let world = World::new()?;
    let (aws, gcp) = (world.cloud(&AWS)?, world.cloud(&GCP)?);
    aws.router.nft(MASQUERADE)?;
    let public = public_address(&GCP, &gcp, 1)?;
    // Tracking must not pick up connections in their middle, and cookies need timestamps.
    gcp.router
        .sysctl("net.netfilter.nf_conntrack_tcp_loose", "0")?;
    gcp.router.sysctl("net.ipv4.tcp_timestamps", "1")?;
    gcp.router.sysctl("net.ipv4.tcp_syncookies", "2")?;
    gcp.router.nft(&format!(
        "{MASQUERADE}table ip weft_proxy {{\n\
         chain raw {{ type filter hook prerouting priority raw;\n\
         iifname \"wan\" ip daddr {public} tcp dport 80 tcp flags syn / fin,syn,rst,ack notrack\n }}\n\
         chain forward {{ type filter hook forward priority filter;\n\
         ip daddr {public} tcp dport 80 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm\n\
         ct state invalid drop\n }} }}"
    ))?;
    let address = socket(&format!("{public}:80"))?;
    let flows = aws.nodes.iter().map(|node| Flow {
        client: node.host.clone(),
        target: address,
        server: gcp.nodes[1].host.clone(),
        service: address,
        path: vec![aws.router.clone(), gcp.router.clone()],
        through: Through::SynProxy,
    });
    let flows = flows.collect();
    world.finish("SYN proxy", &aws, &gcp, flows)
}

/// haproxy on one host hands TCP connections to nginx on the other: two connections, however alike their bytes are.
pub fn relay() -> Result<Topology> {
    let world = World::new()?;
    let (aws, gcp) = (world.cloud(&AWS)?, world.cloud(&GCP)?);
    aws.router.nft(MASQUERADE)?;
    gcp.router.nft(&format!(
        "{MASQUERADE}table ip weft_dnat {{ chain pre {{ type nat hook prerouting priority dstnat;\n\
         ip daddr {}.2 tcp dport 8081 dnat to {}.2:8080\n }} }}",
        GCP.public4, GCP.private4
    ))?;
    let flows = aws.nodes.iter().map(|node| {
        Ok(Flow {
            client: node.host.clone(),
            target: GCP.outside(2, 8081)?,
            server: gcp.nodes[0].host.clone(),
            service: GCP.inside(2, 8080)?,
            path: vec![aws.router.clone(), gcp.router.clone()],
            through: Through::Relay(gcp.nodes[1].host.clone(), GCP.inside(3, 80)?),
        })
    });
    let flows = flows.collect::<Result<_>>()?;
    world.finish("TCP proxy", &aws, &gcp, flows)
}

/// Both clouds use 10.0.0.0/24 inside. Their hosts call each other (10.0.0.2 to 10.0.0.2), and both call one server on the
/// internet, from the same private address.
pub fn overlap() -> Result<Topology> {
    let world = World::new()?;
    let (left, right) = (
        Plan {
            private4: "10.0.0",
            ..AWS
        },
        Plan {
            private4: "10.0.0",
            ..GCP
        },
    );
    let (aws, gcp) = (world.cloud(&left)?, world.cloud(&right)?);
    aws.router
        .nft(&format!("{MASQUERADE}{}", forwards(&left)))?;
    gcp.router
        .nft(&format!("{MASQUERADE}{}", forwards(&right)))?;
    let shared = world.lab.host("shared")?;
    attach(&world.internet, &shared, "shared", "192.0.2", 17)?;
    let mut flows = vec![
        forwarded(&aws.nodes[0], &right, &gcp, 0, &[&aws.router, &gcp.router])?,
        forwarded(&gcp.nodes[0], &left, &aws, 0, &[&gcp.router, &aws.router])?,
    ];
    for cloud in [&aws, &gcp] {
        flows.push(Flow {
            client: cloud.nodes[0].host.clone(),
            target: socket("192.0.2.18:80")?,
            server: shared.clone(),
            service: socket("192.0.2.18:80")?,
            path: vec![cloud.router.clone()],
            through: Through::Routers,
        });
    }
    let mut topology = world.finish("same private addresses", &aws, &gcp, flows)?;
    let site = Site {
        cloud: "gcp".into(),
        region: GCP.region.into(),
        network: "shared".into(),
        ..Site::default()
    };
    topology.regions[1].nodes.push(Node { host: shared, site });
    Ok(topology)
}

/// What the demo shows: a carrier's NAT before the AWS side, port forwards and hairpins on the GCP side.
pub fn demo() -> Result<Topology> {
    let world = World::new()?;
    let gcp = world.cloud(&GCP)?;
    gcp.router.nft(&format!(
        "{MASQUERADE}{}{}",
        forwards(&GCP),
        turn_round(&GCP)
    ))?;
    let (aws, carrier) = behind_carrier(&world)?;
    aws.router.nft(MASQUERADE)?;
    let out = [&aws.router, &carrier, &gcp.router];
    let flows = vec![
        forwarded(&aws.nodes[0], &GCP, &gcp, 0, &out)?,
        forwarded(&aws.nodes[1], &GCP, &gcp, 1, &out)?,
        forwarded(&gcp.nodes[0], &GCP, &gcp, 1, &[&gcp.router])?,
    ];
    world.finish("demo", &aws, &gcp, flows)
}

/// The AWS side behind a carrier's NAT that many customers share.
fn behind_carrier(world: &World) -> Result<(Cloud, Host)> {
    let carrier = world.lab.host("carrier")?;
    net::forward(&carrier)?;
    world.uplink(&AWS, &carrier)?;
    carrier.nft(MASQUERADE)?;
    let aws = world.inside(&AWS)?;
    net::wire(
        End {
            host: &aws.router,
            interface: "wan",
            addresses: &["100.64.0.2/30"],
        },
        End {
            host: &carrier,
            interface: "customer",
            addresses: &["100.64.0.1/30"],
        },
    )?;
    net::route(&aws.router, "default", "100.64.0.1")?;
    Ok((aws, carrier))
}

/// A flow from a host to the public port that `cloud` forwards to one of its nodes.
pub(super) fn forwarded(
    client: &Node,
    plan: &Plan,
    cloud: &Cloud,
    number: usize,
    path: &[&Host],
) -> Result<Flow> {
    Ok(Flow {
        client: client.host.clone(),
        target: plan.outside(2, forward_port(number))?,
        server: cloud.nodes[number].host.clone(),
        service: plan.inside(number_to_address(number), 80)?,
        path: path.iter().map(|host| (*host).clone()).collect(),
        through: Through::Routers,
    })
}

/// Ports 8081 and 8082 of a router lead to port 80 (of UDP too), 6381 and 6382 to redis of its first and second node; port 53 of
/// the addresses 30 and 31 to their name servers.
pub(super) fn forwards(plan: &Plan) -> String {
    format!(
        "table ip weft_dnat {{ chain pre {{ type nat hook prerouting priority dstnat;\n\
         ip daddr {0}.2 tcp dport 8081 dnat to {1}.2:80\n ip daddr {0}.2 tcp dport 8082 dnat to {1}.3:80\n\
         ip daddr {0}.2 udp dport 8081 dnat to {1}.2:80\n ip daddr {0}.2 udp dport 8082 dnat to {1}.3:80\n\
         ip daddr {0}.30 udp dport 53 dnat to {1}.2\n ip daddr {0}.30 tcp dport 53 dnat to {1}.2\n\
         ip daddr {0}.31 udp dport 53 dnat to {1}.3\n ip daddr {0}.31 tcp dport 53 dnat to {1}.3\n\
         ip daddr {0}.2 tcp dport 6381 dnat to {1}.2:6379\n ip daddr {0}.2 tcp dport 6382 dnat to {1}.3:6379\n }} }}\n",
        plan.public4, plan.private4
    )
}

/// What comes from the LAN and goes back into it leaves with the router's own address, so that answers come back to it.
fn turn_round(plan: &Plan) -> String {
    format!(
        "table ip weft_round {{ chain post {{ type nat hook postrouting priority srcnat;\n\
         iifname \"lan\" oifname \"lan\" ip saddr {}.0/24 masquerade fully-random\n }} }}\n",
        plan.private4
    )
}

/// Gives a node a routed public address as well.
fn public_address(plan: &Plan, cloud: &Cloud, number: usize) -> Result<String> {
    let last = number_to_address(number);
    let address = format!("{}.{}", plan.public4, 20 + number);
    cloud.nodes[number].host.run(
        "ip",
        &["addr", "add", &format!("{address}/32"), "dev", "eth0"],
    )?;
    net::route(
        &cloud.router,
        &format!("{address}/32"),
        &format!("{}.{last}", plan.private4),
    )?;
    Ok(address)
}

fn forward_port(number: usize) -> u16 {
    if number == 0 { 8081 } else { 8082 }
}

/// Last number of a node's inside address.
fn number_to_address(number: usize) -> u8 {
    if number == 0 { 2 } else { 3 }
}
