//! A lab leaves nothing behind, however it ends.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::panic;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use common::ok;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_lab::lab;
use weft_lab::topology;
use weft_lab::workload::Servers;

/// Not a test: a process with a lab, for the tests below to end.
#[test]
#[ignore = "started by the other tests here"]
fn hold() {
    let topology = ok(topology::relay());
    let _servers = ok(Servers::start(&topology));
    println!("\nlab {}", topology.lab.name());
    std::thread::sleep(Duration::from_secs(600));
}

/// Starts this program again as a process with a lab; gives the lab's name.
fn start_holder() -> (Child, String) {
    let exe = std::env::current_exe().unwrap_or_default();
    let mut command = Command::new(exe);
    command
        .args(["--exact", "hold", "--ignored", "--nocapture"])
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{error}"));
    let lines = child
        .stdout
        .take()
        .map(BufReader::new)
        .into_iter()
        .flat_map(BufRead::lines);
    let name = lines
        .map_while(std::result::Result::ok)
        .find_map(|line| line.strip_prefix("lab ").map(str::to_owned));
    (child, name.unwrap_or_else(|| panic!("no lab was made")))
}

fn end(child: &mut Child, signal: Signal) -> ExitStatus {
    let pid = Pid::from_raw(child.id().cast_signed());
    kill(pid, signal).unwrap_or_else(|error| panic!("{error}"));
    child.wait().unwrap_or_else(|error| panic!("{error}"))
}

/// Namespaces, cgroup, BPF mount and processes of a lab.
fn traces(name: &str) -> Vec<String> {
    let named = |dir: &str| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter(|entry| entry.split('.').next() == Some(name))
            .collect::<Vec<_>>()
    };
    let mut found = named("/run/netns");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in mounts.lines().filter(|line| line.contains(" - cgroup2 ")) {
        found.extend(named(&format!(
            "{}/weft-lab",
            line.split(' ').nth(4).unwrap_or_default()
        )));
    }
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&format!("{name}/bpf")))
            .map(str::to_owned),
    );
    for pid in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let cgroups = fs::read_to_string(pid.path().join("cgroup")).unwrap_or_default();
        // A zombie that nobody has reaped yet is in a cgroup that is no more.
        if cgroups.lines().any(|line| {
            line.contains(&format!("/weft-lab/{name}/")) && !line.ends_with("(deleted)")
        }) {
            found.push(pid.path().display().to_string());
        }
    }
    found.extend(named(
        &std::env::temp_dir().join("weft-lab").to_string_lossy(),
    ));
    found
}

#[test]
fn signals_take_it_down() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (mut child, name) = start_holder();
        assert!(traces(&name).len() > 10, "{:?}", traces(&name));
        let status = end(&mut child, signal);
        assert_eq!(status.code(), Some(128 + signal as i32));
        assert_eq!(traces(&name), Vec::<String>::new());
    }
}

#[test]
fn sweep_removes_what_a_killed_process_left() {
    let (mut child, name) = start_holder();
    assert!(!ok(lab::sweep()).contains(&name), "its process still lives");
    end(&mut child, Signal::SIGKILL);
    assert!(
        traces(&name)
            .iter()
            .any(|trace| Path::new(trace).starts_with("/proc")),
        "nginx outlives its lab"
    );
    assert!(ok(lab::sweep()).contains(&name));
    assert_eq!(traces(&name), Vec::<String>::new());
}

#[test]
fn a_panic_takes_it_down() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let outcome = panic::catch_unwind(move || {
        let topology = ok(topology::destination());
        let _ = sender.send(topology.lab.name().to_owned());
        panic!("on purpose");
    });
    assert!(outcome.is_err());
    assert_eq!(
        traces(&receiver.recv().unwrap_or_default()),
        Vec::<String>::new()
    );
}
