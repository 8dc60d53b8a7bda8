use proptest::prelude::*;

use super::*;

const A: &str = "4f0c3b1c9e8a7d6b5c4f3e2d1c0b9a8f7e6d5c4b3a2f1e0d9c8b7a6f5e4d3c2b";
const B: &str = "b0e6d8a1f2c34d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6";
const UID: &str = "2ad1f2a6-6d6b-4c0e-9a3b-0f6a6e1f9d11";
const STATIC: &str = "5f2ba0c3d9c8e4c1a1a4f7b8c2d3e4f5";

struct Case {
    path: &'static str,
    containers: &'static [(&'static str, Runtime)],
    pod: Option<&'static str>,
    unit: Option<&'static str>,
}

/// `$A`, `$B` stand for ids, `$U` and `$u` for a pod's uid as cgroupfs and systemd write it, `$S` for a static pod's.
const fn case(
    path: &'static str,
    containers: &'static [(&'static str, Runtime)],
    pod: Option<&'static str>,
    unit: Option<&'static str>,
) -> Case {
    Case {
        path,
        containers,
        pod,
        unit,
    }
}

use Runtime::{Containerd, Crio, Docker, Podman, Unknown};

/// Forms as the programs named write them.
const CASES: &[Case] = &[
    // Docker: cgroupfs driver (v1 and v2), systemd driver, with a process moved below, a parent of its own, rootless.
    case("/docker/$A", &[(A, Docker)], None, None),
    case("/system.slice/docker-$A.scope", &[(A, Docker)], None, None),
    case(
        "/system.slice/docker-$A.scope/init",
        &[(A, Docker)],
        None,
        None,
    ),
    case("/build.slice/docker-$A.scope", &[(A, Docker)], None, None),
    case("/actions_job/$A", &[(A, Unknown)], None, None),
    case(
        "/ecs/6b1f0c6e9f0e4f1d8f5f0a1b2c3d4e5f/$A",
        &[(A, Unknown)],
        None,
        None,
    ),
    case(
        "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-$A.scope",
        &[(A, Docker)],
        None,
        None,
    ),
    case(
        "/system.slice/docker.service",
        &[],
        None,
        Some("docker.service"),
    ),
    // kubelet with the cgroupfs driver: bare ids of containerd or Docker, dressed ones of CRI-O; guaranteed pods have no
    // class in their path.
    case(
        "/kubepods/burstable/pod$U/$A",
        &[(A, Unknown)],
        Some(UID),
        None,
    ),
    case(
        "/kubepods/besteffort/pod$U/$A",
        &[(A, Unknown)],
        Some(UID),
        None,
    ),
    case("/kubepods/pod$U/$A", &[(A, Unknown)], Some(UID), None),
    case(
        "/kubepods/burstable/pod$S/$A",
        &[(A, Unknown)],
        Some(STATIC),
        None,
    ),
    case(
        "/kubepods/burstable/pod$U/crio-$A",
        &[(A, Crio)],
        Some(UID),
        None,
    ),
    case("/kubepods/burstable/pod$U", &[], Some(UID), None),
    // kubelet with the systemd driver.
    case(
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod$u.slice/cri-containerd-$A.scope",
        &[(A, Containerd)],
        Some(UID),
        None,
    ),
    case(
        "/kubepods.slice/kubepods-pod$u.slice/cri-containerd-$A.scope",
        &[(A, Containerd)],
        Some(UID),
        None,
    ),
    case(
        "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod$u.slice/docker-$A.scope",
        &[(A, Docker)],
        Some(UID),
        None,
    ),
    case(
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod$S.slice/crio-$A.scope/container",
        &[(A, Crio)],
        Some(STATIC),
        None,
    ),
    case(
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod$u.slice/crio-conmon-$A.scope",
        &[],
        Some(UID),
        Some("crio-conmon-$A.scope"),
    ),
    // containerd's own cgroupfs driver under a systemd kubelet.
    case(
        "/system.slice/containerd.service/kubepods-burstable-pod$u.slice:cri-containerd:$A",
        &[(A, Containerd)],
        Some(UID),
        None,
    ),
    case(
        "/system.slice/containerd.service",
        &[],
        None,
        Some("containerd.service"),
    ),
    // Seen from a cgroup namespace of the agent's own.
    case(
        "/../cri-containerd-$A.scope",
        &[(A, Containerd)],
        None,
        None,
    ),
    case("/../../pod$U/$A", &[(A, Unknown)], Some(UID), None),
    // nerdctl, rootful and rootless.
    case(
        "/system.slice/nerdctl-$A.scope",
        &[(A, Containerd)],
        None,
        None,
    ),
    case(
        "/user.slice/user-1000.slice/user@1000.service/user.slice/nerdctl-$A.scope",
        &[(A, Containerd)],
        None,
        None,
    ),
    // Podman: systemd and cgroupfs managers, in a pod, rootless, its monitor, a Quadlet's service.
    case("/machine.slice/libpod-$A.scope", &[(A, Podman)], None, None),
    case(
        "/machine.slice/libpod-$A.scope/container",
        &[(A, Podman)],
        None,
        None,
    ),
    case("/libpod_parent/libpod-$A", &[(A, Podman)], None, None),
    case(
        "/machine.slice/machine-libpod_pod_$B.slice/libpod-$A.scope/container",
        &[(A, Podman)],
        None,
        None,
    ),
    case(
        "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-$A.scope/container",
        &[(A, Podman)],
        None,
        None,
    ),
    case(
        "/machine.slice/libpod-conmon-$A.scope",
        &[],
        None,
        Some("libpod-conmon-$A.scope"),
    ),
    case(
        "/system.slice/web.service/libpod-payload-$A",
        &[(A, Podman)],
        None,
        Some("web.service"),
    ),
    case(
        "/system.slice/web.service/runtime",
        &[],
        None,
        Some("web.service"),
    ),
    // Nested: kind (cgroupfs and systemd), Docker in Docker, Docker in a pod, systemd in a container.
    case(
        "/docker/$B/kubelet/kubepods/burstable/pod$U/$A",
        &[(A, Unknown), (B, Docker)],
        Some(UID),
        None,
    ),
    case(
        "/system.slice/docker-$B.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
         kubelet-kubepods-burstable-pod$u.slice/cri-containerd-$A.scope",
        &[(A, Containerd), (B, Docker)],
        Some(UID),
        None,
    ),
    case(
        "/system.slice/docker-$B.scope/system.slice/containerd.service",
        &[(B, Docker)],
        None,
        Some("containerd.service"),
    ),
    case(
        "/docker/$B/docker/$A",
        &[(A, Docker), (B, Docker)],
        None,
        None,
    ),
    case(
        "/kubepods/burstable/pod$U/$B/docker/$A",
        &[(A, Docker), (B, Unknown)],
        Some(UID),
        None,
    ),
    case(
        "/docker/$A/system.slice/ssh.service",
        &[(A, Docker)],
        None,
        Some("ssh.service"),
    ),
    case(
        "/machine.slice/libpod-$A.scope/container/system.slice/nginx.service",
        &[(A, Podman)],
        None,
        Some("nginx.service"),
    ),
    case(
        "/docker/$A/init.scope",
        &[(A, Docker)],
        None,
        Some("init.scope"),
    ),
    // systemd.
    case(
        "/system.slice/nginx.service",
        &[],
        None,
        Some("nginx.service"),
    ),
    case(
        "/system.slice/nginx.service/worker",
        &[],
        None,
        Some("nginx.service"),
    ),
    case(
        "/system.slice/system-postgresql.slice/postgresql@15-main.service",
        &[],
        None,
        Some("postgresql@15-main.service"),
    ),
    case(
        "/system.slice/system-systemd\\x2dfsck.slice/systemd-fsck@dev-disk-by\\x2duuid.service",
        &[],
        None,
        Some("systemd-fsck@dev-disk-by\\x2duuid.service"),
    ),
    case(
        "/user.slice/user-1000.slice/session-3.scope",
        &[],
        None,
        Some("session-3.scope"),
    ),
    case(
        "/user.slice/user-1000.slice/user@1000.service/app.slice/app-firefox-4711.scope",
        &[],
        None,
        Some("app-firefox-4711.scope"),
    ),
    // A service of the user's manager is not that manager; in a slice of it nothing is deeper.
    case(
        "/user.slice/user-1000.slice/user@1000.service/init.scope",
        &[],
        None,
        Some("init.scope"),
    ),
    case("/init.scope", &[], None, Some("init.scope")),
    case("/batch.slice", &[], None, Some("batch.slice")),
    case(
        "/machine.slice/systemd-nspawn@deb.service/payload/system.slice/cron.service",
        &[],
        None,
        Some("cron.service"),
    ),
    // Nothing of the kind.
    case("/", &[], None, None),
    case("", &[], None, None),
    case("/user.slice/x$A", &[], None, Some("user.slice")),
    case("/docker/0123", &[], None, None),
    case("/pod$U", &[], None, None),
    case("/kubepods/burstable/podnonsense", &[], None, None),
    case(
        "/überlang/ünïcode/überlang/überlang/überlang/überlangüüü",
        &[],
        None,
        None,
    ),
];

