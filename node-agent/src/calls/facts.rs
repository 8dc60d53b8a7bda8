//! What the call hooks must know of the running kernel, from its BTF. Pure.

use weft_agent_common::calls::call_fact;

use crate::kernel::btf::Btf;

/// A value that no kind of iterator has.
const NO_ITERATOR: u32 = u32::MAX;
/// `ITER_IOVEC` of kernels that keep the direction in the lowest bit of the same byte (before 5.14).
const OLD_IOVEC: u32 = 4;

/// Facts by [`call_fact`], or what is missing.
pub fn facts(btf: &Btf<'_>) -> Result<[u32; call_fact::COUNT], String> {
    let offset = |structure: &str, member: &str| {
        btf.offset(structure, member)
            .ok_or_else(|| format!("{structure}.{member}"))
    };
    let either = |structure: &str, new: &str, old: &str| {
        offset(structure, new).or_else(|_| offset(structure, old))
    };
    let parameters = |function: &str| {
        btf.parameters(function)
            .ok_or_else(|| format!("the function {function}"))
    };
    let vector = btf.enumerator("ITER_IOVEC").ok_or("ITER_IOVEC")?;
    let mut facts = [0; call_fact::COUNT];
    for (fact, value) in [
        (call_fact::SKC_COOKIE, offset("sock_common", "skc_cookie")?),
        (call_fact::MSG_ITER, offset("msghdr", "msg_iter")?),
        (
            call_fact::ITER_TYPE,
            either("iov_iter", "iter_type", "type")?,
        ),
        (
            call_fact::ITER_TYPE_MASK,
            if vector == OLD_IOVEC { 0xfe } else { 0xff },
        ),
        (call_fact::ITER_IOVEC, vector),
        (
            call_fact::ITER_UBUF,
            btf.enumerator("ITER_UBUF").unwrap_or(NO_ITERATOR),
        ),
        (call_fact::ITER_VECTOR, either("iov_iter", "__iov", "iov")?),
        (
            call_fact::ITER_BUFFER,
            btf.offset("iov_iter", "ubuf").unwrap_or_default(),
        ),
        (
            call_fact::TASK_LEADER,
            offset("task_struct", "group_leader")?,
        ),
        (
            call_fact::TASK_STARTED,
            offset("task_struct", "start_boottime")?,
        ),
        (
            call_fact::TASK_PARENT,
            offset("task_struct", "real_parent")?,
        ),
        (call_fact::TASK_TGID, offset("task_struct", "tgid")?),
        (call_fact::TASK_PID, offset("task_struct", "pid")?),
        (call_fact::TASK_COMM, offset("task_struct", "comm")?),
        (call_fact::TASK_MEMORY, offset("task_struct", "mm")?),
        (
            call_fact::TASK_EXIT_CODE,
            offset("task_struct", "exit_code")?,
        ),
        (
            call_fact::ARGUMENTS_START,
            offset("mm_struct", "arg_start")?,
        ),
        (call_fact::ARGUMENTS_END, offset("mm_struct", "arg_end")?),
        (call_fact::PROGRAM_NAME, offset("linux_binprm", "filename")?),
        (call_fact::ACCEPT_PARAMETERS, parameters("inet_csk_accept")?),
        (call_fact::RECEIVE_PARAMETERS, parameters("tcp_recvmsg")?),
    ] {
        facts[fact] = value;
    }
    // The programs have a branch for each form that was ever there, and for no other.
    for (fact, forms) in [
        (call_fact::ACCEPT_PARAMETERS, &[2, 4][..]),
        (call_fact::RECEIVE_PARAMETERS, &[4, 5, 6]),
    ] {
        if !forms.contains(&facts[fact]) {
            return Err(format!(
                "a known form of its functions ({} parameters)",
                facts[fact]
            ));
        }
    }
    Ok(facts)
}
