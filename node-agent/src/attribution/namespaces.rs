//! Whether a process is where its cgroup says it is. Pure.
//!
//! A container is made of a cgroup and namespaces. A process in the one and not in the other has left it, or has come from
//! outside: `nsenter`, an exploited runtime, an operator's debugging. The rules, on facts only:
//!
//! 1. A process in a container's cgroup **in the host's mount namespace** has escaped. Every runtime gives a container a
//!    mount namespace of its own, also where it shares everything else.
//! 2. A process in a container's cgroup in the host's PID or network namespace has escaped **if the container's first
//!    process is not in it**. So `hostPID` and `hostNetwork` pods are not, by this alone.
//! 3. A process in no container's cgroup **in the mount namespace of a container** has escaped, the other way round. PID and network
//!    namespaces do not count here: a container may share those of a machine that it runs in (systemd-nspawn, a VM's
//!    supervisor), and administrators enter network namespaces to look (`ip netns exec`).
//!
//! A monitor beside a container (conmon) belongs to the host. What cannot be read decides nothing. The host's namespaces
//! are those of process 1 as the agent sees it: without the host's PID namespace the agent's own pod is its host.

use super::cgroup::Place;

/// Inodes of a process's namespaces; 0 where one could not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Mounts.
    pub mnt: u64,
    /// Processes.
    pub pid: u64,
    /// Network.
    pub net: u64,
}

/// Whether a process in a container's cgroup is outside of the container (rules 1 and 2). `first` are the namespaces of the
/// container's first process, as far as it is there.
pub fn left(process: Namespaces, host: Namespaces, first: Option<Namespaces>) -> bool {
    let same = |one: u64, other: u64| one != 0 && one == other;
    let differs = |one: u64, other: u64| one != 0 && other != 0 && one != other;
    let first = first.unwrap_or_default();
    same(process.mnt, host.mnt)
        || (same(process.pid, host.pid) && differs(first.pid, host.pid))
        || (same(process.net, host.net) && differs(first.net, host.net))
}

/// Whether a process might have entered a container from outside (rule 3): then the container is to be looked for.
pub fn may_have_entered(place: &Place, process: Namespaces, host: Namespaces) -> bool {
    place.containers.is_empty()
        && !place.monitor
        && process.mnt != 0
        && host.mnt != 0
        && process.mnt != host.mnt
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::cgroup;

    const HOST: Namespaces = Namespaces {
        mnt: 1,
        pid: 2,
        net: 3,
    };
    const CONTAINER: Namespaces = Namespaces {
        mnt: 11,
        pid: 12,
        net: 13,
    };

    #[test]
    fn who_left() {
        let host_network = Namespaces {
            net: 3,
            ..CONTAINER
        };
        let host_pid = Namespaces {
            pid: 2,
            ..CONTAINER
        };
        let unknown = Namespaces::default();
        for (process, first, expected) in [
            (CONTAINER, Some(CONTAINER), false),
            (HOST, Some(CONTAINER), true),
            (HOST, None, true),
            (
                Namespaces {
                    mnt: 1,
                    ..CONTAINER
                },
                Some(CONTAINER),
                true,
            ),
            (host_network, Some(host_network), false),
            (host_network, Some(CONTAINER), true),
            (host_network, None, false),
            (host_pid, Some(host_pid), false),
            (host_pid, Some(CONTAINER), true),
            (unknown, Some(CONTAINER), false),
            (host_pid, Some(unknown), false),
        ] {
            assert_eq!(
                left(process, HOST, first),
                expected,
                "{process:?} {first:?}"
            );
        }
        assert!(!left(unknown, unknown, Some(unknown)));
        assert!(!left(CONTAINER, unknown, Some(CONTAINER)));
    }

    #[test]
    fn who_may_have_entered() {
        let id = "ab".repeat(32);
        for (path, process, expected) in [
            ("/system.slice/ssh.service".to_owned(), CONTAINER, true),
            ("/system.slice/ssh.service".to_owned(), HOST, false),
            (format!("/docker/{id}"), CONTAINER, false),
            (
                format!("/machine.slice/libpod-conmon-{id}.scope"),
                CONTAINER,
                false,
            ),
            ("/".to_owned(), Namespaces::default(), false),
        ] {
            let place = cgroup::place(&path);
            assert_eq!(may_have_entered(&place, process, HOST), expected, "{path}");
        }
    }
}
