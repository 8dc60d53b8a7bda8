//! Processes outside of their container, with real namespaces and cgroups. Needs root: without it the test fails and says
//! so.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use weft_agent::attribution::{Attribution, RealHost};
use weft_agent::clock::Clock;
use weft_agent::config::Config;
use weft_agent::decode::OwnerKey;
use weft_agent::time;

/// Directories of this test; removed at its end, with the processes in them killed.
struct World {
    root: PathBuf,
    children: Vec<Child>,
}

impl World {
    fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "needs root");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields[2] == "cgroup2")
            .map(|fields| PathBuf::from(fields[1]))
            .expect("a cgroup2 mount");
        let root = mount.join(format!("weft-escape-{}", std::process::id()));
        fs::create_dir(&root).unwrap();
        Self {
            root,
            children: Vec::new(),
        }
    }

    fn cgroup(&self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Starts a program that ends in `sleep`, in a cgroup, and gives the id of that `sleep`.
    fn start(&mut self, cgroup: &Path, command: &[&str]) -> u32 {
        let procs = cgroup.join("cgroup.procs");
        // The shell puts itself into the cgroup, then becomes the program.
        let script = format!("echo $$ > {} && exec \"$@\"", procs.display());
        let child = Command::new("sh")
            .args(["-c", &script, "sh"])
            .args(command)
            .args(["sleep", "1000"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let parent = child.id();
        self.children.push(child);
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let family = [parent].into_iter().chain(children(parent));
            for pid in family {
                if fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| name == "sleep\n")
                {
                    return pid;
                }
            }
            assert!(Instant::now() < end, "{command:?} did not start");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for directory in directories(&self.root) {
            let _ = fs::write(directory.join("cgroup.kill"), "1");
        }
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for directory in directories(&self.root).iter().rev() {
            for _ in 0..200 {
                if fs::remove_dir(directory).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn directories(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_path_buf()];
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(directories(&entry.path()));
        }
    }
    found
}

fn children(pid: u32) -> Vec<u32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

#[test]
fn who_is_where() {
    let mut world = World::new();
    let (one, two) = ("a1".repeat(32), "b2".repeat(32));
    let container = world.cgroup(&format!("system.slice/docker-{one}.scope"));
    let host_network = world.cgroup(&format!(
        "kubepods/burstable/pod2ad1f2a6-6d6b-4c0e-9a3b-0f6a6e1f9d11/{two}"
    ));
    let service = world.cgroup("system.slice/ssh.service");
    let all = ["unshare", "--mount", "--pid", "--net", "--fork"];
    let first = world.start(&container, &all);
    let target = first.to_string();
    let target = target.as_str();

    let cases = [
        ("the container's first", first, false),
        (
            "started in it (docker exec)",
            world.start(&container, &["nsenter", "-t", target, "-m", "-p", "-n"]),
            false,
        ),
        ("left altogether", world.start(&container, &["env"]), true),
        (
            "left its network namespace only",
            world.start(&container, &["nsenter", "-t", target, "-m", "-p"]),
            true,
        ),
        (
            "in its cgroup only below",
            {
                let below = world.cgroup(&format!("system.slice/docker-{one}.scope/below"));
                world.start(&below, &["nsenter", "-t", target, "-n"])
            },
            true,
        ),
        (
            "a hostNetwork pod",
            world.start(&host_network, &["unshare", "--mount", "--pid", "--fork"]),
            false,
        ),
        (
            "a hostNetwork pod's second",
            world.start(&host_network, &["unshare", "--mount", "--pid", "--fork"]),
            false,
        ),
        (
            "a service of the host",
            world.start(&service, &["env"]),
            false,
        ),
        (
            "a service with mounts of its own",
            world.start(&service, &["unshare", "--mount"]),
            false,
        ),
        (
            "from the host into the container",
            world.start(&service, &["nsenter", "-t", target, "-m"]),
            true,
        ),
        (
            "from the host into its network only",
            world.start(&service, &["nsenter", "-t", target, "-n"]),
            false,
        ),
    ];

    let config = Config::parse("name = 'a'\nfederator = 'f:1'\nidentity = '/i'").unwrap();
    let mut attribution = Attribution::new(RealHost::new(&world.root), config);
    let clock = Clock::new(time::clock_offset_us());
    for (what, pid, expected) in cases {
        // Two searches for a namespace are kept apart.
        std::thread::sleep(Duration::from_millis(250));
        let now_ns = time::monotonic_ns();
        let key = OwnerKey {
            pid,
            ..OwnerKey::default()
        };
        let owner = attribution.owner(&key, now_ns, now_ns, &clock);
        let process = owner.process.as_ref().unwrap();
        assert_eq!(
            (process.name.as_str(), process.args.as_deref()),
            ("sleep", Some("sleep 1000")),
            "{what}"
        );
        assert_eq!(owner.escaped, expected, "{what}: {owner:?}");
    }
    assert_eq!(attribution.searches_skipped, 0);
}
