//! What this machine gives the agent, hook by hook.

use std::fs::{self, File};
use std::path::Path;

use weft_transport::Identity;

use crate::attribution::host::host_namespaces;
use crate::calls::hooks::CallHooks;
use crate::config::Config;
use crate::kernel::datagrams::{self, Sender};
use crate::kernel::{Plan, hooks};
use crate::limits::sizes;
use crate::{pods, privileges, run, snapshot};

/// Size of a ring of calls that nobody reads.
const TRIAL_CALLS_RING_BYTES: u32 = 1 << 16;
/// Oldest kernel that is tested.
const OLDEST_KERNEL: (u32, u32) = (5, 10);

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub subject: String,
    /// How it is, in a few words.
    pub detail: String,
    /// Whether the agent can do its work.
    pub verdict: Verdict,
}

/// How bad it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// The agent works, with something left out.
    Reduced {
        /// What to do.
        hint: String,
    },
    /// The agent does not work.
    Bad {
        /// Why.
        cause: String,
        /// What to do.
        hint: String,
    },
}

impl Finding {
    /// Whether the agent can work with it.
    pub fn passed(&self) -> bool {
        !matches!(self.verdict, Verdict::Bad { .. })
    }
}

/// Looks at everything. Attaches the hooks for a moment, beside those of a running agent, and detaches them again.
pub fn examine(config: &Config) -> Vec<Finding> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut findings = vec![
        kernel(release.trim()),
        capabilities(),
        cgroup(&config.cgroup),
        bpffs(config),
        btf(),
    ];
    findings.extend(programs(config));
    findings.push(maps(config));
    findings.push(calls(config));
    findings.push(socket_list());
    findings.push(namespaces());
    let (detail, verdict) = pods::examine(config);
    findings.push(finding("pods", detail, verdict));
    findings.push(identity(config));
    findings
}

/// The findings as text: `ok`, `warn` or `FAIL`, with cause and hint below.
pub fn render(findings: &[Finding]) -> String {
    let width = findings
        .iter()
        .map(|finding| finding.subject.len())
        .max()
        .unwrap_or_default();
    let mut text = String::new();
    for Finding {
        subject,
        detail,
        verdict,
    } in findings
    {
        let (word, cause, hint) = match verdict {
            Verdict::Good => ("ok  ", None, None),
            Verdict::Reduced { hint } => ("warn", None, Some(hint)),
            Verdict::Bad { cause, hint } => ("FAIL", Some(cause), Some(hint)),
        };
        text += &format!("{word}  {subject:width$}  {detail}\n");
        cause
            .into_iter()
            .for_each(|cause| text += &format!("      cause: {cause}\n"));
        hint.into_iter()
            .for_each(|hint| text += &format!("      hint:  {hint}\n"));
    }
    text
}

fn finding(subject: &str, detail: impl Into<String>, verdict: Verdict) -> Finding {
    Finding {
        subject: subject.into(),
        detail: detail.into(),
        verdict,
    }
}

fn bad(cause: impl ToString, hint: &str) -> Verdict {
    Verdict::Bad {
        cause: cause.to_string(),
        hint: hint.into(),
    }
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse::<u32>().unwrap_or_default());
    let version = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    let verdict = if version >= OLDEST_KERNEL {
        Verdict::Good
    } else {
        bad("older than 5.10", "install a newer kernel")
    };
    finding("kernel", release, verdict)
}

fn capabilities() -> Finding {
    let names = |missing: &[privileges::Use]| -> String {
        let names = missing.iter().map(|(one, what)| format!("{one} ({what})"));
        names.collect::<Vec<_>>().join(", ")
    };
    let needed = privileges::missing(&privileges::NEEDED);
    let useful = privileges::missing(&privileges::USEFUL);
    let held = privileges::NEEDED.len() + privileges::USEFUL.len() - needed.len() - useful.len();
    let verdict = if !needed.is_empty() {
        let hint = "give them in the unit (AmbientCapabilities=), or run as root";
        bad(format!("missing {}", names(&needed)), hint)
    } else if !useful.is_empty() {
        Verdict::Reduced {
            hint: format!("left out without {}", names(&useful)),
        }
    } else {
        Verdict::Good
    };
    let detail = format!("{held} capabilities of those it has a use for");
    finding("privileges", detail, verdict)
}

