//! What is told of a cluster's objects. Pure.
//!
//! Every object becomes a [`ClusterObject`]: who, which addresses and ports, which hosts, what it refers to. The rest of an
//! object is skipped while it is parsed, and never told.

use std::collections::BTreeMap;

use serde::Deserialize;
use weft_wire::cluster::{ClusterObject, ObjectKind};

use crate::api::Resource;
use crate::object::{Meta, nullable};

/// Label in which a slice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label in which a node names its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Where objects of a kind are listed.
pub fn resource(kind: ObjectKind) -> Resource {
    let path = match kind {
        ObjectKind::Service => "/api/v1/services",
        ObjectKind::EndpointSlice => "/apis/discovery.k8s.io/v1/endpointslices",
        ObjectKind::Node => "/api/v1/nodes",
        ObjectKind::Namespace => "/api/v1/namespaces",
        ObjectKind::Ingress => "/apis/networking.k8s.io/v1/ingresses",
        ObjectKind::Gateway => "/apis/gateway.networking.k8s.io/v1/gateways",
        ObjectKind::NetworkPolicy => "/apis/networking.k8s.io/v1/networkpolicies",
    };
    Resource {
        path: path.to_owned(),
        field_selector: None,
    }
}

/// Any of the objects: what is not a kind's own stays empty.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AnyObject {
    /// Metadata.
    #[serde(deserialize_with = "nullable")]
    pub metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    spec: Spec,
    #[serde(deserialize_with = "nullable")]
    status: Status,
    // An EndpointSlice has no spec.
    #[serde(deserialize_with = "nullable")]
    endpoints: Vec<Endpoint>,
    #[serde(deserialize_with = "nullable")]
    ports: Vec<Port>,
}

