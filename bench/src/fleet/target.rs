//! The federator under load: the real program on a core of its own, that can be killed and started again.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::time::sleep;

use super::agents::Fleet;
use crate::agent::sibling;
use crate::{leftovers, machine, uplink};

/// How long it may take to come up.
const START_LIMIT: Duration = Duration::from_secs(20);

/// See the module. Ended when dropped.
pub struct Target {
    dir: TempDir,
    address: String,
    core: usize,
    child: Option<Child>,
}

impl Target {
    /// Certificates and configuration; not yet started.
    pub fn prepare(core: usize) -> Result<Self> {
        let dir = leftovers::directory()?;
        uplink::issue_identities(dir.path())?;
        let at = dir.path().display();
        // A port that is free now.
        let address = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let address = address.context("no free port")?.to_string();
        let config = format!(
            "name = \"{0}\"\nregion = \"{1}\"\nlisten = \"{address}\"\nidentity = \"{at}/{0}\"\ndata_dir = \"{at}/data\"\n",
            uplink::FEDERATOR,
            uplink::REGION,
        );
        fs::write(dir.path().join("federator.toml"), config)
            .context("cannot write the configuration")?;
        Ok(Self {
            dir,
            address,
            core,
            child: None,
        })
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Starts it; it may not be up yet.
    pub fn start(&mut self) -> Result<()> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("federator.log"))
            .context("cannot make the log")?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "taskset", "--cpu-list"]);
        command.arg(self.core.to_string());
        command
            .arg(sibling("weft-federator")?)
            .arg("run")
            .arg("--config")
            .arg(self.dir.path().join("federator.toml"))
            .env("RUST_LOG", "error")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.child = Some(command.spawn().context("cannot start the federator")?);
        Ok(())
    }

    /// Waits until it takes sessions.
    pub async fn up(&self, fleet: &Fleet) -> Result<()> {
        let start = Instant::now();
        while let Err(error) = fleet.probe().await {
            ensure!(
                start.elapsed() < START_LIMIT,
                "the federator did not come up: {error:#}"
            );
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Ends it without a word.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().context("cannot kill the federator")?;
            child.wait().context("the federator does not end")?;
        }
        Ok(())
    }

    /// CPU time used since it was started last.
    pub fn cpu(&self) -> Result<Duration> {
        machine::cpu_time(self.pid()?)
    }

    /// Memory that it has in RAM.
    pub fn resident(&self) -> Result<u64> {
        machine::resident_bytes_of(self.pid()?)
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("federator.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(3)..].join(" | ");
        format!("the federator's log ends: {last:?}")
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("it is not running")?.id())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.kill();
    }
}
