//! The daemon: builds everything, runs until it is told to stop, drains.

use std::convert::Infallible;
use std::fs::File;
use std::net::UdpSocket;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::{oneshot, watch};
use weft_kubernetes::Pods;
use weft_transport::{Dialler, Identity as Certificate};
use weft_wire::AgentInfo;

use crate::attribution::{Attribution, RealHost};
use crate::calls::Calls;
use crate::capture::Capture;
use crate::clock::Clock;
use crate::config::Config;
use crate::counters::Counters;
use crate::flows::Flows;
use crate::kernel::{DatagramPlan, Datagrams, Hooks, Plan, sys};
use crate::limits::sizes::{self, Sizes};
use crate::limits::{Governor, usage};
use crate::lookups::Lookups;
use crate::sink::BatchSink;
use crate::snapshot::Snapshot;
use crate::spool::SpoolLimits;
use crate::spool::shared::SharedSpool;
use crate::table::{Identity, Table};
use crate::uplink::Uplink;
use crate::{cluster, metrics, pods, privileges, time};

/// How often the ring is looked at: soon enough that the process behind a new connection is mostly still there.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How often the kernel's places are looked at. A connection is reported as open when two looks in a row find it.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// A flush of so many rows is a busy one, and so many in a row are busy times: what one took is kept for the next, and given back after
/// the first that is not busy. One alone is a burst, or the regular word on all that is open.
const BUSY_ROWS: u64 = 1_024;
const BUSY_FLUSHES: u32 = 4;
/// How often what the process takes is looked at.
const GOVERN_INTERVAL: Duration = Duration::from_secs(1);
/// How long a stopping agent tries to deliver what it has. What remains is in the spool.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// Runs the agent until SIGTERM or SIGINT. The hooks stay: what happens until the next start is in their ring.
pub fn run(config: &Config) -> Result<()> {
    let config = &within_kernel_memory(config)?;
    sys::keep_little();
    privileges::drop_the_rest()?;
    let certificate = Certificate::load(&config.identity)
        .with_context(|| format!("no usable identity in {}", config.identity.display()))?;
    if certificate.id().name() != config.name {
        bail!(
            "the certificate is for {}, the configuration is for {}",
            certificate.id().name(),
            config.name
        );
    }
    let _alone = alone(&config.data_dir)?;
    let limits = SpoolLimits {
        max_bytes: config.spool.max_bytes,
    };
    let clock_us = time::utc_ns() / 1_000;
    let spool = SharedSpool::open(&config.data_dir, limits, &config.federator, clock_us)
        .context("open the spool")?;
    let counters = Arc::new(Counters::default());
    let pods = pods::unknown(config);
    let socket = Dialler::socket().context("a socket for the uplink")?;
    let mut capture = capture(config, &certificate, spool.clone(), &counters, pods.clone())?;
    if let Some(flows) = capture
        .flows
        .as_mut()
        .filter(|_| !config.datagrams.own_session)
        && let Err(error) = flows.leave_out(&socket)
    {
        tracing::warn!(%error, "the agent's own session will be among the flows");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (capturing, capture_ended) = {
        let (stop, flush) = (
            Arc::clone(&stop),
            Duration::from_millis(config.spool.flush_interval_ms),
        );
        let update_interval = Duration::from_secs(config.capture.update_interval_s.into());
        let snapshot = Snapshot::new(&config.cgroup, update_interval.as_micros() as i64);
        watched("weft-capture", move || {
            drive(capture, snapshot, flush, update_interval, &stop);
        })
        .context("start the capture thread")?
    };
    let result = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(async {
            let uplink = uplink(config, certificate, spool.clone(), &counters, socket);
            serve(
                config,
                uplink,
                spool,
                &counters,
                pods,
                capture_ended,
                || {
                    stop.store(true, Relaxed);
                    capturing.join().is_ok()
                },
            )
            .await
        });
    stop.store(true, Relaxed);
    result
}

/// Starts a thread; what comes with it is told when the thread has ended, also by a panic.
fn watched(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> std::io::Result<(thread::JoinHandle<()>, oneshot::Receiver<Infallible>)> {
    let (alive, ended) = oneshot::channel();
    let run = move || {
        let _alive: oneshot::Sender<Infallible> = alive;
        work();
    };
    let thread = thread::Builder::new().name(name.into()).spawn(run)?;
    Ok((thread, ended))
}

/// The configuration with sizes of maps that the limit on kernel memory has room for.
fn within_kernel_memory(config: &Config) -> Result<Config> {
    let (wanted, limit) = (sizes(config), config.limits.kernel_memory_bytes);
    let sizes = sizes::fit(wanted, sizes::possible_processors(), limit)?;
    if sizes != wanted {
        tracing::warn!(
            ?wanted,
            ?sizes,
            "maps are smaller than configured, to stay within [limits] kernel_memory_bytes"
        );
    }
    let mut config = config.clone();
    config.capture.ring_bytes = sizes.ring_bytes;
    config.capture.max_connections = sizes.max_connections;
    if config.capture.calls {
        config.capture.calls_ring_bytes = sizes.calls_ring_bytes;
    }
    if config.datagrams.enabled {
        config.datagrams.dns_ring_bytes = sizes.dns_ring_bytes;
        config.datagrams.max_flows = sizes.max_flows;
    }
    Ok(config)
}

/// What the configuration asks for.
pub fn sizes(config: &Config) -> Sizes {
    let when = |on: bool, size: u32| if on { size } else { 0 };
    let (capture, datagrams) = (&config.capture, &config.datagrams);
    Sizes {
        ring_bytes: capture.ring_bytes,
        dns_ring_bytes: when(datagrams.enabled, datagrams.dns_ring_bytes),
        calls_ring_bytes: when(capture.calls, capture.calls_ring_bytes),
        max_connections: capture.max_connections,
        max_flows: when(datagrams.enabled, datagrams.max_flows),
    }
}

/// Locks the data directory: two agents on one spool and one ring would each lose what the other takes. The kernel lets
/// go of the lock however the program ends.
fn alone(data_dir: &Path) -> Result<Flock<File>> {
    std::fs::create_dir_all(data_dir).with_context(|| format!("create {}", data_dir.display()))?;
    let path = data_dir.join("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        anyhow::Error::new(error).context(format!(
            "{} is locked: another agent uses it",
            path.display()
        ))
    })
}

