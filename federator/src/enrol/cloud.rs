//! What a cloud says of a machine, in place of a token: AWS's instance identity document, Google's instance identity token.
//! Checked offline; nobody is asked.

use serde::Deserialize;
use weft_transport::proof::{Jwt, ProofError, verify_pkcs7};
use weft_wire::Timestamp;

use crate::config::{Aws, Gcp};

/// AWS's own certificates, by region.
const AWS_CERTIFICATES: &str = include_str!("aws-certificates.pem");
/// Who makes Google's tokens.
const GOOGLE: [&str; 2] = ["https://accounts.google.com", "accounts.google.com"];
/// How far a cloud's clock may be ahead, in seconds.
const CLOCK_TOLERANCE_S: i64 = 60;

/// Why a machine is not let in.
#[derive(Debug, thiserror::Error)]
pub enum CloudRefused {
    /// The signature.
    #[error("the proof is not good: {0}")]
    Proof(#[from] ProofError),
    /// It does not say what such a document says.
    #[error("the proof cannot be read: {0}")]
    Content(String),
    /// It is a machine of somebody else.
    #[error("{what} {found:?} is not one that this federator lets in")]
    Stranger {
        /// Account, project, region, audience, issuer.
        what: &'static str,
        /// What the proof says.
        found: String,
    },
    /// It is from too long ago, or from a time to come.
    #[error("the proof is of another time: {0}")]
    Time(String),
    /// What it is checked with.
    #[error("{0}")]
    Settings(String),
}

fn stranger(what: &'static str, found: &str, allowed: &[String]) -> Result<(), CloudRefused> {
    if allowed.iter().any(|one| one == found) {
        return Ok(());
    }
    let found = found.chars().take(64).collect();
    Err(CloudRefused::Stranger { what, found })
}

fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CloudRefused> {
    serde_json::from_slice(bytes).map_err(|error| CloudRefused::Content(error.to_string()))
}

fn read(path: &std::path::Path) -> Result<String, CloudRefused> {
    std::fs::read_to_string(path)
        .map_err(|error| CloudRefused::Settings(format!("{}: {error}", path.display())))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AwsDocument {
    account_id: String,
    instance_id: String,
    region: String,
    pending_time: String,
}

/// The certificates of a file of several regions that belong to one: those after the line `# REGION`.
fn of_region(all: &str, region: &str) -> String {
    let mut here = false;
    let mut text = String::new();
    for line in all.lines() {
        if let Some(comment) = line.strip_prefix('#') {
            here = comment.trim() == region;
        } else if here {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// The name of an instance of AWS: its id.
pub fn aws(message: &str, settings: &Aws, now: Timestamp) -> Result<String, CloudRefused> {
    let all = match &settings.certificates {
        Some(path) => read(path)?,
        None => AWS_CERTIFICATES.to_owned(),
    };
    // Only the certificates of regions that are let in are tried, and each for its own region only.
    for region in &settings.regions {
        let certificates = of_region(&all, region);
        if certificates.is_empty() {
            return Err(CloudRefused::Settings(format!(
                "there is no certificate of AWS for region {region:?}: [enrol.aws] certificates"
            )));
        }
        let document = match verify_pkcs7(message, &certificates) {
            Ok(document) => document,
            Err(ProofError::Signature) => continue,
            Err(error) => return Err(error.into()),
        };
        let document: AwsDocument = json(&document)?;
        stranger("region", &document.region, std::slice::from_ref(region))?;
        stranger("account", &document.account_id, &settings.accounts)?;
        let started = whole_seconds(&document.pending_time)
            .ok_or_else(|| CloudRefused::Content("pendingTime".into()))?;
        let age_s = (now.0 - started.0) / 1_000_000;
        if !(-CLOCK_TOLERANCE_S..=i64::from(settings.max_age_minutes) * 60).contains(&age_s) {
            return Err(CloudRefused::Time(format!(
                "the instance was started at {started}; [enrol.aws] max_age_minutes is {}",
                settings.max_age_minutes
            )));
        }
        return Ok(document.instance_id);
    }
    Err(ProofError::Signature.into())
}

/// A time as AWS writes it, `2026-11-22T12:00:00Z`: ours have a fraction.
fn whole_seconds(text: &str) -> Option<Timestamp> {
    Timestamp::parse(&format!("{}.000000Z", text.strip_suffix('Z')?))
}

#[derive(Deserialize)]
struct Header {
    kid: String,
    alg: String,
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<Key>,
}

#[derive(Deserialize)]
struct Key {
    kid: String,
    kty: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    exp: i64,
    iat: i64,
    google: Google,
}

#[derive(Deserialize)]
struct Google {
    compute_engine: ComputeEngine,
}

#[derive(Deserialize)]
struct ComputeEngine {
    project_id: String,
    instance_id: String,
}

/// The name of an instance of Google's: `gce-` and its number. The token must have been asked for this audience.
pub fn gcp(
    token: &str,
    settings: &Gcp,
    audience: &str,
    now: Timestamp,
) -> Result<String, CloudRefused> {
    let jwt = Jwt::split(token)?;
    let header: Header = json(&jwt.header)?;
    if header.alg != "RS256" {
        return Err(ProofError::Form("its algorithm is not RS256").into());
    }
    let keys = read(&settings.keys)?;
    let keys: Keys = json(keys.as_bytes())
        .map_err(|error| CloudRefused::Settings(format!("{}: {error}", settings.keys.display())))?;
    let key = keys
        .keys
        .iter()
        .find(|key| key.kid == header.kid && key.kty == "RSA")
        .ok_or(ProofError::Signature)?;
    let claims: Claims = json(jwt.verify(&key.n, &key.e)?)?;
    if !GOOGLE.contains(&claims.iss.as_str()) {
        stranger("issuer", &claims.iss, &[])?;
    }
    stranger("audience", &claims.aud, &[audience.to_owned()])?;
    let compute = claims.google.compute_engine;
    stranger("project", &compute.project_id, &settings.projects)?;
    let now_s = now.0 / 1_000_000;
    if claims.exp <= now_s || claims.iat > now_s + CLOCK_TOLERANCE_S {
        return Err(CloudRefused::Time(format!(
            "it holds from {} to {} (seconds since 1970)",
            claims.iat, claims.exp
        )));
    }
    Ok(format!("gce-{}", compute.instance_id))
}

#[cfg(test)]
mod tests;