fn fill(text: &str) -> String {
    text.replace("$A", A)
        .replace("$B", B)
        .replace("$U", UID)
        .replace("$u", &UID.replace('-', "_"))
        .replace("$S", STATIC)
}

#[test]
fn real_paths() {
    for case in CASES {
        let found = place(&fill(case.path));
        let containers: Vec<_> = found
            .containers
            .iter()
            .map(|container| (container.id.as_str(), container.runtime))
            .collect();
        assert_eq!(containers, case.containers, "{}", case.path);
        assert_eq!(found.pod.as_deref(), case.pod, "{}", case.path);
        assert_eq!(found.unit, case.unit.map(fill), "{}", case.path);
        assert_eq!(found.monitor, case.path.contains("conmon"), "{}", case.path);
    }
}

#[test]
fn the_line_that_says_most() {
    // Docker on a host with both hierarchies: only v1 names the container.
    let hybrid = format!(
        "12:pids:/docker/{A}\n5:memory:/docker/{A}\n1:name=systemd:/docker/{A}\n0::/system.slice/docker.service\n"
    );
    assert_eq!(of_process(&hybrid).container(), Some(A));
    let v2 = format!("0::/kubepods/burstable/pod{UID}/{A}\n");
    assert_eq!(of_process(&v2).pod.as_deref(), Some(UID));
    let service = "4:cpu,cpuacct:/\n1:name=systemd:/system.slice/cron.service\n0::/\n";
    assert_eq!(of_process(service).unit.as_deref(), Some("cron.service"));
    assert_eq!(of_process(""), Place::default());
    assert_eq!(of_process("nonsense\n::\n0:\n"), Place::default());
}

