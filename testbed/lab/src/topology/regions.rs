//! Three regions, each a cloud behind NAT with a federator of its own, all talking to each other.

use super::clouds::{MASQUERADE, forwarded, forwards};
use super::{AWS, GCP, Plan, Topology, World, federator, region};
use crate::error::Result;

/// The third. Its public addresses are of the network for benchmarks: there are three for documentation, and the operator has one.
const ONPREM: Plan = Plan {
    cloud: "onprem",
    region: "onprem-dc1",
    account: "weft-lab",
    public4: "198.18.0",
    public6: "2001:db8:c",
    private4: "10.3.0",
    private6: "fd00:c",
};

/// Three regions of two hosts. The first host of each calls the next region, the second the one before: every link between two
/// regions is used both ways, and both ends of every connection are rewritten.
pub fn three() -> Result<Topology> {
    let world = World::new()?;
    let third = federator(&world.lab, &world.internet, &ONPREM)?;
    let plans = [&AWS, &GCP, &ONPREM];
    let clouds = [
        world.cloud(&AWS)?,
        world.cloud(&GCP)?,
        world.cloud(&ONPREM)?,
    ];
    for (plan, cloud) in plans.iter().zip(&clouds) {
        cloud
            .router
            .nft(&format!("{MASQUERADE}{}", forwards(plan)))?;
    }
    let mut flows = Vec::new();
    for from in 0..3 {
        for (number, to) in [(0, (from + 1) % 3), (1, (from + 2) % 3)] {
            let path = [&clouds[from].router, &clouds[to].router];
            let client = &clouds[from].nodes[number];
            flows.push(forwarded(client, plans[to], &clouds[to], number, &path)?);
        }
    }
    let [aws, gcp, onprem] = clouds;
    let mut topology = world.finish("three regions", &aws, &gcp, flows)?;
    topology.regions.push(region(&ONPREM, third, &onprem)?);
    Ok(topology)
}

impl Topology {
    /// Cuts everything between two regions, given by their numbers, and nothing else; or heals all cuts.
    pub fn set_link_cut(&self, between: Option<(usize, usize)>) -> Result<()> {
        let Some((one, other)) = between else {
            return self.internet.nft("");
        };
        // Names of clouds begin the names of their wires.
        let cloud = |number: usize| self.regions[number].nodes[0].site.cloud.clone();
        let (one, other) = (cloud(one), cloud(other));
        self.internet.nft(&format!(
            "table inet weft_cut {{ chain forward {{ type filter hook forward priority 0;\n\
             iifname \"{one}*\" oifname \"{other}*\" drop\n iifname \"{other}*\" oifname \"{one}*\" drop\n }} }}"
        ))
    }
}
