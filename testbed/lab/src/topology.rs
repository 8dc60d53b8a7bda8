//! The networks that are tested: two clouds, an internet of documentation addresses between them, and in each
//! topology something else that rewrites or ends connections on the way.
//!
//! ```text
//!   aws1 aws2 - aws-rt ---(cgn)--- inet ------------ gcp-rt - gcp1 gcp2
//!                        fed-aws /  | \  fed-gcp
//!                                operator
//! ```

use std::net::SocketAddr;

use crate::error::{LabError, Result};
use crate::host::{Host, Site};
use crate::lab::Lab;
use crate::net::{self, End};

mod clouds;
mod regions;

pub use clouds::{
    carrier, demo, destination, hairpin, names, names66, nat66, overlap, relay, syn_proxy,
    two_clouds,
};
pub use regions::three;

/// A laid-out network with the places of its hosts and the flows it is for.
pub struct Topology {
    /// Name, for messages.
    pub name: &'static str,
    /// Regions, each with a federator of its own.
    pub regions: Vec<Region>,
    /// A host that reaches every federator: where `weft` is asked from.
    pub operator: Host,
    /// The router in the middle.
    pub internet: Host,
    /// Who calls whom and through what.
    pub flows: Vec<Flow>,
    /// The lab that owns all of it; last, so that it outlives the rest.
    pub lab: Lab,
}

/// A region: a federator and the hosts whose agents report to it.
pub struct Region {
    /// Name of the region.
    pub name: &'static str,
    /// The federator's host.
    pub federator: Host,
    /// Where the federator listens.
    pub address: SocketAddr,
    /// Hosts with an agent.
    pub nodes: Vec<Node>,
}

/// A host with an agent.
#[derive(Clone, Debug)]
pub struct Node {
    /// The host.
    pub host: Host,
    /// Its place.
    pub site: Site,
}

/// One kind of connection of a topology.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Who opens it.
    pub client: Host,
    /// The address it calls.
    pub target: SocketAddr,
    /// Who accepts it: the server, or the relay in front of it.
    pub server: Host,
    /// The address that was meant.
    pub service: SocketAddr,
    /// Routers that may rewrite it, from the client's side to the server's.
    pub path: Vec<Host>,
    /// What stands between the ends.
    pub through: Through,
}

/// What stands between the two ends of a flow.
#[derive(Clone, Debug, PartialEq)]
pub enum Through {
    /// Routers, which rewrite addresses and ports or do nothing.
    Routers,
    /// A router that completes the handshake for the server (SYN proxy).
    SynProxy,
    /// A TCP proxy in user space, which opens a second connection to this host and address.
    Relay(Host, SocketAddr),
}

impl Topology {
    /// All hosts with an agent.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.regions.iter().flat_map(|region| &region.nodes)
    }

    /// Cuts everything between the two clouds' sides of the internet, or heals it. Packets are dropped in the middle, as
    /// when a backbone fails: nobody is told.
    pub fn set_cut(&self, cut: bool) -> Result<()> {
        let rules = if cut {
            "table inet weft_cut { chain forward { type filter hook forward priority 0;\n\
             iifname \"aws*\" oifname \"gcp*\" drop\n iifname \"gcp*\" oifname \"aws*\" drop\n } }"
        } else {
            ""
        };
        self.internet.nft(rules)
    }
}

/// The part that all topologies share: the internet, a federator of each region on it, and the operator.
struct World {
    lab: Lab,
    internet: Host,
    operator: Host,
    federators: [Host; 2],
}

/// What tells one cloud from the other.
struct Plan {
    cloud: &'static str,
    region: &'static str,
    account: &'static str,
    /// First three numbers of its public IPv4 network.
    public4: &'static str,
    /// Its public IPv6 network without the final `::`.
    public6: &'static str,
    /// First three numbers of its private IPv4 network.
    private4: &'static str,
    /// Its private IPv6 network without the final `::`.
    private6: &'static str,
}

const AWS: Plan = Plan {
    cloud: "aws",
    region: "aws-use1",
    account: "111122223333",
    public4: "203.0.113",
    public6: "2001:db8:a",
    private4: "10.1.0",
    private6: "fd00:a",
};

const GCP: Plan = Plan {
    cloud: "gcp",
    region: "gcp-euw1",
    account: "weft-demo",
    public4: "198.51.100",
    public6: "2001:db8:b",
    private4: "10.2.0",
    private6: "fd00:b",
};

/// Port that the federators listen on.
const FEDERATOR_PORT: u16 = 7443;

/// A cloud's inside: its router with a LAN bridge, and two hosts on it.
struct Cloud {
    router: Host,
    nodes: [Node; 2],
}

