//! What can happen to daemons of Weft, beside being killed: they stand still, their certificates end or are of another CA, they
//! are replaced.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{DOMAIN, Daemon, Weft};
use crate::command;
use crate::error::{During, LabError, Result};
use crate::host::Host;
use crate::wait;

impl Daemon {
    fn signal(&self, signal: Signal) -> Result<()> {
        let process = self.process.as_ref().ok_or_else(|| LabError::Missing {
            what: format!("a running {}", self.name),
            hint: "start it first".into(),
        })?;
        kill(Pid::from_raw(process.pid().cast_signed()), signal).map_err(|error| LabError::Io {
            what: format!("{signal} to {}", self.name),
            source: error.into(),
        })
    }
}

impl Weft<'_> {
    /// Stops a region's federator as it stands (SIGSTOP).
    pub fn pause_federator(&self, region: usize) -> Result<()> {
        self.federators[region].signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn resume_federator(&self, region: usize) -> Result<()> {
        self.federators[region].signal(Signal::SIGCONT)
    }

    /// Stops the agent of a host as it stands.
    pub fn pause_agent(&mut self, host: &Host) -> Result<()> {
        self.agent_of(host)?.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn resume_agent(&mut self, host: &Host) -> Result<()> {
        self.agent_of(host)?.signal(Signal::SIGCONT)
    }

    /// Ends a region's federator as a replacement does, and starts it again.
    pub fn replace_federator(&mut self, region: usize) -> Result<()> {
        let daemon = &mut self.federators[region];
        if let Some(mut process) = daemon.process.take() {
            let status = process.terminate()?;
            if !status.success() {
                return Err(LabError::Truth(format!(
                    "{} ended with {status} when it was told to",
                    daemon.name
                )));
            }
        }
        daemon.start()
    }

    /// Gives an agent a certificate that has ended.
    pub fn expire_agent(&self, host: &Host) -> Result<()> {
        let region = self.region_of(host)?;
        let days_ago = ["-f", "-3d"];
        self.issue_anew("ca", ("agent", region, host.name()), Some(&days_ago))
    }

    /// Gives an agent a certificate that holds.
    pub fn renew_agent(&self, host: &Host) -> Result<()> {
        let region = self.region_of(host)?;
        self.issue_anew("ca", ("agent", region, host.name()), None)
    }

    /// Another CA, as docs/operating.md says: trusted by all beside the old one, then all certificates from it, then trusted alone.
    /// `between` is done after each of the three steps.
    pub fn rotate_ca(&self, mut between: impl FnMut(&str) -> Result<()>) -> Result<()> {
        let new = self.identities.join("new-ca");
        self.pki(&["init", "--dir", &new.to_string_lossy(), "--domain", DOMAIN])?;
        let read = |path: PathBuf| fs::read_to_string(&path).during("reading", &path);
        let (old_pem, new_pem) = (
            read(self.identities.join("ca/ca.pem"))?,
            read(new.join("ca.pem"))?,
        );
        let both = format!("{old_pem}{new_pem}");
        let all = self.everybody();
        let trust = |pem: &str| {
            all.iter().try_for_each(|(_, _, name)| {
                put(&self.identities.join(name).join("ca.pem"), pem.as_bytes())
            })
        };
        trust(&both)?;
        between("both are trusted")?;
        for (role, region, name) in &all {
            self.issue_anew("new-ca", (role, region, name), None)?;
            put(&self.identities.join(name).join("ca.pem"), both.as_bytes())?;
        }
        between("all have certificates of the new one")?;
        trust(&new_pem)?;
        between("the old one is not trusted any more")
    }

    /// Waits until a region's federator tells of a problem: its code, and a part of whom or what it is about.
    pub fn await_problem(&self, region: usize, code: &str, about: &str) -> Result<String> {
        self.await_told(
            &format!("weft health to tell of {code} of {about}"),
            region,
            |health| {
                problems(health)
                    .find(|(known, subject, words)| {
                        known == code && (subject.contains(about) || words.contains(about))
                    })
                    .map(|(_, subject, words)| format!("{subject}: {words}"))
            },
        )
    }

    /// Waits until a region's federator tells of no problem with one of these codes.
    pub fn await_none_of(&self, region: usize, codes: &[&str]) -> Result<()> {
        let what = format!("weft health to tell of none of {codes:?}");
        self.await_told(&what, region, |health| {
            let none = problems(health).all(|(code, _, _)| !codes.contains(&code.as_str()));
            none.then_some(())
        })
    }

    fn await_told<T>(
        &self,
        what: &str,
        region: usize,
        look: impl Fn(&Value) -> Option<T>,
    ) -> Result<T> {
        wait::until(what, Duration::from_secs(90), || {
            let health = self.json_of(region, &["health", "--since", "10m"])?;
            Ok(look(&health).ok_or_else(|| {
                let told: Vec<_> = problems(&health).collect();
                format!("{told:?}")
            }))
        })
    }

    /// Roles, regions and names of all.
    fn everybody(&self) -> Vec<(&'static str, String, String)> {
        let regions = &self.topology.regions;
        let mut all = vec![(
            "operator",
            regions[0].name.to_owned(),
            "operator".to_owned(),
        )];
        for region in regions {
            let (name, federator) = (region.name.to_owned(), region.federator.name().to_owned());
            all.push(("federator", name, federator));
            for node in &region.nodes {
                let (region, name) = (region.name.to_owned(), node.host.name().to_owned());
                all.push(("agent", region, name));
            }
        }
        all
    }

    fn region_of(&self, host: &Host) -> Result<&str> {
        let regions = self.topology.regions.iter();
        let mut of = regions.filter(|region| region.nodes.iter().any(|node| node.host == *host));
        of.next()
            .map(|region| region.name)
            .ok_or_else(|| LabError::Missing {
                what: format!("a region of {host:?}"),
                hint: "see the topology".into(),
            })
    }

    /// Issues a certificate, at another time if one is given, and puts it in place of the one before.
    fn issue_anew(
        &self,
        ca: &str,
        (role, region, name): (&str, &str, &str),
        at: Option<&[&str]>,
    ) -> Result<()> {
        let (ca, place) = (self.identities.join(ca), self.identities.join(name));
        let made = self.identities.join(format!("{name}-new"));
        let (ca, out) = (ca.to_string_lossy(), made.to_string_lossy());
        let weft = self.programs.weft.to_string_lossy();
        let issue = [
            &*weft, "pki", "issue", "--ca", &ca, "--role", role, "--region", region, "--name",
            name, "--out", &out, "--days", "1",
        ];
        match at {
            Some(at) => command::run("faketime", at.iter().chain(&issue))?,
            None => command::run(issue[0], &issue[1..])?,
        };
        for file in ["key.pem", "cert.pem", "ca.pem"] {
            let from = made.join(file);
            let bytes = fs::read(&from).during("reading", &from)?;
            put(&place.join(file), &bytes)?;
        }
        fs::remove_dir_all(&made).during("removing", &made)
    }
}

/// Code, subject and words of each problem.
fn problems(health: &Value) -> impl Iterator<Item = (String, String, String)> {
    let list = health["problems"].as_array().cloned().unwrap_or_default();
    list.into_iter().map(|problem| {
        let text = |key: &str| problem[key].as_str().unwrap_or_default().to_owned();
        (text("code"), text("subject"), text("words"))
    })
}

/// Replaces a file, for its owner alone.
fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let beside = path.with_extension("beside");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .during("creating", &beside)?;
    file.write_all(bytes).during("writing", &beside)?;
    fs::rename(&beside, path).during("writing", path)
}
