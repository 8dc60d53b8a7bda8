//! Tokens: made, kept as hashes, used once. Used means used for good before anything is signed: a federator killed in
//! between has spent the token, and only the key that spent it may ask again.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use weft_transport::token::secret_hash;
use weft_wire::Timestamp;
use weft_wire::identity::Hidden;

use super::kept::Kept;

/// Most tokens that wait to be used or to expire; more are not made.
pub const MAX_TOKENS: usize = 4096;
/// Most names of which it is remembered that they have a certificate; beyond it the ones that end first are forgotten.
pub const MAX_NAMES: usize = 16_384;
/// Shortest time that a token may wait, in seconds.
pub const MIN_TTL_S: u32 = 10;
/// Longest time that a token may wait, in seconds.
pub const MAX_TTL_S: u32 = 7 * 86_400;

/// All of them.
#[derive(Debug)]
pub struct Tokens {
    kept: Kept,
    /// The federator's name.
    own: String,
    state: State,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    /// By the hash of the secret, hexadecimal.
    tokens: BTreeMap<String, Record>,
    /// Until when a name has a certificate that was signed here.
    names: BTreeMap<String, Timestamp>,
    /// The key that a cloud's instance had first. A document can be copied: who comes first with it is the instance.
    #[serde(default)]
    claimed: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    node: Option<String>,
    expires_at: Timestamp,
    by: String,
    /// The federator that made it. A copy of the file at another one would spend it twice.
    #[serde(default)]
    at: String,
    used: Option<Used>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Used {
    key: String,
    name: String,
}

/// Why a token does not let in.
#[derive(Debug, thiserror::Error)]
pub enum TokenRefused {
    /// Nobody made it here, or it expired long ago.
    #[error(
        "this federator knows no such token; tokens are known where they were made, until they expire"
    )]
    Unknown,
    /// Another federator's file was copied.
    #[error("the token was made by the federator {0:?}, and is spent there only")]
    Elsewhere(String),
    /// Its time is over.
    #[error("the token expired at {0}")]
    Expired(Timestamp),
    /// It let in another key.
    #[error("the token was used before: a token lets in one node, once")]
    Used,
    /// It is for another node.
    #[error("the token is for the node {0:?}")]
    OtherNode(String),
    /// No name was given, and the token has none.
    #[error("the token leaves the name to the node, and it gave none")]
    NoName,
    /// Somebody has the name.
    #[error("there is an agent {0:?} already, and the token is not for that name")]
    Taken(String),
    /// Too many wait.
    #[error("{MAX_TOKENS} tokens wait to be used")]
    Full,
    /// It could not be made durable: nothing is done.
    #[error("{0:#}")]
    Disk(anyhow::Error),
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Tokens {
    /// Those that are kept, by the federator of this name.
    pub fn open(folder: &Path, own: &str) -> anyhow::Result<Self> {
        let kept = Kept::at(folder, "tokens.json");
        let state = kept.read()?;
        let own = own.to_owned();
        Ok(Self { kept, own, state })
    }

    /// A token's secret becomes good.
    pub fn create(
        &mut self,
        secret: &Hidden,
        node: Option<String>,
        expires_at: Timestamp,
        by: String,
        now: Timestamp,
    ) -> Result<(), TokenRefused> {
        let mut next = self.state.clone();
        next.tokens.retain(|_, record| record.expires_at > now);
        if next.tokens.len() >= MAX_TOKENS {
            return Err(TokenRefused::Full);
        }
        let record = Record {
            node,
            expires_at,
            by,
            at: self.own.clone(),
            used: None,
        };
        next.tokens.insert(hex(&secret_hash(secret)), record);
        self.keep(next)
    }

    /// Spends a token for a key and gives the name that it may have. `taken` says whether somebody has a name that the token
    /// was not made for.
    pub fn redeem(
        &mut self,
        secret: &Hidden,
        wanted: &str,
        key: &[u8; 32],
        now: Timestamp,
        taken: impl FnOnce(&str) -> bool,
    ) -> Result<String, TokenRefused> {
        let hash = hex(&secret_hash(secret));
        let record = self.state.tokens.get(&hash).ok_or(TokenRefused::Unknown)?;
        // A file from before this was noted names nobody.
        if !record.at.is_empty() && record.at != self.own {
            return Err(TokenRefused::Elsewhere(record.at.clone()));
        }
        if record.expires_at <= now {
            return Err(TokenRefused::Expired(record.expires_at));
        }
        let key = hex(key);
        if let Some(used) = &record.used {
            // Its answer was lost: the same key may have the same name again.
            return if used.key == key && (wanted.is_empty() || wanted == used.name) {
                Ok(used.name.clone())
            } else {
                Err(TokenRefused::Used)
            };
        }
        let name = match &record.node {
            Some(node) if wanted.is_empty() || wanted == node => node.clone(),
            Some(node) => return Err(TokenRefused::OtherNode(node.clone())),
            None if wanted.is_empty() => return Err(TokenRefused::NoName),
            None if self.has(wanted, now) || taken(wanted) => {
                return Err(TokenRefused::Taken(wanted.into()));
            }
            None => wanted.to_owned(),
        };
        let mut next = self.state.clone();
        if let Some(record) = next.tokens.get_mut(&hash) {
            record.used = Some(Used {
                key,
                name: name.clone(),
            });
        }
        self.keep(next)?;
        Ok(name)
    }

    /// A cloud's word lets in one key for each name, for good.
    pub fn claim(&mut self, name: &str, key: &[u8; 32]) -> Result<(), TokenRefused> {
        let key = hex(key);
        match self.state.claimed.get(name) {
            Some(first) if *first == key => return Ok(()),
            Some(_) => return Err(TokenRefused::Taken(name.into())),
            None if self.state.claimed.len() >= MAX_NAMES => return Err(TokenRefused::Full),
            None => {}
        }
        let mut next = self.state.clone();
        next.claimed.insert(name.into(), key);
        self.keep(next)
    }

    /// A certificate was signed for a name.
    pub fn signed(
        &mut self,
        name: &str,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<(), TokenRefused> {
        let mut next = self.state.clone();
        next.names.retain(|_, until| *until > now);
        if next.names.len() >= MAX_NAMES
            && let Some(first) = next.names.iter().min_by_key(|(_, until)| **until)
        {
            let first = first.0.clone();
            next.names.remove(&first);
        }
        next.names.insert(name.into(), until);
        self.keep(next)
    }

    fn has(&self, name: &str, now: Timestamp) -> bool {
        self.state.names.get(name).is_some_and(|until| *until > now)
    }

    /// On the disk first: what could not be written did not happen.
    fn keep(&mut self, next: State) -> Result<(), TokenRefused> {
        self.kept.write(&next).map_err(TokenRefused::Disk)?;
        self.state = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_transport::token::new_secret;

    const NOW: Timestamp = Timestamp(1_000);
    const OWN: &str = "fed-a";
    const LATER: Timestamp = Timestamp(2_000);

    fn made(node: Option<&str>) -> (tempfile::TempDir, Hidden) {
        let dir = tempfile::tempdir().unwrap();
        let secret = new_secret().unwrap();
        Tokens::open(dir.path(), OWN)
            .unwrap()
            .create(&secret, node.map(str::to_owned), LATER, "alice".into(), NOW)
            .unwrap();
        (dir, secret)
    }

    fn free(_: &str) -> bool {
        false
    }

    #[test]
    fn a_token_lets_in_one_key_and_stays_used_after_a_kill() {
        let (dir, secret) = made(None);
        let redeem = |wanted: &str, key: u8, now| {
            // Opened anew each time: nothing but the file is there, as after a kill.
            Tokens::open(dir.path(), OWN)
                .unwrap()
                .redeem(&secret, wanted, &[key; 32], now, free)
        };
        assert!(matches!(
            redeem("n1", 1, LATER),
            Err(TokenRefused::Expired(_))
        ));
        assert_eq!(redeem("n1", 1, NOW).unwrap(), "n1");
        assert!(matches!(redeem("n1", 2, NOW), Err(TokenRefused::Used)));
        assert!(matches!(redeem("n2", 1, NOW), Err(TokenRefused::Used)));
        assert_eq!(redeem("n1", 1, NOW).unwrap(), "n1", "its answer was lost");
        let text = std::fs::read_to_string(dir.path().join("tokens.json")).unwrap();
        assert!(!text.contains(&secret.0), "only its hash is kept");
    }

    #[test]
    fn a_copy_of_the_file_at_another_federator_lets_in_nobody() {
        let (dir, secret) = made(None);
        let redeem = |own: &str| {
            let mut tokens = Tokens::open(dir.path(), own).unwrap();
            tokens.redeem(&secret, "n1", &[1; 32], NOW, free)
        };
        assert!(matches!(redeem("fed-b"), Err(TokenRefused::Elsewhere(at)) if at == OWN));
        assert_eq!(redeem(OWN).unwrap(), "n1");
    }

    #[test]
    fn names_are_bound_or_free() {
        let (dir, bound) = made(Some("n1"));
        let mut tokens = Tokens::open(dir.path(), OWN).unwrap();
        let other = tokens.redeem(&bound, "n2", &[1; 32], NOW, free);
        assert!(matches!(other, Err(TokenRefused::OtherNode(_))));
        // Made for that name: also when there is such an agent.
        assert_eq!(
            tokens.redeem(&bound, "", &[1; 32], NOW, |_| true).unwrap(),
            "n1"
        );
        tokens.signed("n1", LATER, NOW).unwrap();
        let secret = new_secret().unwrap();
        tokens
            .create(&secret, None, LATER, "alice".into(), NOW)
            .unwrap();
        for (name, seen) in [("n1", false), ("n3", true)] {
            let taken = tokens.redeem(&secret, name, &[2; 32], NOW, |_| seen);
            assert!(matches!(taken, Err(TokenRefused::Taken(_))), "{name}");
        }
        let none = tokens.redeem(&secret, "", &[2; 32], NOW, free);
        assert!(matches!(none, Err(TokenRefused::NoName)));
        assert_eq!(
            tokens.redeem(&secret, "n2", &[2; 32], NOW, free).unwrap(),
            "n2"
        );
        let unknown = tokens.redeem(&new_secret().unwrap(), "n4", &[2; 32], NOW, free);
        assert!(matches!(unknown, Err(TokenRefused::Unknown)));
    }

    #[test]
    fn a_copied_document_of_a_cloud_is_worth_nothing() {
        let (dir, _) = made(None);
        let claim = |key: u8| {
            Tokens::open(dir.path(), OWN)
                .unwrap()
                .claim("i-1", &[key; 32])
        };
        claim(1).unwrap();
        assert!(matches!(claim(2), Err(TokenRefused::Taken(_))));
        claim(1).unwrap();
    }

    #[test]
    fn what_cannot_be_written_did_not_happen() {
        let (dir, secret) = made(None);
        let mut tokens = Tokens::open(dir.path(), OWN).unwrap();
        let path = dir.path().to_path_buf();
        drop(dir);
        assert!(!path.exists());
        let refused = tokens.redeem(&secret, "n1", &[1; 32], NOW, free);
        assert!(matches!(refused, Err(TokenRefused::Disk(_))));
        std::fs::create_dir(&path).unwrap();
        let again = tokens.redeem(&secret, "n1", &[2; 32], NOW, free);
        assert_eq!(again.unwrap(), "n1", "it was not spent");
        std::fs::remove_dir_all(&path).unwrap();
    }
}
