//! The real federator on one core: halves poured over QUIC until all are durable, and until all are in the store.
//!
//! Two agents' sessions, one with the clients' halves and one with the servers', encoded beforehand, so that the
//! load generator on the other core has nothing to do but send.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use weft_wire::batch;
use weft_wire::control::{Ack, PROTOCOL_VERSION};
use weft_wire::query::{Filter, Question, Report, ReportOrder, Request, Response, Scope};

use crate::agent::sibling;
use crate::figure::{Better, Figure};
use crate::uplink::{self, NODES, PATIENCE, Uplink};
use crate::workload::Workload;
use crate::{leftovers, machine};

/// What this bench measures.
pub const FIGURES: &[&str] = &[DURABLE, STORED];
const DURABLE: &str = "federator.halves_per_second";
const STORED: &str = "federator.stored_halves_per_second";
const GOAL: f64 = 1e6;

/// Halves in a batch.
const ROWS: usize = 4096;
/// Batches of each of the two agents: some seconds of work.
const BATCHES: usize = 512;
const CORE: usize = 0;
/// How long a federator may take to come up.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long the store may take beyond the last acknowledgement.
const STORE_LIMIT: Duration = Duration::from_secs(180);
/// Between two questions to the store: each costs the federator something.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// One pouring gives both figures.
pub fn run(wanted: &[&'static str]) -> Result<Vec<Figure>> {
    let poured = pour()?;
    let halves = (2 * ROWS * BATCHES) as f64;
    let mut figures = Vec::new();
    if wanted.contains(&DURABLE) {
        let value = halves / poured.durable.wall.as_secs_f64();
        let figure = Figure::new(DURABLE, value, "halves/s", Better::Higher).goal(GOAL);
        figures.push(figure.note(format!(
            "QUIC to fsync, pinned to one core, a burst of {:.1} M halves, all stitched at home; what lasts is the stored rate; {}",
            halves / 1e6,
            poured.durable.bound()
        )));
    }
    if wanted.contains(&STORED) {
        let value = halves / poured.stored.wall.as_secs_f64();
        let figure = Figure::new(STORED, value, "halves/s", Better::Higher);
        figures.push(figure.note(format!(
            "until every half is found matched in the store; {}",
            poured.stored.bound()
        )));
    }
    Ok(figures)
}

/// What the federator used until some moment.
struct Usage {
    wall: Duration,
    cpu: Duration,
    /// Its threads could have run and had no core.
    waited: Duration,
    written: u64,
}

impl Usage {
    /// Says what bounds the figure, from what was measured.
    fn bound(&self) -> String {
        let wall = self.wall.as_secs_f64();
        let (cpu, waited) = (
            self.cpu.as_secs_f64() / wall,
            self.waited.as_secs_f64() / wall,
        );
        let what = if cpu > 0.9 {
            "its CPU"
        } else if cpu + waited > 0.9 {
            "its core, which others had too"
        } else {
            "the disk or the load generator"
        };
        let halves = (2 * ROWS * BATCHES) as f64;
        format!(
            "bound by {what}: used {:.0} % of the core and waited for it {:.0} %, wrote {:.0} MB/s; \
             {:.0} halves per second of CPU",
            cpu * 100.0,
            waited * 100.0,
            self.written as f64 / wall / 1e6,
            halves / self.cpu.as_secs_f64()
        )
    }
}

struct Poured {
    durable: Usage,
    stored: Usage,
}

fn pour() -> Result<Poured> {
    let [clients, servers] = encoded()?;
    let federator = Federator::start()?;
    machine::pin(machine::cores() - 1)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let poured = runtime.block_on(async {
        let dir = federator.dir.path();
        let client = federator.dial(NODES[0]).await?;
        let server = uplink::dial(&federator.address, NODES[1], dir).await?;
        let before = federator.usage(Duration::ZERO)?;
        let start = Instant::now();
        let sent = tokio::try_join!(send(client, &clients), send(server, &servers))?;
        let durable = federator.usage(start.elapsed())?.since(&before);
        wait_until_stored(&federator.address, dir, 2 * (ROWS * BATCHES) as u64).await?;
        let stored = federator.usage(start.elapsed())?.since(&before);
        // Until here, so that the federator does not see its agents go in the middle.
        drop(sent);
        anyhow::Ok(Poured { durable, stored })
    });
    machine::unpin()?;
    poured
}

impl Usage {
    fn since(self, before: &Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            waited: self.waited.saturating_sub(before.waited),
            written: self.written - before.written,
            ..self
        }
    }
}