#[test]
fn the_unified_line() {
    assert_eq!(
        unified("3:cpu:/x\n0::/system.slice/a.service\n").as_deref(),
        Some("/system.slice/a.service")
    );
    assert_eq!(unified("3:cpu:/x"), None);
}

/// Words that make paths with a meaning likely.
fn component() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("kubepods.slice".to_owned()),
        Just(format!("pod{UID}")),
        Just(format!("kubepods-pod{}.slice", UID.replace('-', "_"))),
        Just(A.to_owned()),
        "(docker|crio|libpod|crio-conmon|:|ü)[-:]?".prop_map(|dress| format!("{dress}{A}.scope")),
        "[a-zü@:.\\\\-]{0,12}(.service|.scope|.slice)?",
        any::<String>(),
    ]
}

proptest! {
    #[test]
    fn any_text_is_read(text in any::<String>()) {
        place(&text);
        of_process(&text);
    }

    /// What is found stands in the path, and there are no more containers than directories.
    #[test]
    fn only_what_is_there(components in proptest::collection::vec(component(), 0..12)) {
        let path = format!("/{}", components.join("/"));
        let found = place(&path);
        prop_assert!(found.containers.len() <= MAX_NESTED);
        for container in &found.containers {
            prop_assert_eq!(container.id.len(), ID_LEN);
            prop_assert!(path.contains(&container.id));
        }
        if let Some(unit) = &found.unit {
            prop_assert!(path.contains(unit.as_str()));
        }
        if let Some(pod) = &found.pod {
            prop_assert!(path.contains(pod) || path.contains(&pod.replace('-', "_")));
        }
    }
}
