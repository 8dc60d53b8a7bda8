//! Weft's answers, read from the JSON that its users get.

use serde::Deserialize;
use serde_json::Value;

use crate::error::{LabError, Result};

/// A row of `weft connections --format json`: what the lab looks at.
#[derive(Clone, Debug, Deserialize)]
pub struct Row {
    /// Its id.
    pub id: String,
    /// `open`, `closed` or `failed`.
    pub state: String,
    /// The client's end, where it was seen.
    pub client: Option<RowEnd>,
    /// The server's end, where it was seen.
    pub server: Option<RowEnd>,
    /// How the two were matched.
    #[serde(rename = "match")]
    pub matched: Option<RowMatch>,
    /// How the bytes travelled.
    pub path: RowPath,
    /// The name under which the client knew the server.
    pub name: Option<RowName>,
    /// What goes on through proxies; of `--chains`.
    #[serde(default)]
    pub chain: Vec<RowStep>,
}

/// A name of a row.
#[derive(Clone, Debug, Deserialize)]
pub struct RowName {
    /// The name.
    pub name: String,
    /// How it was known.
    pub source: String,
    /// How long before.
    pub before_us: u64,
}

/// Another connection of a proxy that is the same way.
#[derive(Clone, Debug, Deserialize)]
pub struct RowStep {
    /// `to` or `from`.
    pub direction: String,
    /// Name of the proxy's agent.
    pub agent: String,
    /// Its process.
    pub process: Option<String>,
    /// The other connection; none when several would fit.
    pub connection: Option<String>,
    /// What links them.
    pub evidence: String,
    /// How sure that is.
    pub confidence: Option<String>,
    /// How many would fit.
    pub fitting: u32,
}

/// One end of a row.
#[derive(Clone, Debug, Deserialize)]
pub struct RowEnd {
    /// Name of the agent: in the lab, of the host.
    pub agent: String,
    /// Workload.
    pub workload: String,
    /// Process.
    pub process: Option<RowProcess>,
    /// Own address.
    pub local: String,
    /// The peer.
    pub remote: String,
    /// Payload sent.
    pub bytes_sent: u64,
    /// Payload received.
    pub bytes_received: u64,
}

/// A process of a row.
#[derive(Clone, Debug, Deserialize)]
pub struct RowProcess {
    /// Process id.
    pub pid: u32,
    /// Name.
    pub name: String,
}

/// A match of a row.
#[derive(Clone, Debug, Deserialize)]
pub struct RowMatch {
    /// Rule.
    pub evidence: String,
    /// How sure.
    pub confidence: String,
    /// What was rewritten.
    pub nat: Vec<String>,
}

/// The path of a row.
#[derive(Clone, Debug, Deserialize)]
pub struct RowPath {
    /// Path class.
    pub class: String,
    /// Why there is no match.
    pub unmatched: Option<String>,
}

/// The rows of an answer in the versioned envelope; an answer that was cut off is an error.
pub fn rows(answer: &Value) -> Result<Vec<Row>> {
    let unreadable = |text: String| LabError::Unreadable {
        what: "weft's connections".into(),
        text,
    };
    if answer["truncated"] != Value::Bool(false) {
        return Err(unreadable("the answer was cut off".into()));
    }
    serde_json::from_value(answer["rows"].clone()).map_err(|error| unreadable(error.to_string()))
}

/// Of `weft health`: federators that answered, agents connected, peers connected.
pub fn connected(health: &Value) -> (usize, usize, usize) {
    let federators: Vec<_> = list(&health["rows"])
        .iter()
        .filter(|f| f["reached"] == Value::Bool(true))
        .collect();
    let count = |key: &str| {
        let all = federators
            .iter()
            .flat_map(|federator| list(&federator[key]));
        all.filter(|one| one["connected"] == Value::Bool(true))
            .count()
    };
    (federators.len(), count("agents"), count("peers"))
}

/// Federators that did not answer, as the completeness of an answer has them.
pub fn unreachable(answer: &Value) -> Vec<String> {
    let federators = list(&answer["completeness"]["federators"]).iter();
    let silent = federators.filter(|f| f["reached"] == Value::Bool(false));
    silent
        .filter_map(|f| f["federator"].as_str())
        .map(str::to_owned)
        .collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