/// The running kernel's boot, as ids of halves carry it.
pub fn boot() -> Result<u64> {
    let text =
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..8]);
    Ok(u64::from_le_bytes(first))
}

/// What to attach according to the configuration.
pub fn plan(config: &Config) -> Plan {
    Plan {
        cgroup: config.cgroup.clone(),
        pin_dir: config.pin_dir(),
        ring_bytes: config.capture.ring_bytes,
        max_connections: config.capture.max_connections,
        update_interval_ns: u64::from(config.capture.update_interval_s) * 1_000_000_000,
        clock_offset_us: time::clock_offset_us(),
        now_ns: time::utc_ns(),
        monotonic_ns: time::monotonic_ns(),
    }
}

fn capture(
    config: &Config,
    certificate: &Certificate,
    spool: SharedSpool,
    counters: &Arc<Counters>,
    pods: Option<Pods>,
) -> Result<Capture<RealHost, SharedSpool>> {
    let plan = plan(config);
    let hooks = Hooks::attach(&plan).with_context(|| {
        format!(
            "attach to {} (weft-agent doctor says what is missing)",
            config.cgroup.display()
        )
    })?;
    tracing::info!(cgroup = %config.cgroup.display(), resumed = hooks.resumed, "hooks attached");
    let mut clock = Clock::new(hooks.state.clock_offset_us);
    clock.adjust(plan.clock_offset_us);
    let identity = Identity {
        agent: certificate.key(),
        boot: boot()?,
    };
    let table = Table::new(identity, config.capture.max_connections as usize);
    let mut attribution = Attribution::new(RealHost::new(&config.cgroup), config.clone());
    if let Some(pods) = pods {
        attribution = attribution.with_pods(pods);
    }
    let flows = flows(config, &plan, &hooks, identity);
    let lookups = flows.as_ref().filter(|_| config.lookups.enabled).map(|it| {
        let (ring, base) = (&it.datagrams.dns_ring, it.datagrams.meta.dns_ring_base);
        let sink = spool.last_lookup_position();
        let ports = datagram_plan(config).dns_ports;
        let mut lookups = Lookups::new(identity.boot, ring, base, sink, ports);
        lookups.save_names_in(&config.data_dir.join("names"));
        lookups
    });
    let mut capture = Capture::new(
        hooks,
        table,
        attribution,
        clock,
        spool,
        Arc::clone(counters),
    );
    capture.governor = Governor::new(config.limits.into());
    capture.calls = calls(config);
    capture.flows = flows;
    capture.lookups = lookups;
    Ok(capture)
}

