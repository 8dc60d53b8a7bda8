//! The few fields of API objects that are kept. Everything else of an object is skipped while it is parsed.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// Go writes `null` for what is empty; to us it is the same as absent.
pub(crate) fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

macro_rules! objects {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
            #[serde(rename_all = "camelCase", default)]
            pub struct $name {
                $($(#[$field_doc])* #[serde(deserialize_with = "nullable")] pub $field: $type,)*
            }
        )*
    };
}

objects! {
    /// `ObjectMeta`.
    Meta {
        /// Name within the namespace.
        name: String,
        /// Namespace; empty for what belongs to the cluster.
        namespace: String,
        /// Unique in the cluster, over time too.
        uid: String,
        /// Version of the object, opaque.
        resource_version: String,
        /// When it was made, RFC 3339.
        creation_timestamp: String,
        /// Labels.
        labels: BTreeMap<String, String>,
        /// The annotations that matter.
        annotations: Annotations,
        /// Who made it.
        owner_references: Vec<OwnerReference>,
    }
    /// `OwnerReference`.
    OwnerReference {
        /// Kind of the owner.
        kind: String,
        /// Its name, in the same namespace.
        name: String,
        /// Whether it is the one that manages the object.
        controller: bool,
    }
    /// `Pod`.
    PodObject {
        /// Metadata.
        metadata: Meta,
        /// What it is meant to be.
        spec: PodSpec,
        /// What it is.
        status: PodStatus,
    }
    /// `PodSpec`.
    PodSpec {
        /// Node it runs on.
        node_name: String,
        /// Containers.
        containers: Vec<ContainerSpec>,
        /// Containers that run before those.
        init_containers: Vec<ContainerSpec>,
        /// Containers for debugging.
        ephemeral_containers: Vec<ContainerSpec>,
    }
    /// `Container`.
    ContainerSpec {
        /// Name within the pod.
        name: String,
        /// Image as it was asked for.
        image: String,
    }
    /// `PodStatus`.
    PodStatus {
        /// `Pending`, `Running`, `Succeeded`, `Failed`, `Unknown`.
        phase: String,
        /// Of containers.
        container_statuses: Vec<ContainerStatus>,
        /// Of init containers.
        init_container_statuses: Vec<ContainerStatus>,
        /// Of ephemeral containers.
        ephemeral_container_statuses: Vec<ContainerStatus>,
    }
    /// `ContainerStatus`.
    ContainerStatus {
        /// Name within the pod.
        name: String,
        /// Image as the runtime has it.
        image: String,
        /// `RUNTIME://ID`; empty before the start.
        #[serde(rename = "containerID")]
        container_id: String,
        /// How it ended before.
        last_state: LastState,
    }
    /// `ContainerState`, of the run before.
    LastState {
        /// That it ended.
        terminated: Terminated,
    }
    /// `ContainerStateTerminated`.
    Terminated {
        /// The id it had.
        #[serde(rename = "containerID")]
        container_id: String,
    }
}

/// Of annotations only these are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Annotations {
    /// Of a static pod: the hash of its manifest, which its cgroup and files carry in place of the uid.
    #[serde(rename = "kubernetes.io/config.hash", deserialize_with = "nullable")]
    pub config_hash: String,
}

impl PodObject {
    /// Whether no container of it will run again.
    pub fn terminated(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }
}

impl Meta {
    /// The reference to what manages it.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references
            .iter()
            .find(|owner| owner.controller)
            .or(self.owner_references.first())
    }
}