fn cgroup(path: &Path) -> Finding {
    let shown = path.display().to_string();
    match nix::sys::statfs::statfs(path) {
        Ok(fs) if fs.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC => {
            finding("cgroup v2", shown, Verdict::Good)
        }
        Ok(_) => {
            let hint = match unified_mount() {
                Some(mount) => format!("set cgroup = \"{mount}\" in the configuration"),
                None => "mount -t cgroup2 cgroup2 /sys/fs/cgroup".to_owned(),
            };
            finding("cgroup v2", shown, bad("not a cgroup v2 directory", &hint))
        }
        Err(error) => finding(
            "cgroup v2",
            shown,
            bad(error, "create it, or set cgroup in the configuration"),
        ),
    }
}

fn unified_mount() -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut found = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let at = fields.next()?;
        (fields.next()? == "cgroup2").then(|| at.to_owned())
    });
    found.next()
}

fn bpffs(config: &Config) -> Finding {
    let dir = config.pin_dir();
    match hooks::require_bpffs(&dir) {
        Ok(()) => finding("bpf file system", dir.display().to_string(), Verdict::Good),
        Err(error) => finding(
            "bpf file system",
            dir.display().to_string(),
            bad(
                error,
                "mount -t bpf bpf /sys/fs/bpf, or set capture.pin_dir",
            ),
        ),
    }
}

fn btf() -> Finding {
    if hooks::offsets().iter().all(|offset| *offset != 0) {
        return finding("kernel types (BTF)", "all fields found", Verdict::Good);
    }
    finding(
        "kernel types (BTF)",
        "not there: byte counts may be off by one, refused and timed out may be confused",
        Verdict::Reduced {
            hint: "a kernel with CONFIG_DEBUG_INFO_BTF=y".into(),
        },
    )
}

fn programs(config: &Config) -> Vec<Finding> {
    let plan = run::plan(config);
    let current = hooks::try_program(&plan, "weft_ops", true).is_ok();
    let attempt = |program: &'static str| {
        hooks::try_program(&plan, program, current).or_else(|error| match program {
            // Before 5.12; what is said of the better one is why there is none.
            "weft_ops" => hooks::try_program(&plan, hooks::HASHED, false).map_err(|_| error),
            _ => Err(error),
        })
    };
    let one = |program: &'static str, subject: &str, what: &str| match attempt(program) {
        Ok(()) => finding(subject, what, Verdict::Good),
        Err(error) => finding(
            subject,
            "refused",
            bad(error, "a kernel with CONFIG_CGROUP_BPF=y; see the cause"),
        ),
    };
    let process = if current {
        finding("process at connect", "named by sock_ops", Verdict::Good)
    } else {
        finding(
            "process at connect",
            "the process that created the socket is named",
            Verdict::Reduced {
                hint: "kernel 6.16 names the one that connects or listens".into(),
            },
        )
    };
    let mut findings = vec![
        one("weft_create", "hook sock_create", "who creates a socket"),
        one(
            "weft_ops",
            "hook sock_ops",
            "connect, listen, established, closed, update",
        ),
        process,
    ];
    findings.extend(datagram_programs(&plan));
    findings
}

/// The call hooks are attached for a moment, beside those of a running agent.
/// What the maps take of the kernel's memory.
fn maps(config: &Config) -> Finding {
    let (wanted, limit) = (run::sizes(config), config.limits.kernel_memory_bytes);
    let processors = sizes::possible_processors();
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let takes = mib(sizes::kernel_bytes(&wanted, processors));
    let detail = format!("{takes} of {} ({processors} processors)", mib(limit));
    let verdict = match sizes::fit(wanted, processors, limit) {
        Ok(sizes) if sizes == wanted => Verdict::Good,
        Ok(sizes) => Verdict::Reduced {
            hint: format!("maps will be smaller: {sizes:?}; raise [limits] kernel_memory_bytes"),
        },
        Err(error) => bad(error, "raise [limits] kernel_memory_bytes"),
    };
    finding("kernel memory", detail, verdict)
}

fn calls(config: &Config) -> Finding {
    let subject = "call hooks";
    if !config.capture.calls {
        return finding(subject, "switched off (capture.calls)", Verdict::Good);
    }
    match CallHooks::attach(TRIAL_CALLS_RING_BYTES) {
        Ok(hooks) => finding(
            subject,
            format!(
                "by {}: accept, send, receive, exec, exit",
                hooks.mode.name()
            ),
            Verdict::Good,
        ),
        Err(missing) => finding(
            subject,
            format!("not there: {missing}"),
            Verdict::Reduced {
                hint: "connections belong to the process that connected or listens; capture.calls = false says that \
                       this is wanted"
                    .into(),
            },
        ),
    }
}