impl World {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let internet = lab.host("inet")?;
        net::forward(&internet)?;
        let operator = lab.host("operator")?;
        attach(&internet, &operator, "op", "192.0.2", 9)?;
        let federators = [
            federator(&lab, &internet, &AWS)?,
            federator(&lab, &internet, &GCP)?,
        ];
        Ok(Self {
            lab,
            internet,
            operator,
            federators,
        })
    }

    /// A cloud with its router on the internet: public addresses .2 and ::2, the rest of the public network routed to it.
    fn cloud(&self, plan: &Plan) -> Result<Cloud> {
        let cloud = self.inside(plan)?;
        self.uplink(plan, &cloud.router)?;
        Ok(cloud)
    }

    /// A cloud without any way out yet.
    fn inside(&self, plan: &Plan) -> Result<Cloud> {
        let router = self.lab.host(&format!("{}-rt", plan.cloud))?;
        net::forward(&router)?;
        // On a hairpin the way back is the way in, and nobody needs to be told of a shorter one.
        router.sysctl("net.ipv4.conf.all.send_redirects", "0")?;
        let gateways = [
            format!("{}.1", plan.private4),
            format!("{}::1", plan.private6),
        ];
        let [four, six] = &gateways;
        net::bridge(
            &router,
            "lan",
            &[&format!("{four}/24"), &format!("{six}/64")],
        )?;
        let node = |number: u8| -> Result<Node> {
            let host = self.lab.host(&format!("{}{number}", plan.cloud))?;
            let last = number + 1;
            let addresses = [
                format!("{}.{last}/24", plan.private4),
                format!("{}::{last}/64", plan.private6),
            ];
            net::plug(
                &host,
                &[&addresses[0], &addresses[1]],
                &router,
                "lan",
                &[four, six],
            )?;
            Ok(Node {
                host,
                site: plan.site(number),
            })
        };
        let nodes = [node(1)?, node(2)?];
        Ok(Cloud { router, nodes })
    }

    /// Puts a router on the internet as the way out of a cloud.
    fn uplink(&self, plan: &Plan, router: &Host) -> Result<()> {
        let (four, six) = (plan.public4, plan.public6);
        net::wire(
            End {
                host: router,
                interface: "wan",
                addresses: &[&format!("{four}.2/30"), &format!("{six}::2/64")],
            },
            End {
                host: &self.internet,
                interface: plan.cloud,
                addresses: &[&format!("{four}.1/30"), &format!("{six}::1/64")],
            },
        )?;
        net::route(router, "default", &format!("{four}.1"))?;
        net::route(router, "default", &format!("{six}::1"))?;
        net::route(
            &self.internet,
            &format!("{four}.0/25"),
            &format!("{four}.2"),
        )
    }

    fn finish(
        self,
        name: &'static str,
        aws: &Cloud,
        gcp: &Cloud,
        flows: Vec<Flow>,
    ) -> Result<Topology> {
        let Self {
            lab,
            internet,
            operator,
            federators: [fed_aws, fed_gcp],
        } = self;
        let regions = vec![region(&AWS, fed_aws, aws)?, region(&GCP, fed_gcp, gcp)?];
        Ok(Topology {
            name,
            regions,
            operator,
            internet,
            flows,
            lab,
        })
    }
}

impl Plan {
    fn site(&self, number: u8) -> Site {
        Site {
            cloud: self.cloud.into(),
            account: self.account.into(),
            region: self.region.into(),
            zone: format!("{}-a", self.region),
            network: format!("{}-vpc", self.cloud),
            cluster: format!("{}-prod", self.cloud),
            namespace: if number == 1 {
                "web".into()
            } else {
                "data".into()
            },
        }
    }

    /// An address of the inside network.
    fn inside(&self, last: u8, port: u16) -> Result<SocketAddr> {
        socket(&format!("{}.{last}:{port}", self.private4))
    }

    /// A public address.
    fn outside(&self, last: u8, port: u16) -> Result<SocketAddr> {
        socket(&format!("{}.{last}:{port}", self.public4))
    }
}

fn federator(lab: &Lab, internet: &Host, plan: &Plan) -> Result<Host> {
    let host = lab.host(&format!("fed-{}", plan.cloud))?;
    attach(
        internet,
        &host,
        &format!("{}-fed", plan.cloud),
        plan.public4,
        249,
    )?;
    Ok(host)
}

fn region(plan: &Plan, federator: Host, cloud: &Cloud) -> Result<Region> {
    let address = plan.outside(250, FEDERATOR_PORT)?;
    Ok(Region {
        name: plan.region,
        federator,
        address,
        nodes: cloud.nodes.to_vec(),
    })
}

/// Puts a host on the internet with a wire of its own: the router is `.gateway`, the host the address after it.
fn attach(internet: &Host, host: &Host, interface: &str, network: &str, gateway: u8) -> Result<()> {
    let via = format!("{network}.{gateway}");
    net::wire(
        End {
            host,
            interface: "eth0",
            addresses: &[&format!("{network}.{}/30", gateway + 1)],
        },
        End {
            host: internet,
            interface,
            addresses: &[&format!("{via}/30")],
        },
    )?;
    net::route(host, "default", &via)
}

fn socket(text: &str) -> Result<SocketAddr> {
    text.parse().map_err(|_| LabError::Unreadable {
        what: "an address of the lab".into(),
        text: text.into(),
    })
}
