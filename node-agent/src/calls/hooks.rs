//! Attaching the call hooks. Nothing is pinned: they end with the agent, and what happens without it is told by the
//! socket hooks alone.

use std::fs;

use aya::maps::{Map, MapData, PerCpuArray};
use aya::programs::{FEntry, FExit, KProbe, Program, ProgramError, RawTracePoint};
use aya::{Btf, Ebpf, EbpfLoader, VerifierLogLevel};
use weft_agent_common::calls::call_fact;

use super::facts::facts;
use crate::kernel::btf;
use crate::kernel::hooks::brief;
use crate::kernel::sys::Ring;

/// The kernel programs, embedded at build time.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft-calls.bpf.o"));
/// The kernel's own BTF.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The kernel's functions, with the program of each as a trampoline and as a kprobe.
const FUNCTIONS: [(&str, &str, &str); 4] = [
    ("inet_csk_accept", "weft_accept", "weft_accept_probe"),
    ("tcp_sendmsg", "weft_send", "weft_send_probe"),
    ("tcp_recvmsg", "weft_receive", "weft_receive_probe"),
    ("tcp_recvmsg", "weft_received", "weft_received_probe"),
];
/// Tracepoints, with the program of each.
const TRACEPOINTS: [(&str, &str); 2] = [
    ("sched_process_exec", "weft_exec"),
    ("sched_process_exit", "weft_exit"),
];

/// How functions are hooked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `fentry` and `fexit`.
    Trampolines,
    /// `kprobe` and `kretprobe`.
    Probes,
}

impl Mode {
    /// As people know them.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trampolines => "fentry",
            Self::Probes => "kprobe",
        }
    }
}

/// Why there are no call hooks.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// No BTF.
    #[error("this kernel does not publish its types ({VMLINUX}; CONFIG_DEBUG_INFO_BTF)")]
    Types,
    /// BTF without something that is needed.
    #[error("this kernel's types lack {0}")]
    Fact(String),
    /// Neither way to hook a function.
    #[error(
        "this kernel takes neither trampolines (CONFIG_FUNCTION_TRACER, CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS: {trampolines}) \
         nor kprobes (CONFIG_KPROBE_EVENTS, CONFIG_BPF_EVENTS: {probes})"
    )]
    Hooks {
        /// Why no trampolines.
        trampolines: String,
        /// Why no kprobes.
        probes: String,
    },
    /// The ring could not be mapped.
    #[error("map the ring of calls: {0}")]
    Ring(std::io::Error),
}

/// Attached hooks. Dropping it detaches them.
pub struct CallHooks {
    /// The ring.
    pub ring: Ring,
    /// How they are attached.
    pub mode: Mode,
    drops: PerCpuArray<MapData, u64>,
    _object: Ebpf,
}

impl CallHooks {
    /// As trampolines, else as kprobes.
    pub fn attach(ring_bytes: u32) -> Result<Self, Missing> {
        Self::attach_as(Mode::Trampolines, ring_bytes).or_else(|first| {
            Self::attach_as(Mode::Probes, ring_bytes).map_err(|second| match (first, second) {
                (Missing::Fact(trampolines), Missing::Fact(probes)) if trampolines == probes => {
                    Missing::Fact(probes)
                }
                (Missing::Hooks { trampolines, .. }, Missing::Hooks { probes, .. }) => {
                    Missing::Hooks {
                        trampolines,
                        probes,
                    }
                }
                (_, second) => second,
            })
        })
    }

    /// In one way only.
    pub fn attach_as(mode: Mode, ring_bytes: u32) -> Result<Self, Missing> {
        let bytes = fs::read(VMLINUX).map_err(|_| Missing::Types)?;
        let types = btf::Btf::parse(&bytes).ok_or(Missing::Types)?;
        let facts = facts(&types).map_err(Missing::Fact)?;
        let refused = |error: String| Missing::Hooks {
            trampolines: error.clone(),
            probes: error,
        };
        let mut object = load(&facts, ring_bytes).map_err(|error| refused(brief(&error)))?;
        attach(&mut object, mode).map_err(refused)?;
        let taken = (object.take_map("CALLS"), object.take_map("CALL_DROPS"));
        let (Some(Map::RingBuf(ring)), Some(drops)) = taken else {
            return Err(refused("the embedded object lacks a map".into()));
        };
        Ok(Self {
            ring: Ring::map(ring.fd(), ring_bytes).map_err(Missing::Ring)?,
            mode,
            drops: PerCpuArray::try_from(drops).map_err(|error| refused(brief(&error)))?,
            _object: object,
        })
    }

    /// A drop counter, summed over all CPUs.
    pub fn dropped(&self, slot: u32) -> u64 {
        self.drops
            .get(&slot, 0)
            .map(|values| values.iter().sum())
            .unwrap_or_default()
    }
}

/// Programs of a mode, with what each is attached to.
pub fn programs(mode: Mode) -> impl Iterator<Item = (&'static str, &'static str)> {
    let functions = FUNCTIONS.iter().map(move |(function, trampoline, probe)| {
        let program = match mode {
            Mode::Trampolines => trampoline,
            Mode::Probes => probe,
        };
        (*function, *program)
    });
    functions.chain(TRACEPOINTS)
}

fn load(facts: &[u32; call_fact::COUNT], ring_bytes: u32) -> Result<Ebpf, aya::EbpfError> {
    EbpfLoader::new()
        // Asked for after a refusal only.
        .verifier_log_level(VerifierLogLevel::DEBUG)
        .override_global("FACTS", &facts[..], true)
        .map_max_entries("CALLS", ring_bytes)
        .load(OBJECT)
}

fn attach(object: &mut Ebpf, mode: Mode) -> Result<(), String> {
    let types = Btf::from_sys_fs().map_err(|error| brief(&error))?;
    for (point, name) in programs(mode) {
        let program = object
            .program_mut(name)
            .ok_or_else(|| format!("no program {name}"))?;
        one(program, point, &types).map_err(|error| format!("{name}: {}", brief(&error)))?;
    }
    Ok(())
}

fn one(program: &mut Program, point: &str, types: &Btf) -> Result<(), ProgramError> {
    match program {
        Program::FEntry(entry) => {
            let entry: &mut FEntry = entry;
            entry.load(point, types)?;
            entry.attach().map(drop)
        }
        Program::FExit(exit) => {
            let exit: &mut FExit = exit;
            exit.load(point, types)?;
            exit.attach().map(drop)
        }
        Program::KProbe(probe) => {
            let probe: &mut KProbe = probe;
            probe.load()?;
            probe.attach(point, 0).map(drop)
        }
        Program::RawTracePoint(tracepoint) => {
            let tracepoint: &mut RawTracePoint = tracepoint;
            tracepoint.load()?;
            tracepoint.attach(point).map(drop)
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
