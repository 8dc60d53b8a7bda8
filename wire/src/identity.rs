//! Who may be who: tokens, certificates signed and renewed, revocations.
//!
//! One request is one bidirectional stream: an [`IdentityRequest`] frame, then one [`IdentityAnswer`]. Nothing here knows a
//! certificate's inside; requests and certificates travel as the bytes that `transport` makes and reads.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::query::QueryError;

/// Most revocations in one [`IdentityRequest::Share`]; more are more requests.
pub const MAX_SHARED: usize = 1000;

/// A text that no log and no error shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hidden(pub String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdentityRequest {
    /// Administrator to federator: a token with which one node may join.
    CreateToken {
        /// What the node will be: `agent`.
        role: String,
        /// Its region, which must be the federator's.
        region: String,
        /// Its name; `None` leaves it to the node, among names that are not taken.
        node: Option<String>,
        /// How long the token may wait, in seconds.
        ttl_s: u32,
    },
    /// Node to federator, without a certificate, at the address for it alone.
    Join {
        /// Why it may.
        proof: Proof,
        /// The name it wants; empty where the proof has one.
        name: String,
        /// PKCS #10, DER; only its key counts.
        request: Vec<u8>,
    },
    /// Agent to federator, on its own session: another certificate for the same name.
    Renew {
        /// PKCS #10, DER; only its key counts.
        request: Vec<u8>,
    },
    /// Administrator to federator: these are shut out, or no longer.
    Revoke {
        /// Who.
        subject: Subject,
        /// `false` lets them in again.
        revoked: bool,
    },
    /// Operator to federator: all that is revoked.
    Revoked,
    /// Federator to federator: what it knows to be revoked.
    Share(Vec<Revocation>),
}

impl IdentityRequest {
    /// Name of the kind of request, in tables and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CreateToken { .. } => "create-token",
            Self::Join { .. } => "join",
            Self::Renew { .. } => "renew",
            Self::Revoke { .. } => "revoke",
            Self::Revoked => "revoked",
            Self::Share(_) => "share",
        }
    }
}

/// Why a node may join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proof {
    /// The secret of a token.
    Token(Hidden),
    /// AWS's instance identity document with its signature (`rsa2048`): PKCS #7, base64.
    Aws(Hidden),
    /// Google's instance identity token: a JWT.
    Gcp(Hidden),
}

/// Who is shut out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Subject {
    /// Every certificate of this name: a whole SPIFFE id.
    Name(String),
    /// One certificate, or a CA under the root and all that it signed: the serial number in lower hexadecimal digits.
    Serial(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Serial(serial) => write!(f, "serial {serial}"),
        }
    }
}

/// A word on a subject. Of two on the same the later counts, of two at one time the one that shuts out: in whatever order
/// they arrive, all federators come to the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// About whom.
    pub subject: Subject,
    /// `false`: let in again.
    pub revoked: bool,
    /// When it was said.
    pub at: Timestamp,
    /// Who said it.
    pub by: String,
}

impl Revocation {
    /// Whether this counts rather than `other`, which is on the same subject.
    pub fn supersedes(&self, other: &Self) -> bool {
        (self.at, self.revoked) > (other.at, other.revoked)
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdentityAnswer {
    /// To [`IdentityRequest::CreateToken`].
    Token {
        /// To be pasted; nowhere kept.
        token: Hidden,
        /// Until when it is good.
        expires_at: Timestamp,
    },
    /// To [`IdentityRequest::Join`] and [`IdentityRequest::Renew`].
    Certificate {
        /// The leaf and what stands between it and the root, PEM.
        chain: String,
        /// Whom to trust, PEM.
        roots: String,
        /// Where agents of the region report, `host:port`; empty where the asker knows.
        federator: String,
    },
    /// To [`IdentityRequest::Revoked`].
    Revoked(Vec<Revocation>),
    /// To the rest: done, and durable here.
    Done,
    /// Not done.
    Error(QueryError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let proof = Proof::Token(Hidden("s3cret".into()));
        assert!(!format!("{proof:?}").contains("s3cret"));
        let answer = IdentityAnswer::Token {
            token: Hidden("s3cret".into()),
            expires_at: Timestamp(0),
        };
        assert!(!format!("{answer:?}").contains("s3cret"));
    }

    #[test]
    fn the_order_of_arrival_does_not_matter() {
        let said = |at, revoked| Revocation {
            subject: Subject::Name("n".into()),
            revoked,
            at: Timestamp(at),
            by: String::new(),
        };
        assert!(said(2, false).supersedes(&said(1, true)));
        assert!(!said(1, true).supersedes(&said(2, false)));
        assert!(said(1, true).supersedes(&said(1, false)));
        assert!(!said(1, true).supersedes(&said(1, true)));
    }
}