macro_rules! parts {
    ($($name:ident { $($(#[$meta:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
            #[serde(rename_all = "camelCase", default)]
            struct $name {
                $($(#[$meta])* #[serde(deserialize_with = "nullable")] $field: $type,)*
            }
        )*
    };
}

parts! {
    Spec {
        #[serde(rename = "type")]
        sort: String,
        #[serde(rename = "clusterIPs")]
        cluster_ips: Vec<String>,
        #[serde(rename = "externalIPs")]
        external_ips: Vec<String>,
        external_name: String,
        ports: Vec<Port>,
        // Of a Service a map of labels; of nothing else here.
        selector: BTreeMap<String, String>,
        #[serde(rename = "podCIDRs")]
        pod_cidrs: Vec<String>,
        #[serde(rename = "providerID")]
        provider_id: String,
        ingress_class_name: String,
        gateway_class_name: String,
        default_backend: Backend,
        rules: Vec<Rule>,
        listeners: Vec<Listener>,
        pod_selector: LabelSelector,
        policy_types: Vec<String>,
        ingress: Vec<PolicyRule>,
        egress: Vec<PolicyRule>,
    }
    Status {
        load_balancer: LoadBalancer,
        // Of a Node `{type, address}`, of a Gateway `{type, value}`.
        addresses: Vec<Address>,
        phase: String,
    }
    LoadBalancer { ingress: Vec<LoadBalancerIngress>, }
    LoadBalancerIngress { ip: String, hostname: String, }
    Address { address: String, value: String, }
    Port {
        name: String,
        port: u32,
        protocol: String,
        target_port: Number,
        node_port: u32,
        end_port: u32,
    }
    Endpoint { addresses: Vec<String>, target_ref: TargetRef, conditions: Conditions, }
    Conditions { ready: Ready, }
    TargetRef { kind: String, name: String, }
    Rule { host: String, http: Http, }
    Http { paths: Vec<HttpPath>, }
    HttpPath { path: String, backend: Backend, }
    Backend { service: BackendService, }
    BackendService { name: String, }
    Listener { name: String, hostname: String, port: u32, protocol: String, }
    LabelSelector { match_labels: BTreeMap<String, String>, }
    PolicyRule { from: Vec<Peer>, to: Vec<Peer>, ports: Vec<PolicyPort>, }
    PolicyPort { port: Number, protocol: String, end_port: u32, }
    Peer { ip_block: IpBlock, namespace_selector: LabelSelector, pod_selector: LabelSelector, }
    IpBlock { cidr: String, except: Vec<String>, }
}

/// A number or a name (`IntOrString`).
#[derive(Clone, Debug, Default, PartialEq)]
struct Number(String);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        Ok(Self(match Either::deserialize(deserializer)? {
            Either::Number(number) => number.to_string(),
            Either::Text(text) => text,
        }))
    }
}

/// Absent means ready.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(transparent)]
struct Ready(bool);

impl Default for Ready {
    fn default() -> Self {
        Self(true)
    }
}

/// An object as it is told.
pub fn told(kind: ObjectKind, object: &AnyObject) -> ClusterObject {
    let AnyObject {
        metadata: meta,
        spec,
        status,
        endpoints,
        ports,
    } = object;
    let mut told = ClusterObject {
        kind,
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        of: String::new(),
        sort: String::new(),
        addresses: Vec::new(),
        ports: Vec::new(),
        hosts: Vec::new(),
        refers_to: Vec::new(),
    };
    match kind {
        ObjectKind::Service => service(&mut told, spec, status),
        ObjectKind::EndpointSlice => {
            told.of = meta.labels.get(SERVICE_NAME).cloned().unwrap_or_default();
            told.ports = ports.iter().map(port).collect();
            for endpoint in endpoints
                .iter()
                .filter(|endpoint| endpoint.conditions.ready.0)
            {
                told.addresses.extend(endpoint.addresses.iter().cloned());
                let TargetRef { kind, name } = &endpoint.target_ref;
                if !name.is_empty() {
                    told.refers_to.push(format!("{kind}/{name}"));
                }
            }
        }
        ObjectKind::Node => {
            told.sort = meta.labels.get(ZONE).cloned().unwrap_or_default();
            told.of = spec.provider_id.clone();
            told.addresses = status
                .addresses
                .iter()
                .map(|it| it.address.clone())
                .collect();
            told.addresses.extend(spec.pod_cidrs.iter().cloned());
        }
        ObjectKind::Namespace => {
            told.sort = status.phase.clone();
            told.refers_to = pairs(&meta.labels);
        }
        ObjectKind::Ingress => ingress(&mut told, spec, status),
        ObjectKind::Gateway => {
            told.of = spec.gateway_class_name.clone();
            told.addresses = status.addresses.iter().map(|it| it.value.clone()).collect();
            for listener in &spec.listeners {
                let protocol = listener.protocol.to_ascii_lowercase();
                told.ports
                    .push(format!("{}:{}/{protocol}", listener.name, listener.port));
                told.hosts.extend(Some(listener.hostname.clone()));
            }
        }
        ObjectKind::NetworkPolicy => policy(&mut told, spec),
    }
    for list in [&mut told.addresses, &mut told.hosts, &mut told.refers_to] {
        list.retain(|text| !text.is_empty() && text != "None");
    }
    told.limit();
    told
}

fn service(told: &mut ClusterObject, spec: &Spec, status: &Status) {
    told.sort = spec.sort.clone();
    told.addresses = [&spec.cluster_ips[..], &spec.external_ips[..]].concat();
    told.hosts.push(spec.external_name.clone());
    balanced(told, status);
    told.ports = spec.ports.iter().map(port).collect();
    told.refers_to = pairs(&spec.selector);
}

fn ingress(told: &mut ClusterObject, spec: &Spec, status: &Status) {
    told.of = spec.ingress_class_name.clone();
    balanced(told, status);
    let backend = |backend: &Backend| match backend.service.name.as_str() {
        "" => String::new(),
        name => format!("Service/{name}"),
    };
    told.refers_to.push(backend(&spec.default_backend));
    for rule in &spec.rules {
        told.hosts.push(rule.host.clone());
        let paths = rule.http.paths.iter();
        told.refers_to
            .extend(paths.map(|path| backend(&path.backend)));
    }
    told.hosts.dedup();
    told.refers_to.sort();
    told.refers_to.dedup();
}

/// What a policy selects, with the ranges and selectors of those it allows: `in` and `out`.
fn policy(told: &mut ClusterObject, spec: &Spec) {
    told.sort = spec.policy_types.join(",");
    told.refers_to = pairs(&spec.pod_selector.match_labels);
    for (way, rules) in [("in", &spec.ingress), ("out", &spec.egress)] {
        for rule in rules {
            for PolicyPort {
                port,
                protocol,
                end_port,
            } in &rule.ports
            {
                let protocol = protocol.to_ascii_lowercase();
                let end = match end_port {
                    0 => String::new(),
                    end => format!("-{end}"),
                };
                told.ports.push(format!("{way}:{}{end}/{protocol}", port.0));
            }
            for peer in rule.from.iter().chain(&rule.to) {
                let block = &peer.ip_block;
                if !block.cidr.is_empty() {
                    told.addresses.push(format!("{way}:{}", block.cidr));
                }
                let except = block.except.iter();
                told.addresses
                    .extend(except.map(|range| format!("{way}:!{range}")));
                for (what, selector) in [
                    ("namespace", &peer.namespace_selector),
                    ("pod", &peer.pod_selector),
                ] {
                    let labels = pairs(&selector.match_labels).into_iter();
                    told.refers_to
                        .extend(labels.map(|pair| format!("{way}:{what}:{pair}")));
                }
            }
        }
    }
}

fn balanced(told: &mut ClusterObject, status: &Status) {
    for entry in &status.load_balancer.ingress {
        told.addresses.push(entry.ip.clone());
        told.hosts.push(entry.hostname.clone());
    }
}

fn port(port: &Port) -> String {
    let protocol = match port.protocol.as_str() {
        "" => "tcp".to_owned(),
        protocol => protocol.to_ascii_lowercase(),
    };
    let mut text = format!("{}:{}/{protocol}", port.name, port.port);
    if !port.target_port.0.is_empty() && port.target_port.0 != port.port.to_string() {
        text += &format!(">{}", port.target_port.0);
    }
    if port.node_port != 0 {
        text += &format!("@{}", port.node_port);
    }
    text
}

fn pairs(map: &BTreeMap<String, String>) -> Vec<String> {
    map.iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(kind: ObjectKind, value: serde_json::Value) -> ClusterObject {
        told(kind, &serde_json::from_value(value).unwrap())
    }

    fn strings(list: &[String]) -> Vec<&str> {
        list.iter().map(String::as_str).collect()
    }

    #[test]
    fn a_service_of_every_sort() {
        let service = of(
            ObjectKind::Service,
            json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u"},
                "spec": {"type": "LoadBalancer", "clusterIP": "10.0.0.9", "clusterIPs": ["10.0.0.9", "fd00::9"],
                    "externalIPs": ["198.51.100.4"], "selector": {"app": "web"},
                    "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "web", "nodePort": 30080},
                        {"port": 53, "protocol": "UDP", "targetPort": 53}]},
                "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}, {"hostname": "lb.example"}]}}}),
        );
        assert_eq!(
            strings(&service.addresses),
            ["10.0.0.9", "fd00::9", "198.51.100.4", "203.0.113.9"]
        );
        assert_eq!(
            strings(&service.ports),
            ["http:80/tcp>web@30080", ":53/udp"]
        );
        assert_eq!(
            (strings(&service.hosts), strings(&service.refers_to)),
            (vec!["lb.example"], vec!["app=web"])
        );
        let headless = of(
            ObjectKind::Service,
            json!({"metadata": {"name": "pg"}, "spec": {"clusterIPs": ["None"], "selector": null}, "status": {"loadBalancer": {}}}),
        );
        assert!(headless.addresses.is_empty() && headless.refers_to.is_empty());
    }

    #[test]
    fn endpoints_that_are_ready() {
        let slice = of(
            ObjectKind::EndpointSlice,
            json!({"metadata": {"name": "web-x", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
                "endpoints": [
                    {"addresses": ["10.1.0.4"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "web-0"}},
                    {"addresses": ["10.1.0.5"], "conditions": {"ready": false}},
                    {"addresses": ["10.1.0.6"], "conditions": {}}],
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}),
        );
        assert_eq!(
            (slice.of.as_str(), strings(&slice.addresses)),
            ("web", vec!["10.1.0.4", "10.1.0.6"])
        );
        assert_eq!(
            (strings(&slice.ports), strings(&slice.refers_to)),
            (vec!["http:8080/tcp"], vec!["Pod/web-0"])
        );
    }

    #[test]
    fn nodes_ingresses_gateways_and_policies() {
        let node = of(
            ObjectKind::Node,
            json!({"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "use1-a"}},
                "spec": {"podCIDRs": ["10.1.0.0/24"], "providerID": "aws:///use1-a/i-0a1"},
                "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.4"}, {"type": "Hostname", "address": "n1"}]}}),
        );
        assert_eq!(
            (node.sort.as_str(), strings(&node.addresses)),
            ("use1-a", vec!["10.0.0.4", "n1", "10.1.0.0/24"])
        );
        let ingress = of(
            ObjectKind::Ingress,
            json!({"metadata": {"name": "i"}, "spec": {"ingressClassName": "nginx", "rules": [
                {"host": "shop.example", "http": {"paths": [{"path": "/", "backend": {"service": {"name": "web", "port": {"number": 80}}}},
                    {"path": "/a", "backend": {"service": {"name": "web"}}}]}}]},
                "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}}),
        );
        assert_eq!(
            (strings(&ingress.hosts), strings(&ingress.refers_to)),
            (vec!["shop.example"], vec!["Service/web"])
        );
        let gateway = of(
            ObjectKind::Gateway,
            json!({"metadata": {"name": "g"}, "spec": {"gatewayClassName": "envoy", "listeners": [
                {"name": "https", "hostname": "*.example", "port": 443, "protocol": "HTTPS"}]},
                "status": {"addresses": [{"type": "IPAddress", "value": "203.0.113.8"}]}}),
        );
        assert_eq!(
            (strings(&gateway.ports), strings(&gateway.addresses)),
            (vec!["https:443/https"], vec!["203.0.113.8"])
        );
        let policy = of(
            ObjectKind::NetworkPolicy,
            json!({"metadata": {"name": "p"}, "spec": {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 5432, "protocol": "TCP"}]}],
                "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.9.0.0/16"]}}], "ports": [{"port": "dns", "protocol": "UDP"}]}, {}]}}),
        );
        assert_eq!(strings(&policy.refers_to), ["app=db", "in:pod:app=web"]);
        assert_eq!(
            strings(&policy.addresses),
            ["out:10.0.0.0/8", "out:!10.9.0.0/16"]
        );
        assert_eq!(strings(&policy.ports), ["in:5432/tcp", "out:dns/udp"]);
    }
}