/// The hooks for datagrams. Without them connections are seen all the same.
fn datagram_programs(plan: &Plan) -> Vec<Finding> {
    let what = |program| match program {
        "weft_egress" => (
            "hook skb egress",
            "datagrams sent, questions to name servers",
        ),
        "weft_ingress" => ("hook skb ingress", "datagrams received, answers"),
        "weft_udp_create" => ("hook udp sock_create", "who creates a UDP socket"),
        _ => (
            "hook udp sock_release",
            "when a UDP flow's socket is closed",
        ),
    };
    let mut sender = None;
    let mut findings: Vec<Finding> = datagrams::programs()
        .map(|program| {
            let (subject, detail) = what(program);
            match datagrams::try_program(plan, program) {
                Ok(found) => {
                    sender = sender.max(Some(found).filter(|_| program == "weft_egress"));
                    finding(subject, detail, Verdict::Good)
                }
                Err(error) => finding(
                    subject,
                    format!("refused: no UDP, no DNS ({error})"),
                    Verdict::Reduced {
                        hint: "a kernel with CONFIG_CGROUP_BPF=y, 5.10 or later".into(),
                    },
                ),
            }
        })
        .collect();
    let named = |detail: &str| finding("process of a datagram", detail, Verdict::Good);
    findings.extend(sender.map(|sender| match sender {
        Sender::Helpers => named("the one that sends"),
        Sender::Task => named("the one that sends (read from its task)"),
        Sender::Creator => finding(
            "process of a datagram",
            "the process that created the socket is named",
            Verdict::Reduced {
                hint: "a kernel with CONFIG_DEBUG_INFO_BTF=y, or 6.16".into(),
            },
        ),
    }));
    findings
}

fn socket_list() -> Finding {
    let subject = "socket list (sock_diag)";
    match snapshot::probe() {
        Ok(sockets) => finding(
            subject,
            format!("{sockets} TCP sockets in this namespace"),
            Verdict::Good,
        ),
        Err(error) => finding(
            subject,
            format!("{error}: connections older than the agent are not seen"),
            Verdict::Reduced {
                hint: "modprobe tcp_diag".into(),
            },
        ),
    }
}

/// Containers are told from the host by their namespaces; without the host's PID namespace none is the host's.
fn namespaces() -> Finding {
    let subject = "processes of the host";
    let own = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let nested = own
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .is_some_and(|pids| pids.split_whitespace().count() > 1);
    let reason = if nested {
        "the agent has a PID namespace of its own"
    } else if host_namespaces(Path::new("/proc")).mnt == 0 {
        "the namespaces of process 1 cannot be read"
    } else {
        return finding(subject, "seen, with their namespaces", Verdict::Good);
    };
    finding(
        subject,
        format!("{reason}: processes that left their container are not found"),
        Verdict::Reduced {
            hint: "run the agent with hostPID and CAP_SYS_PTRACE".into(),
        },
    )
}

fn identity(config: &Config) -> Finding {
    let dir = config.identity.display().to_string();
    match Identity::load(&config.identity) {
        Ok(identity) if identity.id().name() == config.name => {
            finding("identity", dir, Verdict::Good)
        }
        Ok(identity) => finding(
            "identity",
            dir,
            bad(
                format!(
                    "the certificate is for {}, the configuration for {}",
                    identity.id().name(),
                    config.name
                ),
                "weft pki issue",
            ),
        ),
        Err(error) => {
            let hint = if File::open(&config.identity).is_ok() {
                "weft pki issue"
            } else {
                "set identity, or weft pki issue"
            };
            finding("identity", dir, bad(error, hint))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_fail_and_new_ones_do_not() {
        for (release, good) in [
            ("6.18.44-fc", true),
            ("5.10.0-28-amd64", true),
            ("5.4.0", false),
            ("", false),
        ] {
            assert_eq!(kernel(release).passed(), good, "{release}");
        }
    }

    #[test]
    fn words_cause_and_hint() {
        let findings = [
            finding("a", "fine", Verdict::Good),
            finding(
                "bcd",
                "so so",
                Verdict::Reduced {
                    hint: "do it".into(),
                },
            ),
            finding("e", "broken", bad("because", "mend it")),
        ];
        let expected = "ok    a    fine\nwarn  bcd  so so\n      hint:  do it\nFAIL  e    broken\n      cause: because\n      hint:  mend it\n";
        assert_eq!(render(&findings), expected);
    }
}
