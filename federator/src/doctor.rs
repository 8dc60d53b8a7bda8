//! `weft-federator doctor`: what would keep this federator from running, and what to do about it.

use std::path::Path;

use crate::clock;
use crate::config::Config;
use crate::run::identity;

/// Days before the end of a certificate from which on it is a warning.
const CERTIFICATE_WARNING_DAYS: i64 = 14;

/// Prints one line a check; `false` when one failed.
pub fn doctor(path: &Path) -> bool {
    let mut fine = true;
    let mut say = |check: &str, outcome: Result<String, (String, &str)>| match outcome {
        Ok(detail) => println!("ok    {check}: {detail}"),
        Err((cause, hint)) => {
            fine = false;
            println!("FAIL  {check}: {cause}\n  hint: {hint}");
        }
    };
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => {
            say(
                "configuration",
                Err((format!("{error:#}"), "compare it with docs/federator.toml")),
            );
            return false;
        }
    };
    say("configuration", Ok(path.display().to_string()));
    say("identity", check_identity(&config));
    say("data", check_data(&config));
    let bound = std::net::UdpSocket::bind(config.listen);
    say(
        "listen",
        match bound {
            Ok(_) => Ok(format!("udp {} is free", config.listen)),
            Err(error) => Err((
                format!("udp {}: {error}", config.listen),
                "is the federator running already?",
            )),
        },
    );
    if let Some(file) = &config.mesh.key_file {
        let key = std::fs::read_to_string(file);
        let valid = key.as_ref().is_ok_and(|key| {
            key.trim().len() == 64 && key.trim().bytes().all(|b| b.is_ascii_hexdigit())
        });
        let outcome = if valid {
            Ok(file.display().to_string())
        } else {
            Err((
                format!("{} is not 32 bytes in hexadecimal", file.display()),
                "openssl rand -hex 32, the same on all federators",
            ))
        };
        say("mesh key", outcome);
    }
    fine
}

fn check_identity(config: &Config) -> Result<String, (String, &'static str)> {
    let identity = identity(config).map_err(|error| (format!("{error:#}"), "weft pki issue"))?;
    let days = identity.days_left(clock::now());
    if days < CERTIFICATE_WARNING_DAYS {
        return Err((
            format!("the certificate ends in {days} days"),
            "weft pki issue",
        ));
    }
    Ok(format!("{}, {days} days left", identity.id()))
}

fn check_data(config: &Config) -> Result<String, (String, &'static str)> {
    let folder = &config.data_dir;
    let probe = folder.join(".weft-doctor");
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&probe, b""))
        .and_then(|()| std::fs::remove_file(&probe))
        .map_err(|error| {
            (
                format!("{}: {error}", folder.display()),
                "the federator's user must be able to write there",
            )
        })?;
    Ok(format!("{} can be written", folder.display()))
}
