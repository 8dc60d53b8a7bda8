//! Rules on the dependency graph: they keep the deciding code pure and each policy in its one place.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::layout::Layout;
use crate::sh::capture;

/// Crates that decide and do nothing else: no IO, no clock, no threads, no hidden randomness.
const PURE: &[&str] = &[
    "weft-wire",
    "weft-stitching",
    "weft-dns",
    "weft-mesh",
    "weft-simulator",
    "weft-agent-common",
];

/// Dependencies that look impure and are not, each for as long as the crate that has them is built without these features
/// (crate, its dependency, features). What is behind such a dependency is another's: features are united over
/// the workspace, so `rand` has its source of randomness here, but only hickory-proto's own `std` would let it draw.
const HARMLESS: &[(&str, &str, &[&str])] = &[
    ("hickory-proto", "rand", &["std", "no-std-rand"]),
    // It is given its randomness, as a type of its caller's.
    ("foca", "rand", &[]),
];

/// What a pure crate may not even reach through others (a name, or the start of one when it ends in `*`).
const IMPURE: &[&str] = &[
    "tokio*",
    "mio",
    "async-*",
    "futures-executor",
    "quinn*",
    "rustls*",
    "hyper*",
    "reqwest",
    "socket2",
    "nix",
    "rustix",
    "aya*",
    "procfs*",
    "duckdb",
    "libduckdb-sys",
    "tempfile",
    "rand",
    "fastrand",
    "getrandom",
    "jiff",
    "time",
    "chrono",
    "tracing-subscriber",
    "rayon*",
    "crossbeam*",
];

/// Depends on none of our crates; a QUIC client and server of its own are among the programs whose traffic is looked at.
const LAB: &str = "weft-lab";

/// Only [`TRANSPORT`] may depend on these: no other crate touches a certificate.
const CERTIFICATES: &[&str] = &[
    "quinn*",
    "rustls*",
    "rcgen",
    "x509-parser",
    "webpki*",
    "ring",
    "aws-lc-rs",
    "tokio-rustls",
    "native-tls",
    "openssl*",
];
const TRANSPORT: &str = "weft-transport";

/// Only [`CLOUD_CONTEXT`] may depend on these: no other crate knows a provider.
const PROVIDERS: &[&str] = &[
    "aws-*",
    "azure*",
    "gcp*",
    "google-cloud*",
    "gcloud*",
    "googleapis*",
];
const CLOUD_CONTEXT: &str = "weft-cloud-context";

/// Only [`KUBERNETES`] may depend on these: the client of a cluster's API, which the agent needs without any cloud's.
const CLUSTER_API: &[&str] = &["kube*", "k8s-openapi"];
const KUBERNETES: &str = "weft-kubernetes";

/// Who may depend on whom, in the order in which data flows. Tests may use more.
const LAYERS: &[(&str, &[&str])] = &[
    ("weft-agent-common", &[]),
    ("weft-agent-ebpf", &["weft-agent-common"]),
    ("weft-wire", &[]),
    ("weft-stitching", &[]),
    ("weft-dns", &["weft-wire"]),
    ("weft-mesh", &["weft-stitching", "weft-wire"]),
    (
        "weft-simulator",
        &["weft-mesh", "weft-stitching", "weft-wire"],
    ),
    ("weft-cloud-context", &["weft-wire"]),
    ("weft-transport", &["weft-wire"]),
    ("weft-kubernetes", &["weft-wire"]),
    (
        "weft-agent",
        &[
            "weft-agent-common",
            "weft-dns",
            "weft-kubernetes",
            "weft-transport",
            "weft-wire",
        ],
    ),
    (
        "weft-federator",
        &[
            "weft-cloud-context",
            "weft-dns",
            "weft-mesh",
            "weft-stitching",
            "weft-transport",
            "weft-wire",
        ],
    ),
    ("weft-cli", &["weft-transport", "weft-wire"]),
    // The lab judges the programs by what they print, never by their own code.
    ("weft-lab", &[]),
    // A fleet of agents in one process is made of the agent's own session machine.
    (
        "weft-bench",
        &[
            "weft-agent",
            "weft-stitching",
            "weft-transport",
            "weft-wire",
        ],
    ),
    ("xtask", &[]),
];

