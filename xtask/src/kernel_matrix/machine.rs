//! A machine with a given kernel: QEMU without acceleration, which works wherever the build does.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

const QEMU: &str = "qemu-system-x86_64";
/// Debian 12's QEMU sets wrong flags for CMPXCHG16B; a kernel that allocates memory with it (6.12) dies at once.
const PROCESSOR: &str = "max,cx16=off";
/// `quiet` keeps the kernel's lines few; a panic or an oops ends the machine at once.
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic rdinit=/init \
                            mitigations=off random.trust_cpu=on";
/// Longest a machine may say nothing: a limit for a hang, no measurement, and longer than that of a case. How long all of it takes
/// says more of the build machine than of the kernel, and has no limit.
const SILENCE_LIMIT: Duration = Duration::from_secs(7 * 60);
/// Lines of the kernel's console that an error shows.
const TAIL_LINES: usize = 25;

/// Boots `kernel` with `initramfs` and gives what the tests wrote, line by line, to `line`. The machine ends by itself;
/// one that says nothing of an end, or falls silent, is an error with the last lines of its console.
pub fn run(dir: &Path, kernel: &Path, initramfs: &[u8], mut line: impl FnMut(&str)) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let archive = dir.join("initramfs");
    fs::write(&archive, initramfs).context("cannot write the initramfs")?;
    let console = dir.join("console.log");
    let mut machine = Machine(
        Command::new(QEMU)
            .args(["-accel", "tcg", "-cpu", PROCESSOR, "-m", "1G", "-smp", "2"])
            .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(&archive)
            .args(["-append", COMMAND_LINE, "-serial"])
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {QEMU}; `cargo xtask setup` installs it"))?,
    );
    let mut ended = false;
    let output = machine.0.stdout.take().context("no output")?;
    let (send, receive) = mpsc::channel();
    let reader = thread::spawn(move || {
        for bytes in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            if send.send(text).is_err() {
                break;
            }
        }
    });
    loop {
        match receive.recv_timeout(SILENCE_LIMIT) {
            Ok(text) => {
                ended |= text.starts_with("weft-vm: end");
                line(&text);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                drop(machine);
                bail!(
                    "the machine said nothing for {} s; its console:\n{}",
                    SILENCE_LIMIT.as_secs(),
                    tail(&console)
                );
            }
        }
    }
    let _ = reader.join();
    let status = machine.0.wait().context("cannot wait for the machine")?;
    if !ended {
        bail!(
            "the machine stopped ({status}) before its tests did; its console:\n{}",
            tail(&console)
        );
    }
    Ok(())
}

/// Ends with this value.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn tail(console: &Path) -> String {
    let bytes = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    if lines.is_empty() {
        return "      (it said nothing)".to_owned();
    }
    lines[lines.len().saturating_sub(TAIL_LINES)..]
        .iter()
        .map(|line| format!("      {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}
