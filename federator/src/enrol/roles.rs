//! Who may do what: the one table. docs/security.md shows it, and a test compares the two.

use weft_transport::{PeerRole, Session, TransportError};
use weft_wire::control::CloseCode;
use weft_wire::federation::FederationRequest;
use weft_wire::identity::IdentityRequest;

/// What can be asked of a federator on a session. Joining is not among them: it needs no certificate, and has an address of
/// its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Report connections, lookups and a cluster's objects, as oneself.
    Report,
    /// Get another certificate for one's own name.
    Renew,
    /// Ask any question, SQL and health included.
    Ask,
    /// Exchange offers, notices and cards, as oneself.
    Exchange,
    /// Tell what is revoked.
    Share,
    /// See what is revoked.
    Revoked,
    /// Make a token with which a node may join.
    CreateToken,
    /// Shut somebody out, or let in again.
    Revoke,
    /// See which federators are there.
    Federators,
    /// Relieve a federator of its agents and offers, or no longer.
    Drain,
}

impl Act {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Report,
        Self::Renew,
        Self::Ask,
        Self::Exchange,
        Self::Share,
        Self::Revoked,
        Self::CreateToken,
        Self::Revoke,
        Self::Federators,
        Self::Drain,
    ];

    /// What a request is; `None` for one that no session may make.
    pub fn of(request: &IdentityRequest) -> Option<Self> {
        match request {
            IdentityRequest::CreateToken { .. } => Some(Self::CreateToken),
            IdentityRequest::Join { .. } => None,
            IdentityRequest::Renew { .. } => Some(Self::Renew),
            IdentityRequest::Revoke { .. } => Some(Self::Revoke),
            IdentityRequest::Revoked => Some(Self::Revoked),
            IdentityRequest::Share(_) => Some(Self::Share),
        }
    }

    /// What a request about federators is.
    pub fn of_federation(request: &FederationRequest) -> Self {
        match request {
            FederationRequest::Federators | FederationRequest::Own => Self::Federators,
            FederationRequest::Drain { .. } => Self::Drain,
        }
    }

    /// As in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Renew => "renew",
            Self::Ask => "ask",
            Self::Exchange => "exchange",
            Self::Share => "share revocations",
            Self::Revoked => "list revocations",
            Self::CreateToken => "create a token",
            Self::Revoke => "revoke",
            Self::Federators => "list federators",
            Self::Drain => "drain",
        }
    }
}

/// Whether a role may do this.
pub fn may(role: PeerRole, act: Act) -> bool {
    match act {
        Act::Report | Act::Renew => role == PeerRole::Agent,
        Act::Exchange | Act::Share => role == PeerRole::Federator,
        // A federator asks the others what it was asked itself.
        Act::Ask | Act::Federators => matches!(
            role,
            PeerRole::Operator | PeerRole::Admin | PeerRole::Federator
        ),
        Act::Revoked => matches!(role, PeerRole::Operator | PeerRole::Admin),
        Act::CreateToken | Act::Revoke | Act::Drain => role == PeerRole::Admin,
    }
}

/// Ends the session of whoever may not.
pub fn require(session: &Session, act: Act) -> Result<(), TransportError> {
    if may(session.peer().role(), act) {
        return Ok(());
    }
    let able: Vec<String> = PeerRole::ALL
        .into_iter()
        .filter(|role| may(*role, act))
        .map(|role| role.to_string())
        .collect();
    let (peer, able) = (session.peer(), able.join(" or "));
    let words = format!("{peer} may not {}: that takes {able}", act.name());
    Err(session.misbehaved(CloseCode::Role, words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_shows_this_table() {
        let text = include_str!("../../../docs/security.md");
        for act in Act::ALL {
            let row = PeerRole::ALL
                .map(|role| if may(role, act) { "yes" } else { "-" })
                .join(" | ");
            let row = format!("| {} | {row} |", act.name());
            assert!(text.contains(&row), "docs/security.md lacks: {row}");
        }
    }
}
