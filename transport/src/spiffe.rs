//! Names: `spiffe://DOMAIN/region/REGION/{agent,federator,operator,admin}/NAME`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;
use weft_wire::AgentKey;

/// Longest part (domain, region, name) of a SPIFFE id here.
pub const MAX_PART_BYTES: usize = 128;

/// What a certificate's holder may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerRole {
    /// Reports connections of its own host.
    Agent,
    /// Takes agents, stitches, answers.
    Federator,
    /// A person or program that asks.
    Operator,
    /// An operator who may also let in and shut out.
    Admin,
}

impl PeerRole {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::Agent, Self::Federator, Self::Operator, Self::Admin];

    /// As in the SPIFFE id.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Federator => "federator",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for PeerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PeerRole {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or_else(|| SpiffeError::Role(text.into()))
    }
}

/// A name that a certificate proves. Only valid ones can be made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    domain: String,
    region: String,
    role: PeerRole,
    name: String,
}

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpiffeError {
    /// Not of the form.
    #[error("{0:?} is not spiffe://DOMAIN/region/REGION/ROLE/NAME")]
    Form(String),
    /// An unknown role.
    #[error("{0:?} is not a role: agent, federator, operator or admin")]
    Role(String),
    /// A part with other characters, empty or too long.
    #[error(
        "{what} {text:?} must have 1 to {MAX_PART_BYTES} letters, digits, '.', '_' or '-', and not only dots"
    )]
    Part {
        /// Which part.
        what: &'static str,
        /// What it is.
        text: String,
    },
}

impl SpiffeId {
    /// Makes a name of its parts.
    pub fn new(
        domain: &str,
        region: &str,
        role: PeerRole,
        name: &str,
    ) -> Result<Self, SpiffeError> {
        check_domain(domain)?;
        check_part("region", region)?;
        check_part("name", name)?;
        Ok(Self {
            domain: domain.into(),
            region: region.into(),
            role,
            name: name.into(),
        })
    }

    /// Trust domain.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Region.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Role.
    pub fn role(&self) -> PeerRole {
        self.role
    }

    /// Name within region and role.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The first 8 bytes of BLAKE3 of the whole id, little-endian.
    pub fn key(&self) -> AgentKey {
        let hash = blake3::hash(self.to_string().as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        AgentKey(u64::from_le_bytes(first))
    }
}

/// What a CA's own name lets it sign for: a trust domain (`spiffe://DOMAIN`), or one region of it
/// (`spiffe://DOMAIN/region/REGION`). `None`: it is no such name.
pub(crate) fn scope(uri: &str) -> Option<(&str, Option<&str>)> {
    let rest = uri.strip_prefix("spiffe://")?;
    let (domain, path) = match rest.split_once('/') {
        Some((domain, path)) => (domain, Some(path)),
        None => (rest, None),
    };
    check_domain(domain).ok()?;
    let Some(path) = path.filter(|path| !path.is_empty()) else {
        return Some((domain, None));
    };
    let region = path.strip_prefix("region/")?;
    check_part("region", region).ok()?;
    Some((domain, Some(region)))
}

/// Checks a trust domain: as every part, in lower case.
pub(crate) fn check_domain(domain: &str) -> Result<(), SpiffeError> {
    check_part("trust domain", domain)?;
    if domain.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(SpiffeError::Part {
            what: "trust domain (in lower case)",
            text: domain.into(),
        });
    }
    Ok(())
}

fn check_part(what: &'static str, text: &str) -> Result<(), SpiffeError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let well_formed = (1..=MAX_PART_BYTES).contains(&text.len())
        && text.bytes().all(allowed)
        && text.bytes().any(|b| b != b'.');
    if well_formed {
        Ok(())
    } else {
        Err(SpiffeError::Part {
            what,
            text: text.into(),
        })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/region/{}/{}/{}",
            self.domain, self.region, self.role, self.name
        )
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || SpiffeError::Form(text.chars().take(4 * MAX_PART_BYTES).collect());
        let mut parts = text.strip_prefix("spiffe://").ok_or_else(form)?.split('/');
        let mut part = || parts.next().ok_or_else(form);
        let (domain, keyword, region, role, name) = (part()?, part()?, part()?, part()?, part()?);
        if keyword != "region" || parts.next().is_some() {
            return Err(form());
        }
        Self::new(domain, region, role.parse()?, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses() {
        let text = "spiffe://weft.example/region/aws-use1/agent/node-a1";
        let id: SpiffeId = text.parse().unwrap();
        assert_eq!(
            (id.domain(), id.region(), id.role(), id.name()),
            ("weft.example", "aws-use1", PeerRole::Agent, "node-a1")
        );
        assert_eq!(id.to_string(), text);
        assert_ne!(
            id.key(),
            text.replace("a1", "a2").parse::<SpiffeId>().unwrap().key()
        );
    }

    #[test]
    fn refuses_what_is_not_a_name() {
        for text in [
            "",
            "spiffe://",
            "https://weft.example/region/r/agent/n",
            "spiffe://weft.example/region/r/agent",
            "spiffe://weft.example/region/r/agent/n/more",
            "spiffe://weft.example/region/r/agent/",
            "spiffe://weft.example/region/r/agent/..",
            "spiffe://weft.example/region/r/root/n",
            "spiffe://weft.example/zone/r/agent/n",
            "spiffe://Weft.example/region/r/agent/n",
            "spiffe://weft.example/region/r r/agent/n",
            "spiffe://weft.example/region/r%20r/agent/n",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
