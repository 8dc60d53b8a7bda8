//! Where this node's pods are learnt from, and the task that learns them.
//!
//! An API server where there is one. Beside it, while it does not answer, and where there is none: the kubelet, if one is
//! configured, else what the kubelet and the container runtime left in files. These know no owners and no labels.

use std::path::Path;
use std::time::Duration;

use weft_kubernetes::{Api, Files, Pods, Settings};

use crate::config::{Config, Enabled};
use crate::doctor::Verdict;

/// Time between two readings of kubelet or files.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Time between two attempts to make a client: a kubeconfig may appear, a token be written.
const SETUP_INTERVAL: Duration = Duration::from_secs(30);
/// Longest that the doctor waits for an answer.
const EXAMINE_TIMEOUT: Duration = Duration::from_secs(10);
/// The variable that a pod's environment names the API server in.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";

/// What there is to learn from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// An API server.
    pub api: bool,
    /// A kubelet.
    pub kubelet: bool,
    /// Files, of these.
    pub files: Vec<&'static str>,
}

impl Sources {
    /// What this configuration and this machine give; `None`: nothing, or it is switched off.
    pub fn of(config: &Config) -> Option<Self> {
        let settings = &config.kubernetes;
        let in_cluster = std::env::var_os(IN_CLUSTER).is_some();
        let sources = Self {
            api: settings.kubeconfig.is_some() || in_cluster,
            kubelet: settings.kubelet.is_some(),
            files: files().present(),
        };
        let any = sources.api || sources.kubelet || !sources.files.is_empty();
        (settings.enabled == Enabled::Auto && any).then_some(sources)
    }
}

/// The pods of this node, still unknown; `None`: there is nothing to learn them from.
pub fn unknown(config: &Config) -> Option<Pods> {
    Sources::of(config)?;
    Some(Pods::new(&node(config), &config.kubernetes.labels))
}

/// Keeps them up to date until the task is dropped.
pub async fn follow(config: &Config, pods: Pods, seed: u64) {
    let Some(sources) = Sources::of(config) else {
        return;
    };
    tokio::join!(
        follow_api(config, &sources, &pods, seed),
        stand_in(config, &sources, &pods)
    );
}

async fn follow_api(config: &Config, sources: &Sources, pods: &Pods, seed: u64) {
    if !sources.api {
        tracing::info!(
            "no API server: pods come without owners and labels, from the kubelet or from files"
        );
        return;
    }
    loop {
        match Api::connect(&settings(config)).await {
            Ok(api) => pods.follow(&api, &node(config), seed).await,
            Err(error) => pods.failing(&error.to_string()),
        }
        tokio::time::sleep(SETUP_INTERVAL).await;
    }
}

/// Polls kubelet or files, as long as the API server does not answer.
async fn stand_in(config: &Config, sources: &Sources, pods: &Pods) {
    let mut kubelet = None;
    // The API server's first list is likely to come at once; then nothing else is needed.
    tokio::time::sleep(Duration::from_millis(if sources.api { 2_000 } else { 0 })).await;
    loop {
        if !pods.source().live {
            if sources.kubelet && kubelet.is_none() {
                match connect_kubelet(config).await {
                    Ok(api) => kubelet = Some(api),
                    Err(error) => pods.stand_in_failing("kubelet", &error),
                }
            }
            match &kubelet {
                Some(api) => pods.poll_kubelet(api).await,
                None if sources.kubelet || sources.files.is_empty() => {}
                None => {
                    let found = tokio::task::spawn_blocking(|| files().read()).await;
                    pods.replace("files", found.unwrap_or_default());
                }
            }
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn connect_kubelet(config: &Config) -> Result<Api, String> {
    let settings = &config.kubernetes;
    Api::kubelet(
        settings.kubelet.as_deref().unwrap_or_default(),
        settings.kubelet_token.as_deref(),
        settings.kubelet_ca.as_deref(),
    )
    .await
    .map_err(|error| error.to_string())
}

/// This node's name in its cluster.
pub fn node(config: &Config) -> String {
    let host = || {
        std::fs::read_to_string("/proc/sys/kernel/hostname")
            .map(|name| name.trim().to_owned())
            .unwrap_or_default()
    };
    config
        .kubernetes
        .node
        .clone()
        .or_else(|| {
            std::env::var("NODE_NAME")
                .ok()
                .filter(|name| !name.is_empty())
        })
        .unwrap_or_else(host)
}

/// Where the API server is.
pub fn settings(config: &Config) -> Settings {
    Settings {
        kubeconfig: config.kubernetes.kubeconfig.clone(),
        context: config.kubernetes.context.clone(),
    }
}

fn files() -> Files {
    Files::new(Path::new("/"))
}

/// What the doctor says of pods.
pub fn examine(config: &Config) -> (String, Verdict) {
    if config.kubernetes.enabled == Enabled::Off {
        return ("switched off (kubernetes.enabled)".into(), Verdict::Good);
    }
    let Some(sources) = Sources::of(config) else {
        return ("no Kubernetes here".into(), Verdict::Good);
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let problem = match (sources.api, runtime) {
        (false, _) => None,
        (true, Err(error)) => Some(error.to_string()),
        (true, Ok(runtime)) => match runtime.block_on(first_list(config)) {
            Ok(pods) => {
                let node = node(config);
                return (
                    format!("API server: {pods} pods of node {node}"),
                    Verdict::Good,
                );
            }
            Err(problem) => Some(problem),
        },
    };
    let stand_in = match (sources.kubelet, sources.files.as_slice()) {
        (true, _) => "from the kubelet".to_owned(),
        (false, []) => "none are known".to_owned(),
        (false, files) => format!("from files of {}", files.join(", ")),
    };
    let (detail, hint) = match problem {
        Some(problem) => (
            format!("API server: {problem}; {stand_in}"),
            "kubernetes.kubeconfig, or the rights of the service account: list and watch pods",
        ),
        None => (
            format!("no API server: {stand_in}, without owners and labels"),
            "set kubernetes.kubeconfig",
        ),
    };
    (detail, Verdict::Reduced { hint: hint.into() })
}

/// Lists once as the agent would.
async fn first_list(config: &Config) -> Result<usize, String> {
    let api = Api::connect(&settings(config))
        .await
        .map_err(|error| error.to_string())?;
    let pods = Pods::new(&node(config), &[]);
    let following = pods.clone();
    let node = node(config);
    let task = tokio::spawn(async move { following.follow(&api, &node, 1).await });
    let end = tokio::time::Instant::now() + EXAMINE_TIMEOUT;
    let result = loop {
        let source = pods.source();
        if source.live {
            break Ok(pods.len());
        }
        if !source.problem.is_empty() {
            break Err(source.problem);
        }
        if tokio::time::Instant::now() > end {
            break Err("no answer".into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    task.abort();
    result
}
