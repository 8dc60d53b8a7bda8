//! Container ids in cgroup paths. Pure.

/// Digits of a container id.
const ID_LEN: usize = 64;

/// The container that a cgroup path belongs to: the innermost component that is an id, alone
/// (`/docker/ID`, `/kubepods/burstable/podUID/ID`) or dressed by a runtime (`docker-ID.scope`, `cri-containerd-ID.scope`,
/// `crio-ID.scope`, `libpod-ID.scope`, `UNIT:cri-containerd:ID`). The monitor beside a container is not in it.
pub fn container(path: &str) -> Option<String> {
    path.rsplit('/').find_map(|component| {
        let component = component.strip_suffix(".scope").unwrap_or(component);
        let at = component.len().checked_sub(ID_LEN)?;
        let (dress, id) = (component.get(..at)?, component.get(at..)?);
        let is_id = id
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let separated = dress.is_empty() || dress.ends_with(['-', ':']);
        (is_id && separated && !dress.contains("conmon")).then(|| id.to_owned())
    })
}

/// The cgroup v2 path in `/proc/PID/cgroup`.
pub fn unified(cgroups: &str) -> Option<String> {
    cgroups
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_on_both_hierarchies() {
        let id = "0123456789abcdef".repeat(4);
        for (path, expected) in [
            (format!("/docker/{id}"), true),
            (format!("/system.slice/docker-{id}.scope"), true),
            (format!("/system.slice/docker-{id}.scope/init"), true),
            (format!("5:memory:/kubepods/burstable/pod0b1c/{id}"), true),
            (
                format!("/kubepods.slice/kubepods-pod0b1c.slice/cri-containerd-{id}.scope"),
                true,
            ),
            (
                format!(
                    "/system.slice/containerd.service/kubepods-pod0b1c.slice:cri-containerd:{id}"
                ),
                true,
            ),
            (
                format!("/kubepods.slice/kubepods-pod0b1c.slice/crio-{id}.scope/container"),
                true,
            ),
            (format!("/machine.slice/libpod-{id}.scope/container"), true),
            (format!("/machine.slice/libpod-conmon-{id}.scope"), false),
            (format!("/kubepods.slice/crio-conmon-{id}.scope"), false),
            (format!("/user.slice/x{id}"), false),
            (format!("/docker/{}", &id[1..]), false),
            ("/system.slice/nginx.service".to_owned(), false),
            ("/überlang".repeat(12), false),
        ] {
            assert_eq!(container(&path), expected.then(|| id.clone()), "{path}");
        }
    }

    #[test]
    fn the_unified_line() {
        assert_eq!(
            unified("3:cpu:/x\n0::/system.slice/a.service\n").as_deref(),
            Some("/system.slice/a.service")
        );
        assert_eq!(unified("3:cpu:/x"), None);
    }
}
