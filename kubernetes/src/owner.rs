//! What owns a pod at the top: the Deployment behind a ReplicaSet, the CronJob behind a Job. Pure.
//!
//! A pod refers only to its direct owner. Asking the API server for that owner takes rights that an agent on every node
//! should not have, and a request for each; the names say it too, as the controllers make them:
//!
//! - a ReplicaSet of a Deployment is called `DEPLOYMENT-HASH`, and its pods carry that hash in the label
//!   `pod-template-hash`, which only the Deployment controller sets. A ReplicaSet whose name does not end in the label's
//!   value is its own top.
//! - a Job of a CronJob is called `CRONJOB-MINUTES`, the minutes since 1970 of its scheduled time (seconds before
//!   Kubernetes 1.21). That number must be a time shortly before the pod was made; else the Job is its own top.

use crate::object::Meta;

/// Label in which the Deployment controller puts the hash.
const TEMPLATE_HASH: &str = "pod-template-hash";
/// A Job starts at its scheduled time or, after an outage, up to so much later.
const LONGEST_DELAY_S: i64 = 7 * 86_400;
/// Clocks of controller and API server differ by at most this.
const CLOCK_SLACK_S: i64 = 300;

/// Kind and name of what owns a pod; empty when nothing does.
pub fn top(pod: &Meta) -> (String, String) {
    let Some(owner) = pod.controller() else {
        return Default::default();
    };
    let own = || (owner.kind.clone(), owner.name.clone());
    let above = match owner.kind.as_str() {
        "ReplicaSet" => deployment(&owner.name, pod).map(|name| ("Deployment", name)),
        "Job" => cron_job(&owner.name, pod).map(|name| ("CronJob", name)),
        // The kubelet owns static pods' mirrors: that is no workload.
        "Node" => return Default::default(),
        _ => None,
    };
    above.map_or_else(own, |(kind, name)| (kind.to_owned(), name.to_owned()))
}

fn deployment<'a>(replica_set: &'a str, pod: &Meta) -> Option<&'a str> {
    let hash = pod
        .labels
        .get(TEMPLATE_HASH)
        .filter(|hash| !hash.is_empty())?;
    let name = replica_set.strip_suffix(hash.as_str())?.strip_suffix('-')?;
    (!name.is_empty()).then_some(name)
}

fn cron_job<'a>(job: &'a str, pod: &Meta) -> Option<&'a str> {
    let (name, number) = job.rsplit_once('-')?;
    let made_s = seconds(&pod.creation_timestamp)?;
    let number: i64 = number
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| number.parse().ok())
        .flatten()?;
    let plausible = |scheduled_s: i64| {
        (-CLOCK_SLACK_S..LONGEST_DELAY_S).contains(&made_s.saturating_sub(scheduled_s))
    };
    let scheduled = plausible(number.saturating_mul(60)) || plausible(number);
    (scheduled && !name.is_empty()).then_some(name)
}

/// Seconds since 1970 of `YYYY-MM-DDTHH:MM:SSZ`, as the API server writes times of objects.
fn seconds(text: &str) -> Option<i64> {
    let whole = text.strip_suffix('Z')?;
    let time = weft_wire::Timestamp::parse(&format!("{whole}.000000Z"))?;
    Some(time.0 / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::OwnerReference;

    fn pod(kind: &str, name: &str, hash: &str) -> Meta {
        Meta {
            creation_timestamp: "2026-11-22T15:28:55Z".into(),
            labels: [(TEMPLATE_HASH.to_owned(), hash.to_owned())].into(),
            owner_references: vec![
                OwnerReference {
                    kind: "Other".into(),
                    name: "not-this".into(),
                    controller: false,
                },
                OwnerReference {
                    kind: kind.into(),
                    name: name.into(),
                    controller: true,
                },
            ],
            ..Meta::default()
        }
    }

    #[test]
    fn tops() {
        // 29,922,688 minutes are 2026-11-22T15:28:00Z.
        for (kind, name, hash, expected) in [
            (
                "ReplicaSet",
                "checkout-6d9c8b7f5",
                "6d9c8b7f5",
                ("Deployment", "checkout"),
            ),
            (
                "ReplicaSet",
                "a-b-6d9c8b7f5",
                "6d9c8b7f5",
                ("Deployment", "a-b"),
            ),
            ("ReplicaSet", "bare", "", ("ReplicaSet", "bare")),
            (
                "ReplicaSet",
                "bare-x",
                "6d9c8b7f5",
                ("ReplicaSet", "bare-x"),
            ),
            ("ReplicaSet", "-6d9c", "6d9c", ("ReplicaSet", "-6d9c")),
            ("StatefulSet", "pg-main", "", ("StatefulSet", "pg-main")),
            (
                "DaemonSet",
                "node-exporter",
                "",
                ("DaemonSet", "node-exporter"),
            ),
            ("Job", "backup-29922688", "", ("CronJob", "backup")),
            ("Job", "backup-1795361280", "", ("CronJob", "backup")),
            ("Job", "backup-29912000", "", ("Job", "backup-29912000")),
            ("Job", "report-20261122", "", ("Job", "report-20261122")),
            ("Job", "migrate-x7k2p", "", ("Job", "migrate-x7k2p")),
            ("Job", "migrate", "", ("Job", "migrate")),
            ("Rollout", "web", "", ("Rollout", "web")),
            ("Node", "node-a1", "", ("", "")),
        ] {
            let found = top(&pod(kind, name, hash));
            assert_eq!(
                (found.0.as_str(), found.1.as_str()),
                expected,
                "{kind} {name}"
            );
        }
        assert_eq!(top(&Meta::default()), Default::default());
    }
}
