//! `weft-agent join`: from a token to a certificate. The key is made here and never leaves; what is written is written all
//! together or not at all. [`renew`] gets the next certificate while the agent runs.

pub mod metadata;
pub mod renew;

use std::fs;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use weft_transport::pki::Request;
use weft_transport::token::{MAX_TOKEN_BYTES, TokenError};
use weft_transport::{CloseReason, Identity, IdentityError, Refusal, Token, TransportError, join};
use weft_wire::identity::{IdentityAnswer, IdentityRequest, Proof};
use weft_wire::query::QueryError;

use crate::config::Config;
use crate::time;

/// A key that was made and not yet signed: asking again with it is the same question.
const KEY_FILE: &str = "joining-key.pem";
/// Says that the certificate came from a federator, so the agent gets the next one by itself.
pub const JOINED_FILE: &str = "joined";
/// The code with which a federator asks for a name.
const NAME_WANTED: &str = "E-NAME";

/// What was typed.
#[derive(Clone, Debug)]
pub struct Join {
    /// The agent's configuration; written when it is not there.
    pub config: PathBuf,
    /// Where the certificate goes; by default where the configuration says.
    pub identity: Option<PathBuf>,
    /// Name; by default the configuration's, the token's, or this host's.
    pub name: Option<String>,
    /// A file with the token, `-` for stdin; by default it is asked for.
    pub token_file: Option<PathBuf>,
    /// Whether a certificate that is there may be replaced.
    pub replace: bool,
}

/// What went wrong: what, cause, hint, and the code that `weft help` explains.
#[derive(Debug, thiserror::Error)]
#[error("error: {what}\ncause: {cause}\nhint:  {hint}\nmore:  weft help {code}")]
pub struct NotJoined {
    code: String,
    what: String,
    cause: String,
    hint: String,
}

impl NotJoined {
    fn new(code: &str, cause: impl ToString, hint: &str) -> Self {
        Self {
            code: code.into(),
            what: "the node has not joined".into(),
            cause: cause.to_string(),
            hint: hint.into(),
        }
    }

    fn identity(error: &IdentityError) -> Self {
        let hint = match error {
            IdentityError::KeyReadable { path, .. } => format!("chmod 600 {}", path.display()),
            _ => "run it as root, or as who may write there".into(),
        };
        Self::new("E-IDENTITY", error, &hint)
    }

    fn token(error: TokenError) -> Self {
        Self::new(
            "E-TOKEN",
            error,
            "weft token create --role agent --region REGION",
        )
    }

    fn transport(error: &TransportError, address: &str) -> Self {
        match error {
            TransportError::Closed(CloseReason::Refused(Refusal::UnknownCa)) => Self::new(
                "E-TRUST",
                format!("{address} does not show the CA whose fingerprint is in the token"),
                "something else answers there, or the CA was exchanged: weft token create",
            ),
            TransportError::Unreachable { detail, .. } => {
                let hint = format!("is UDP open from here to {address}?");
                Self::new("E-REACH", detail, &hint)
            }
            other => Self::new("E-JOIN", other, "the federator's log says more"),
        }
    }
}

impl From<QueryError> for NotJoined {
    fn from(error: QueryError) -> Self {
        Self {
            code: error.code,
            what: error.what,
            cause: error.cause,
            hint: error.hint,
        }
    }
}

/// Joins, and says in words what came of it.
pub fn join(typed: &Join) -> Result<String, NotJoined> {
    let config = existing(&typed.config)?;
    let dir = typed
        .identity
        .clone()
        .or_else(|| config.as_ref().map(|config| config.identity.clone()))
        .unwrap_or_else(|| "/etc/weft/identity".into());
    if !typed.replace
        && let Ok(identity) = Identity::load(&dir)
        && identity.not_after() > time::now()
    {
        return Err(NotJoined::new(
            "E-JOIN",
            format!(
                "{} has a certificate for {} until {}",
                dir.display(),
                identity.id(),
                identity.not_after()
            ),
            "weft-agent join --replace",
        ));
    }
    let token: Token = read_token(typed.token_file.as_deref())?
        .parse()
        .map_err(NotJoined::token)?;
    let request = request(&dir)?;
    let wanted = typed
        .name
        .clone()
        .or(config.as_ref().map(|config| config.name.clone()));
    let answer = ask(&token, wanted, &request)?;
    let IdentityAnswer::Certificate {
        chain,
        roots,
        federator,
    } = answer
    else {
        return Err(match answer {
            IdentityAnswer::Error(error) => error.into(),
            _ => NotJoined::new(
                "E-PROTOCOL",
                "the answer makes no sense",
                "compare versions",
            ),
        });
    };
    finish(
        typed,
        &dir,
        &request,
        (&chain, &roots, &federator),
        config.is_some(),
    )
}

fn existing(path: &Path) -> Result<Option<Config>, NotJoined> {
    if !path.exists() {
        return Ok(None);
    }
    Config::load(path)
        .map(Some)
        .map_err(|error| NotJoined::new("E-CONFIG", format!("{error:#}"), "weft-agent doctor"))
}