/// Both agents' batches, as they go on the wire.
fn encoded() -> Result<[Vec<Vec<u8>>; 2]> {
    let mut workload = Workload::until(2, ROWS * BATCHES, uplink::now());
    let mut encoded = [Vec::with_capacity(BATCHES), Vec::with_capacity(BATCHES)];
    for _ in 0..BATCHES {
        for (batch, into) in workload.pair_of_batches(ROWS).iter().zip(&mut encoded) {
            into.push(batch::encode(batch)?);
        }
    }
    Ok(encoded)
}

/// Sends as fast as the session takes it, until the last batch is acknowledged.
async fn send(uplink: Uplink, batches: &[Vec<u8>]) -> Result<Uplink> {
    let Uplink {
        line,
        mut sender,
        mut receiver,
    } = uplink;
    let last = batches.len() as u64;
    let sending = async {
        for (seq, bytes) in (1..).zip(batches) {
            sender.send_batch(seq, bytes, PATIENCE).await?;
        }
        anyhow::Ok(())
    };
    let hearing = async {
        loop {
            let ack: Ack = receiver.expect(PATIENCE).await?;
            if ack.seq >= last {
                return anyhow::Ok(());
            }
        }
    };
    tokio::try_join!(sending, hearing)?;
    Ok(Uplink {
        line,
        sender,
        receiver,
    })
}

/// Asks until so many halves are matched in the store.
async fn wait_until_stored(address: &str, dir: &Path, halves: u64) -> Result<()> {
    let line = uplink::connect(address, uplink::OPERATOR, dir).await?;
    let start = Instant::now();
    let mut matched = 0;
    while matched < halves {
        ensure!(
            start.elapsed() < STORE_LIMIT,
            "only {matched} of {halves} halves are matched in the store"
        );
        tokio::time::sleep(ASK_EVERY).await;
        let (mut sender, mut receiver) = line.session.open_bi().await?;
        let what = Question::Report {
            report: Report::Dependencies,
            filter: Filter::default(),
            by: ReportOrder::default(),
            top: 1,
        };
        let scope = Scope::Local { absent: Vec::new() };
        sender
            .send(
                &Request {
                    version: PROTOCOL_VERSION,
                    scope,
                    what,
                },
                PATIENCE,
            )
            .await?;
        matched = loop {
            match receiver.expect::<Response>(PATIENCE).await? {
                Response::End { completeness, .. } => break completeness.halves.matched,
                Response::Error(error) => bail!("{error}"),
                _ => {}
            }
        };
    }
    ensure!(
        matched == halves,
        "{matched} halves are matched in the store, {halves} were sent"
    );
    Ok(())
}

/// The program on its core, with a directory of its own; gone when dropped.
struct Federator {
    child: Child,
    address: String,
    dir: TempDir,
}

impl Federator {
    fn start() -> Result<Self> {
        let dir = leftovers::directory()?;
        uplink::issue_identities(dir.path())?;
        let at = dir.path().display();
        // A port that is free now.
        let address = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let address = address.context("no free port")?.to_string();
        let config = format!(
            "name = \"{0}\"\nregion = \"{1}\"\nlisten = \"{address}\"\nidentity = \"{at}/{0}\"\ndata_dir = \"{at}/data\"\n\n\
             [mesh]\nkey_file = \"{at}/mesh.key\"\n",
            uplink::FEDERATOR,
            uplink::REGION,
        );
        fs::write(dir.path().join("federator.toml"), config)
            .context("cannot write the configuration")?;
        write_private(&dir.path().join("mesh.key"), &"5a".repeat(32))?;
        let log =
            fs::File::create(dir.path().join("federator.log")).context("cannot make the log")?;
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "--",
            "taskset",
            "--cpu-list",
            &CORE.to_string(),
        ]);
        command
            .arg(sibling("weft-federator")?)
            .arg("run")
            .arg("--config")
            .arg(dir.path().join("federator.toml"));
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command.spawn().context("cannot start the federator")?;
        Ok(Self {
            child,
            address,
            dir,
        })
    }

    /// The first session: the program may not be up yet.
    async fn dial(&self, name: &str) -> Result<Uplink> {
        let start = Instant::now();
        loop {
            match uplink::dial(&self.address, name, self.dir.path()).await {
                Ok(uplink) => return Ok(uplink),
                Err(error) if start.elapsed() > START_LIMIT => {
                    let log = fs::read_to_string(self.dir.path().join("federator.log"))
                        .unwrap_or_default();
                    let last = log.lines().collect::<Vec<_>>().join(" | ");
                    return Err(error.context(format!("the federator did not come up: {last}")));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn usage(&self, wall: Duration) -> Result<Usage> {
        let pid = self.child.id();
        Ok(Usage {
            wall,
            cpu: machine::cpu_time(pid)?,
            waited: machine::waited_for_cpu(pid)?,
            written: machine::bytes_written(pid)?,
        })
    }
}

impl Drop for Federator {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Keys are read by their owner only.
fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .context("cannot write a key")
}