/// The call hooks, where the kernel has them. What it lacks is said once, in words, and the socket hooks' answers stand.
fn calls(config: &Config) -> Option<Calls> {
    if !config.capture.calls {
        return None;
    }
    match Calls::attach(config.capture.calls_ring_bytes) {
        Ok(calls) => {
            tracing::info!(by = calls.mode().name(), "call hooks attached");
            Some(calls)
        }
        Err(missing) => {
            tracing::warn!(
                "no call hooks: {missing}. Connections belong to the process that connected or listens; what is spoken on \
                 them is not known, nor are processes that are gone at once"
            );
            None
        }
    }
}

/// What to watch of datagrams according to the configuration.
pub fn datagram_plan(config: &Config) -> DatagramPlan {
    let datagrams = &config.datagrams;
    let mut dns_ports = DatagramPlan::default().dns_ports;
    dns_ports.extend(&datagrams.dns_ports);
    DatagramPlan {
        max_flows: datagrams.max_flows,
        dns_ring_bytes: datagrams.dns_ring_bytes,
        idle_ns: u64::from(datagrams.idle_timeout_s) * 1_000_000_000,
        dns_idle_ns: u64::from(datagrams.dns_idle_timeout_s) * 1_000_000_000,
        dns_ports,
    }
}

/// Where the kernel refuses the hooks for datagrams, connections are seen without them, and the log says so once.
fn flows(config: &Config, plan: &Plan, hooks: &Hooks, identity: Identity) -> Option<Flows> {
    if !config.datagrams.enabled {
        return None;
    }
    let datagrams = datagram_plan(config);
    match Datagrams::attach(plan, &datagrams, hooks) {
        Ok(attached) => Some(Flows::new(
            attached,
            identity,
            &datagrams,
            plan.update_interval_ns,
        )),
        Err(error) => {
            tracing::warn!(%error, "no UDP: the hooks for datagrams do not attach (weft-agent doctor says why)");
            None
        }
    }
}

/// The capture thread. The last thing it does is to hand over everything it has.
fn drive(
    mut capture: Capture<RealHost, SharedSpool>,
    mut snapshot: Snapshot,
    flush_interval: Duration,
    sweep_interval: Duration,
    stop: &AtomicBool,
) {
    snapshot.start(&mut capture);
    // What only the start needed: the kernel's types, lists of sockets, code.
    sys::give_back();
    sys::forget_code();
    let (mut flushed, mut swept, mut looked) = (Instant::now(), Instant::now(), Instant::now());
    let (mut failing, mut governed) = (false, Instant::now());
    let (mut busy, mut handed) = (0_u32, 0);
    loop {
        let stopping = stop.load(Relaxed);
        capture.poll(time::monotonic_ns());
        if looked.elapsed() >= LOOK_INTERVAL {
            capture.look(time::monotonic_ns());
            looked = Instant::now();
        }
        if governed.elapsed() >= GOVERN_INTERVAL {
            capture.govern(usage::now());
            governed = Instant::now();
        }
        // While the spool takes nothing, what a sweep finds would only pile up.
        if swept.elapsed() >= sweep_interval && !failing {
            snapshot.sweep(&mut capture);
            sys::give_back();
            swept = Instant::now();
        }
        if stopping || flushed.elapsed() >= flush_interval {
            let renewed = capture.renew_owners();
            snapshot.reown(&renewed, &mut capture);
            let flushing = capture.flush();
            if let (Err(error), false) = (&flushing, failing) {
                tracing::error!(%error, "the spool takes nothing; the ring buffers");
            }
            failing = flushing.is_err();
            let halves = capture.counters().halves.load(Relaxed);
            let was_busy = busy >= BUSY_FLUSHES;
            busy = if halves - handed >= BUSY_ROWS {
                busy.saturating_add(1)
            } else {
                0
            };
            handed = halves;
            if (busy >= BUSY_FLUSHES) != was_busy {
                sys::keep_for_next(!was_busy);
            }
            capture.says_how_it_is(failing);
            capture.clock.adjust(time::clock_offset_us());
            capture.publish();
            flushed = Instant::now();
        }
        if stopping {
            return;
        }
        thread::sleep(POLL_INTERVAL.min(flush_interval));
    }
}