/// The part of `cargo metadata` that the rules look at.
#[derive(Default)]
struct Graph {
    /// Package id to name.
    names: BTreeMap<String, String>,
    members: BTreeSet<String>,
    /// Package id to the ids it depends on at run time.
    normal: BTreeMap<String, Vec<String>>,
    /// Package id to the features it is built with.
    features: BTreeMap<String, Vec<String>>,
    /// Member name to the names it declares, of any kind.
    declared: BTreeMap<String, Vec<String>>,
}

/// Reads the graph and applies all rules.
pub fn check(layout: &Layout) -> Result<()> {
    let text = capture(
        layout
            .cargo()
            .args(["metadata", "--format-version", "1", "--quiet"]),
    )?;
    let graph = Graph::read(&serde_json::from_str(&text).context("cargo metadata is not JSON")?);
    super::report(&graph.findings())
}

impl Graph {
    fn read(metadata: &Value) -> Self {
        let mut graph = Self::default();
        for package in array(&metadata["packages"]) {
            let (id, name) = (string(&package["id"]), string(&package["name"]));
            let declared = array(&package["dependencies"])
                .map(|dependency| string(&dependency["name"]))
                .collect();
            graph.declared.insert(name.clone(), declared);
            graph.names.insert(id, name);
        }
        graph.members = array(&metadata["workspace_members"]).map(string).collect();
        for node in array(&metadata["resolve"]["nodes"]) {
            let runtime = array(&node["deps"])
                .filter(|dep| array(&dep["dep_kinds"]).any(|kind| kind["kind"].is_null()))
                .map(|dep| string(&dep["pkg"]));
            graph.normal.insert(string(&node["id"]), runtime.collect());
            let features = array(&node["features"]).map(string).collect();
            graph.features.insert(string(&node["id"]), features);
        }
        graph
    }

    fn findings(&self) -> Vec<String> {
        let mut findings = Vec::new();
        for id in &self.members {
            let name = self.name(id);
            if PURE.contains(&name) {
                findings.extend(
                    self.reached(id)
                        .into_iter()
                        .filter(|(crate_, _)| matches(crate_, IMPURE))
                        .map(|(crate_, path)| {
                            format!(
                                "{name} must stay pure and depends on {crate_} ({})",
                                path.join(" > ")
                            )
                        }),
                );
            }
            for declared in self.declared.get(name).into_iter().flatten() {
                if ![TRANSPORT, LAB].contains(&name) && matches(declared, CERTIFICATES) {
                    findings.push(format!(
                        "{name} depends on {declared}: only {TRANSPORT} touches certificates"
                    ));
                }
                if name != KUBERNETES && matches(declared, CLUSTER_API) {
                    findings.push(format!(
                        "{name} depends on {declared}: only {KUBERNETES} speaks with clusters"
                    ));
                }
                if name != CLOUD_CONTEXT && matches(declared, PROVIDERS) {
                    findings.push(format!(
                        "{name} depends on {declared}: only {CLOUD_CONTEXT} knows providers"
                    ));
                }
            }
            findings.extend(self.layering(id));
        }
        findings
    }

    /// A member's dependencies on other members against [`LAYERS`].
    fn layering(&self, id: &str) -> Vec<String> {
        let name = self.name(id);
        let Some((_, allowed)) = LAYERS.iter().find(|(layer, _)| *layer == name) else {
            return vec![format!(
                "{name} has no row in the table of layers (xtask/src/tidy/graph.rs)"
            )];
        };
        let runtime = self.normal.get(id).into_iter().flatten();
        runtime
            .filter(|dep| self.members.contains(*dep) && !allowed.contains(&self.name(dep)))
            .map(|dep| {
                format!(
                    "{name} may not depend on {} (table of layers)",
                    self.name(dep)
                )
            })
            .collect()
    }

    /// Every crate reached at run time, with the way there.
    fn reached(&self, from: &str) -> BTreeMap<String, Vec<String>> {
        let mut found = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut open = vec![(from, Vec::new())];
        while let Some((id, path)) = open.pop() {
            for next in self.normal.get(id).into_iter().flatten() {
                if !self.harmless(id, next) && seen.insert(next) {
                    let mut path = path.clone();
                    path.push(self.name(next).to_owned());
                    found.insert(self.name(next).to_owned(), path.clone());
                    open.push((next, path));
                }
            }
        }
        found
    }