/// The key made before, if it was never answered; so an answer that was lost is not a token lost.
fn request(dir: &Path) -> Result<Request, NotJoined> {
    let path = dir.join(KEY_FILE);
    let io = |source| IdentityError::Io {
        path: dir.into(),
        source,
    };
    fs::create_dir_all(dir)
        .map_err(io)
        .and_then(|()| {
            if path.exists() {
                Request::again(&path)
            } else {
                let request = Request::new()?;
                request.keep(&path)?;
                Ok(request)
            }
        })
        .map_err(|error| NotJoined::identity(&error))
}

/// Asks; a token that leaves the name to the node is asked with again, under the host's name.
fn ask(
    token: &Token,
    wanted: Option<String>,
    request: &Request,
) -> Result<IdentityAnswer, NotJoined> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| NotJoined::new("E-INTERNAL", error, "check ulimit -n"))?;
    let proof = match metadata::proof(&token.secret.0, &token.fingerprint.to_string()) {
        None => Proof::Token(token.secret.clone()),
        Some(proof) => proof.map_err(|error| {
            NotJoined::new(
                "E-METADATA",
                format!("the cloud's metadata service says nothing of this machine: {error}"),
                "is this a machine of that cloud? a token with a secret does without: weft token create",
            )
        })?,
    };
    // The cloud's proof has the name in it.
    let by_cloud = !matches!(proof, Proof::Token(_));
    let once = |name: String| {
        let question = IdentityRequest::Join {
            proof: proof.clone(),
            name,
            request: request.der().to_vec(),
        };
        runtime
            .block_on(join::ask(&token.address, token.fingerprint, &question))
            .map_err(|error| NotJoined::transport(&error, &token.address))
    };
    let named = wanted.is_some();
    let wanted = wanted.filter(|_| !by_cloud).unwrap_or_default();
    match once(wanted)? {
        IdentityAnswer::Error(error) if error.code == NAME_WANTED && !named => once(host_name()),
        answer => Ok(answer),
    }
}

fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

fn finish(
    typed: &Join,
    dir: &Path,
    request: &Request,
    (chain, roots, federator): (&str, &str, &str),
    configured: bool,
) -> Result<String, NotJoined> {
    let failed = |error: IdentityError| NotJoined::identity(&error);
    let io = |path: &Path, error: std::io::Error| {
        let cause = format!("{}: {error}", path.display());
        NotJoined::new("E-IDENTITY", cause, "run it as who may write there")
    };
    // First: a certificate without it would end and not be renewed.
    let mark = dir.join(JOINED_FILE);
    fs::File::create(&mark)
        .and_then(|file| file.sync_all())
        .map_err(|error| io(&mark, error))?;
    request.install(dir, chain, roots).map_err(failed)?;
    let identity = Identity::load(dir).map_err(failed)?;
    let _ = fs::remove_file(dir.join(KEY_FILE));
    let mut said = format!(
        "{}\n  {}\nvalid until {}; the running agent gets the next one by itself\n",
        identity.id(),
        dir.display(),
        identity.not_after()
    );
    if configured {
        said.push_str("weft-agent doctor says whether it can run\n");
        return Ok(said);
    }
    let text = format!(
        "name = {:?}\nfederator = {federator:?}\nidentity = {:?}\n",
        identity.id().name(),
        dir.display().to_string(),
    );
    if let Some(folder) = typed.config.parent() {
        fs::create_dir_all(folder).map_err(|error| io(folder, error))?;
    }
    fs::File::create_new(&typed.config)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_all())
        })
        .map_err(|error| io(&typed.config, error))?;
    said.push_str(&format!(
        "{} written: add [site], then weft-agent run\n",
        typed.config.display()
    ));
    Ok(said)
}

/// From a file, from stdin, or asked for without an echo. Never from the command line, which everybody can see.
fn read_token(file: Option<&Path>) -> Result<String, NotJoined> {
    let failed = |error: std::io::Error| {
        NotJoined::new(
            "E-TOKEN",
            error,
            "weft-agent join asks for it, or --token-file FILE",
        )
    };
    let limit = MAX_TOKEN_BYTES as u64 + 1;
    let mut text = String::new();
    match file {
        Some(path) if path != Path::new("-") => {
            fs::File::open(path)
                .and_then(|file| file.take(limit).read_to_string(&mut text))
                .map_err(failed)?;
        }
        None if std::io::stdin().is_terminal() => {
            text = prompt().map_err(failed)?;
        }
        _ => {
            std::io::stdin()
                .take(limit)
                .read_to_string(&mut text)
                .map_err(failed)?;
        }
    }
    if text.len() > MAX_TOKEN_BYTES {
        return Err(NotJoined::token(TokenError::Form));
    }
    Ok(text)
}

fn prompt() -> std::io::Result<String> {
    use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    eprint!("token (from weft token create): ");
    let before = tcgetattr(&stdin)?;
    let mut silent = before.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &silent)?;
    let mut text = String::new();
    let read = stdin.read_line(&mut text);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &before)?;
    eprintln!();
    read.map(|_| text)
}

#[cfg(test)]
mod tests;
