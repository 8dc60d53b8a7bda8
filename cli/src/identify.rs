//! `weft token` and `weft pki revoke`: what an administrator asks of a federator. A token goes to stdout, once, and nowhere
//! else.

use weft_transport::pki;
use weft_wire::identity::{IdentityAnswer, IdentityRequest, Subject};

use crate::args::{Revoke, TokenCreate};
use crate::failure::Failure;
use crate::output::Output;
use crate::when::duration;
use crate::world::{Target, World};

/// What is asked of whom.
#[derive(Debug)]
pub struct Identify {
    /// Whom.
    pub target: Target,
    /// What.
    pub request: IdentityRequest,
}

/// `weft token create`
pub(crate) fn create_token(typed: &TokenCreate) -> Result<IdentityRequest, Failure> {
    let seconds = duration(&typed.ttl)
        .and_then(|ttl| u32::try_from(ttl.as_secs()).ok())
        .ok_or_else(|| {
            let cause = format!("{:?} is no duration of a token", typed.ttl);
            Failure::value("--ttl", &cause, "--ttl 30m")
        })?;
    Ok(IdentityRequest::CreateToken {
        role: typed.role.clone(),
        region: typed.region.clone(),
        node: typed.node.clone(),
        ttl_s: seconds,
    })
}

/// `weft pki revoke`
pub(crate) fn revoke(typed: &Revoke) -> Result<IdentityRequest, Failure> {
    let subject = match (&typed.name, &typed.serial, &typed.certificate) {
        (Some(name), None, None) => Subject::Name(name.clone()),
        (None, Some(serial), None) => Subject::Serial(digits(serial)),
        (None, None, Some(path)) => {
            let unusable = |cause: String| {
                let what = format!("{} cannot be used", path.display());
                Failure::new("E-REVOKE", what, cause, "--certificate cert.pem")
            };
            let pem = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
            let serials = pki::serials(&pem).map_err(|error| unusable(error.to_string()))?;
            let first = serials.into_iter().next();
            Subject::Serial(first.ok_or_else(|| unusable("no certificate in it".into()))?)
        }
        _ => {
            return Err(Failure::value(
                "whom to revoke",
                "one of --name, --serial and --certificate is needed",
                "weft pki revoke --name spiffe://DOMAIN/region/R/agent/NAME",
            ));
        }
    };
    Ok(IdentityRequest::Revoke {
        subject,
        revoked: !typed.lift,
    })
}

/// As `openssl x509 -serial` prints it, or with colons, in one form.
fn digits(serial: &str) -> String {
    let serial = serial.trim().to_ascii_lowercase().replace(':', "");
    let serial = serial.strip_prefix("serial=").unwrap_or(&serial);
    // As bytes, which have no digit alone, and no leading zero bytes.
    let whole = if serial.len() % 2 == 1 {
        format!("0{serial}")
    } else {
        serial.to_owned()
    };
    let mut rest = whole.as_str();
    while let Some(shorter) = rest.strip_prefix("00").filter(|rest| !rest.is_empty()) {
        rest = shorter;
    }
    rest.to_owned()
}

/// Asks, and shows what came.
pub fn carry_out(
    work: &Identify,
    world: &mut dyn World,
    output: &mut Output<'_>,
) -> Result<u8, Failure> {
    let answer = world.identify(&work.target, &work.request)?;
    match (&work.request, answer) {
        (_, IdentityAnswer::Error(error)) => Err(Failure::query(&error)),
        (
            IdentityRequest::CreateToken { region, node, .. },
            IdentityAnswer::Token { token, expires_at },
        ) => {
            output.text(&format!("{}\n", token.0))?;
            let who = node.as_deref().unwrap_or("1 agent");
            output.remark(&format!(
                "{who} in {region}, until {expires_at}, shown once. There: weft-agent join (asks for it)"
            ));
            Ok(0)
        }
        (IdentityRequest::Revoke { subject, revoked }, IdentityAnswer::Done) => {
            let word = if *revoked {
                "revoked"
            } else {
                "no longer revoked"
            };
            output.text(&format!("{subject}: {word}\n"))?;
            output.remark(
                "holds here now, and within 10 s on every federator that can be reached; weft pki revoked lists all",
            );
            Ok(0)
        }
        (IdentityRequest::Revoked, IdentityAnswer::Revoked(all)) => {
            let line = |word: &weft_wire::identity::Revocation| {
                let state = if word.revoked { "revoked" } else { "lifted" };
                format!("{state:<8} {}  {}  by {}\n", word.at, word.subject, word.by)
            };
            output.text(&all.iter().map(line).collect::<String>())?;
            Ok(0)
        }
        _ => Err(Failure::protocol("an answer to another question")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_has_one_form() {
        for text in ["serial=0A1B", "0a:1b", "A1B", "00000A1B"] {
            assert_eq!(digits(text), "0a1b", "{text}");
        }
        assert_eq!(digits("0"), "00");
    }
}
