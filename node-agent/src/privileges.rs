//! What the agent may do, and that it may do nothing else.
//!
//! It needs no user 0: a unit gives it the capabilities below. Whatever else it was started with it gives up before it reads
//! anything from elsewhere.

use caps::{CapSet, Capability, CapsHashSet};

/// A capability, and what for.
pub type Use = (Capability, &'static str);

/// Without these the agent does not work.
pub const NEEDED: [Use; 3] = [
    (Capability::CAP_BPF, "load the kernel programs"),
    (
        Capability::CAP_PERFMON,
        "kernel programs that read fields of sockets",
    ),
    (
        Capability::CAP_NET_ADMIN,
        "attach them to a cgroup, list sockets",
    ),
];

/// Without these something is left out, and counted where it is.
pub const USEFUL: [Use; 4] = [
    (
        Capability::CAP_SYS_PTRACE,
        "executables and arguments of other users' processes, and who holds an older socket",
    ),
    (
        Capability::CAP_DAC_READ_SEARCH,
        "names of cgroups whose processes are gone",
    ),
    (
        Capability::CAP_SYS_ADMIN,
        "older and silent connections in network namespaces of containers; mounting bpffs",
    ),
    (
        Capability::CAP_SYS_RESOURCE,
        "locked memory for maps before kernel 5.11",
    ),
];

/// Why privileges could not be given up.
#[derive(Debug, thiserror::Error)]
#[error("give up capabilities: {0}")]
pub struct PrivilegeError(#[from] caps::errors::CapsError);

/// Gives up every capability that is not named above, for this thread and those it starts. Call it before any is started.
pub fn drop_the_rest() -> Result<(), PrivilegeError> {
    let named: CapsHashSet = NEEDED.iter().chain(&USEFUL).map(|(one, _)| *one).collect();
    let held = caps::read(None, CapSet::Permitted)?;
    // Nothing that could be started from here may have more either.
    if held.contains(&Capability::CAP_SETPCAP) {
        for other in caps::read(None, CapSet::Bounding)?.difference(&named) {
            caps::drop(None, CapSet::Bounding, *other)?;
        }
    }
    let kept: CapsHashSet = held.intersection(&named).copied().collect();
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    Ok(())
}

/// Those of `wanted` that this process does not have.
pub fn missing(wanted: &[Use]) -> Vec<Use> {
    let held = caps::read(None, CapSet::Effective).unwrap_or_default();
    let absent = wanted.iter().filter(|(one, _)| !held.contains(one));
    absent.copied().collect()
}