/// Everything that talks to the network, until told to stop or the capture thread has died: an agent that sees nothing must not
/// look alive. Who starts it again finds hooks and ring as they were.
async fn serve(
    config: &Config,
    mut uplink: Uplink,
    spool: SharedSpool,
    counters: &Arc<Counters>,
    pods: Option<Pods>,
    capture_ended: oneshot::Receiver<Infallible>,
    stop_capture: impl FnOnce() -> bool,
) -> Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let (stop, stopped) = watch::channel(false);
    let is_connected = uplink.connected.subscribe();
    if let Some(settings) = &config.metrics {
        let listener = tokio::net::TcpListener::bind(settings.listen)
            .await
            .with_context(|| format!("metrics: listen on {}", settings.listen))?;
        let certificate = uplink.identity.clone();
        let told = metrics::Told {
            counters: Arc::clone(counters),
            spool: spool.clone(),
            connected: is_connected.clone(),
            certificate_ends: Arc::new(move || {
                u64::try_from(certificate.not_after().0 / 1_000_000).unwrap_or(0)
            }),
        };
        tokio::spawn(metrics::serve(listener, told));
    }
    if let Some(pods) = pods {
        let (config, seed) = (config.clone(), uplink.seed);
        tokio::spawn(async move { pods::follow(&config, pods, seed).await });
    }
    let seed = uplink.identity.key().0;
    let watching = cluster::start(config, seed, stopped.clone());
    let (feed, standing) = match watching {
        Some((feed, counts, task)) => {
            tokio::spawn(cluster::publish(counts, Arc::clone(counters)));
            (Some(feed), Some(task))
        }
        None => (None, None),
    };
    uplink.cluster = feed.map(tokio::sync::Mutex::new);
    let uplink = tokio::spawn(uplink.run(stopped));
    tokio::select! {
        _ = terminate.recv() => {}
        result = tokio::signal::ctrl_c() => result?,
        _ = capture_ended => {}
    }
    tracing::info!("stopping");
    let captured = stop_capture();
    let deadline = Instant::now() + DRAIN_LIMIT;
    while *is_connected.borrow() && spool.lock().has_unread() && Instant::now() < deadline {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    spool.sync().context("flush the spool")?;
    stop.send_replace(true);
    let _ = tokio::time::timeout(DRAIN_LIMIT, uplink).await;
    if let Some(standing) = standing {
        // Gives the lease back, so that another agent need not wait for its end.
        let _ = tokio::time::timeout(DRAIN_LIMIT, standing).await;
    }
    ensure!(
        captured,
        "the capture thread has died; its last words are above"
    );
    Ok(())
}

fn uplink(
    config: &Config,
    identity: Certificate,
    spool: SharedSpool,
    counters: &Arc<Counters>,
    socket: UdpSocket,
) -> Uplink {
    let counters = Arc::clone(counters);
    let seed = identity.key().0 ^ time::utc_ns();
    Uplink {
        federator: config.federator.clone(),
        identity,
        socket,
        agent: info(config),
        spool,
        status: Arc::new(move || counters.status(time::now())),
        clock: time::now,
        seed,
        connected: watch::Sender::new(false),
        cluster: None,
    }
}

fn info(config: &Config) -> AgentInfo {
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    };
    AgentInfo {
        name: config.name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        site: config.site.clone(),
        kernel: read("/proc/sys/kernel/osrelease"),
        host: read("/proc/sys/kernel/hostname"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_thread_is_told_also_when_it_panics() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (thread, mut ended) = watched("test", move || {
            let _ = wait.recv();
            panic!("on purpose");
        })
        .unwrap();
        let empty = oneshot::error::TryRecvError::Empty;
        assert_eq!(ended.try_recv(), Err(empty), "it still runs");
        drop(go);
        assert!(ended.blocking_recv().is_err());
        assert!(thread.join().is_err());
    }

    #[test]
    fn a_second_agent_is_turned_away_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = alone(dir.path()).unwrap();
        let refused = alone(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("another agent"), "{refused}");
        drop(first);
        alone(dir.path()).unwrap();
    }
}
