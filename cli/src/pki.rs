//! `weft pki`: certificates from `transport::pki`. A private key goes to its file and nowhere else.

use std::path::Path;

use weft_transport::pki::{self, Validity};
use weft_transport::{IdentityError, PeerRole, SpiffeId};
use weft_wire::Timestamp;

use crate::args::{Pki, Role};
use crate::failure::Failure;
use crate::output::Output;

/// Makes what was asked for and says what it made.
pub fn carry_out(work: &Pki, now: Timestamp, output: &mut Output<'_>) -> Result<u8, Failure> {
    match work {
        Pki::Init { dir, domain, days } => {
            let validity = Validity::days_from(now, *days);
            pki::init_ca(dir, domain, validity).map_err(|error| failure(&error, dir))?;
            output.text(&format!(
                "certificate authority of spiffe://{domain}\n  {}\n  {}  (keep it off all hosts)\nvalid until {}\n",
                dir.join(weft_transport::identity::CA_FILE).display(),
                dir.join(pki::CA_KEY_FILE).display(),
                validity.not_after
            ))?;
            output.remark(
                "hint: weft pki issue --role federator --region REGION --name NAME --out DIR",
            );
        }
        Pki::Issue {
            ca,
            out,
            role,
            region,
            name,
            days,
        } => {
            let validity = Validity::days_from(now, *days);
            let id = issue(ca, out, *role, region, name, validity)
                .map_err(|error| failure(&error, out))?;
            output.text(&format!(
                "{id}\n  {}\nvalid until {}\n",
                out.display(),
                validity.not_after
            ))?;
            if matches!(role, Role::Operator | Role::Admin) {
                output.remark(&format!("hint: export WEFT_IDENTITY={}", out.display()));
            }
        }
        Pki::RegionCa {
            ca,
            out,
            region,
            days,
        } => {
            let validity = Validity::days_from(now, *days);
            pki::init_region_ca(ca, out, region, validity).map_err(|error| failure(&error, out))?;
            output.text(&format!(
                "certificate authority of the agents of {region}\n  {}\n  {}\nvalid until {} at the latest\n",
                out.join(weft_transport::identity::CA_FILE).display(),
                out.join(pki::CA_KEY_FILE).display(),
                validity.not_after
            ))?;
            output.remark(
                "hint: put it on the region's federator and name it there: [enrol] ca = \"DIR\"",
            );
        }
        // Asked of a federator: see `identify`.
        Pki::Revoke(_) | Pki::Revoked => {}
    }
    Ok(0)
}

fn issue(
    ca: &Path,
    out: &Path,
    role: Role,
    region: &str,
    name: &str,
    validity: Validity,
) -> Result<SpiffeId, IdentityError> {
    let role = match role {
        Role::Agent => PeerRole::Agent,
        Role::Federator => PeerRole::Federator,
        Role::Operator => PeerRole::Operator,
        Role::Admin => PeerRole::Admin,
    };
    let id = SpiffeId::new(&pki::ca_domain(ca)?, region, role, name)?;
    pki::issue(ca, out, &id, validity)?;
    Ok(id)
}

fn failure(error: &IdentityError, dir: &Path) -> Failure {
    let hint = match error {
        IdentityError::Exists(_) => "name another directory; nothing was changed".to_owned(),
        IdentityError::Name(_) => {
            "letters, digits, '.', '_' and '-'; domains in lower case".to_owned()
        }
        IdentityError::Domain { ca, .. } => format!("this CA issues for spiffe://{ca} only"),
        IdentityError::Io { .. }
        | IdentityError::Content { .. }
        | IdentityError::KeyReadable { .. }
        | IdentityError::Crypto(_) => {
            "weft pki init --domain DOMAIN makes a CA; name it with --ca DIR".to_owned()
        }
    };
    Failure::new(
        "E-PKI",
        format!("no certificate was made in {}", dir.display()),
        error.to_string(),
        hint,
    )
}
