//! What the agent sees of real connections on the running kernel, each case with an exact right answer.
//!
//! Every case runs in a process of its own, in a network namespace and a cgroup of its own; whatever becomes of that
//! process, its pins, cgroup and children are removed. Needs root: without it every case fails and says so.

// A test without the standard harness is a program to the lints; it is a test all the same.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod calls;
mod cases;
mod datagrams;
mod lookups;
mod losses;
mod nginx;
mod packet;
mod programs;
mod tls;
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("inside") => world::inside(&arguments[1..]),
        Some("thread") => world::thread_connects_and_exits(&arguments[1..]),
        Some("connect") => world::connect_and_exit(&arguments[1..]),
        Some("listen") => world::listen(&arguments[1..]),
        Some("agent") => world::agent(&arguments[1..]),
        Some("programs") => programs::list(),
        Some("worker") => calls::worker(),
        Some("receiver") => calls::receiver(),
        Some("send") => world::send(),
        _ => world::run_all(&arguments),
    }
}