    /// Whether [`HARMLESS`] speaks for a dependency.
    fn harmless(&self, id: &str, next: &str) -> bool {
        let built_with = self.features.get(id).map_or(&[][..], Vec::as_slice);
        HARMLESS.iter().any(|(crate_, dependency, features)| {
            (self.name(id), self.name(next)) == (crate_, dependency)
                && !built_with
                    .iter()
                    .any(|built| features.contains(&built.as_str()))
        })
    }

    fn name(&self, id: &str) -> &str {
        self.names.get(id).map_or("?", String::as_str)
    }
}

fn matches(name: &str, patterns: &[&str]) -> bool {
    patterns
        .iter()
        .any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == *pattern,
        })
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// `edges` are (from, to, kind); every crate whose name starts with "weft" is a member.
    fn graph(edges: &[(&str, &str, Option<&str>)]) -> Graph {
        let names: BTreeSet<&str> = edges
            .iter()
            .flat_map(|(from, to, _)| [*from, *to])
            .collect();
        let of = |name: &str| {
            edges
                .iter()
                .filter(move |(from, ..)| *from == name)
                .collect::<Vec<_>>()
        };
        let packages: Vec<Value> = names
            .iter()
            .map(|name| {
                let declared: Vec<Value> = of(name)
                    .iter()
                    .map(|(_, to, _)| json!({"name": to}))
                    .collect();
                json!({"id": name, "name": name, "dependencies": declared})
            })
            .collect();
        let nodes: Vec<Value> = names
            .iter()
            .map(|name| {
                let deps: Vec<Value> = of(name)
                    .iter()
                    .map(|(_, to, kind)| json!({"pkg": to, "dep_kinds": [{"kind": kind}]}))
                    .collect();
                json!({"id": name, "deps": deps})
            })
            .collect();
        let members: Vec<&&str> = names
            .iter()
            .filter(|name| name.starts_with("weft"))
            .collect();
        Graph::read(
            &json!({"packages": packages, "workspace_members": members, "resolve": {"nodes": nodes}}),
        )
    }

    #[test]
    fn purity_reaches_through_others() {
        let findings = graph(&[
            ("weft-stitching", "innocent", None),
            ("innocent", "tokio-util", None),
        ])
        .findings();
        assert_eq!(
            findings,
            ["weft-stitching must stay pure and depends on tokio-util (innocent > tokio-util)"]
        );
        assert!(
            graph(&[("weft-stitching", "tokio", Some("dev"))])
                .findings()
                .is_empty()
        );
    }

    #[test]
    fn what_is_harmless_without_a_feature_is_not_with_it() {
        let edges = [
            ("weft-dns", "hickory-proto", None),
            ("hickory-proto", "rand", None),
        ];
        let mut graph = graph(&edges);
        assert!(graph.findings().is_empty());
        graph
            .features
            .insert("hickory-proto".into(), vec!["std".into()]);
        assert_eq!(graph.findings().len(), 1);
    }

    #[test]
    fn certificates_and_providers_have_one_home_each() {
        assert!(
            graph(&[("weft-transport", "rustls", None)])
                .findings()
                .is_empty()
        );
        assert!(graph(&[("weft-lab", "quinn", None)]).findings().is_empty());
        assert_eq!(
            graph(&[("weft-agent", "rustls-pemfile", None)])
                .findings()
                .len(),
            1
        );
        assert_eq!(
            graph(&[("weft-agent", "rcgen", Some("dev"))])
                .findings()
                .len(),
            1
        );
        assert_eq!(
            graph(&[("weft-federator", "aws-sdk-ec2", None)])
                .findings()
                .len(),
            1
        );
        assert!(
            graph(&[("weft-kubernetes", "kube-client", None)])
                .findings()
                .is_empty()
        );
        assert_eq!(
            graph(&[("weft-agent", "kube-client", None)])
                .findings()
                .len(),
            1
        );
    }

    #[test]
    fn data_flows_one_way() {
        assert!(
            graph(&[("weft-federator", "weft-stitching", None)])
                .findings()
                .is_empty()
        );
        assert_eq!(
            graph(&[("weft-stitching", "weft-wire", None)])
                .findings()
                .len(),
            1
        );
        assert_eq!(
            graph(&[("weft-unheard-of", "serde", None)])
                .findings()
                .len(),
            1
        );
    }
}
