//! Wires, bridges, routes and NAT between hosts.

use std::net::IpAddr;
use std::path::Path;

use crate::command;
use crate::error::Result;
use crate::host::Host;

/// One end of a wire.
pub struct End<'a> {
    /// The host.
    pub host: &'a Host,
    /// Name of the interface there, at most 15 characters.
    pub interface: &'a str,
    /// Its addresses with prefix length.
    pub addresses: &'a [&'a str],
}

/// Connects two hosts with a wire.
pub fn wire(a: End<'_>, b: End<'_>) -> Result<()> {
    let (ha, hb) = (a.host.netns(), b.host.netns());
    let make = [
        "-n",
        ha,
        "link",
        "add",
        a.interface,
        "type",
        "veth",
        "peer",
        "name",
        b.interface,
        "netns",
        hb,
    ];
    command::run("ip", make)?;
    configure(&a)?;
    configure(&b)
}

/// Makes a bridge on a router and gives the router its addresses there: the inside network of a site.
pub fn bridge(router: &Host, name: &str, addresses: &[&str]) -> Result<()> {
    // Where br_netfilter is there, it would turn hairpins round below the router, without the router's rules.
    if Path::new("/proc/sys/net/bridge").exists() {
        router.sysctl("net.bridge.bridge-nf-call-iptables", "0")?;
        router.sysctl("net.bridge.bridge-nf-call-ip6tables", "0")?;
    }
    command::run(
        "ip",
        ["-n", router.netns(), "link", "add", name, "type", "bridge"],
    )?;
    configure(&End {
        host: router,
        interface: name,
        addresses,
    })
}

/// Plugs a host into a router's bridge and routes everything else of it through `gateways`.
pub fn plug(
    host: &Host,
    addresses: &[&str],
    router: &Host,
    bridge: &str,
    gateways: &[&str],
) -> Result<()> {
    let port = format!("p-{}", host.name());
    wire(
        End {
            host,
            interface: "eth0",
            addresses,
        },
        End {
            host: router,
            interface: &port,
            addresses: &[],
        },
    )?;
    command::run(
        "ip",
        ["-n", router.netns(), "link", "set", &port, "master", bridge],
    )?;
    gateways
        .iter()
        .try_for_each(|gateway| route(host, "default", gateway))
}

/// Adds a route; `default` is of the gateway's family.
pub fn route(host: &Host, to: &str, via: &str) -> Result<()> {
    let family = if via.parse::<IpAddr>().is_ok_and(|a| a.is_ipv6()) {
        "-6"
    } else {
        "-4"
    };
    command::run(
        "ip",
        [family, "-n", host.netns(), "route", "add", to, "via", via],
    )
    .map(drop)
}

/// Lets a host forward packets, and its connection tracking remember every connection with its counters for
/// longer than any test runs: what the tests take as the truth about its NAT.
pub fn forward(router: &Host) -> Result<()> {
    router.sysctl("net.ipv4.ip_forward", "1")?;
    router.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    router.sysctl("net.netfilter.nf_conntrack_acct", "1")?;
    for state in ["timeout", "timeout_stream"] {
        router.sysctl(&format!("net.netfilter.nf_conntrack_udp_{state}"), "7200")?;
    }
    for state in ["time_wait", "close", "fin_wait", "close_wait", "last_ack"] {
        router.sysctl(
            &format!("net.netfilter.nf_conntrack_tcp_timeout_{state}"),
            "7200",
        )?;
    }
    Ok(())
}

fn configure(end: &End<'_>) -> Result<()> {
    let netns = end.host.netns();
    for address in end.addresses {
        // Without duplicate address detection, IPv6 works at once.
        let nodad: &[&str] = if address.contains(':') {
            &["nodad"]
        } else {
            &[]
        };
        let words = ["-n", netns, "addr", "add", address, "dev", end.interface];
        command::run("ip", words.iter().chain(nodad))?;
    }
    command::run("ip", ["-n", netns, "link", "set", end.interface, "up"]).map(drop)
}
