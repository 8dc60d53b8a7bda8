//! Certificates of others, taken as they are: SPIRE's and cert-manager's, under their files' names, of ECDSA and RSA, with their
//! chains, alternative names and key usages.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use tempfile::TempDir;
use weft_transport::{Dialler, Expect, Identity, Listener, PeerRole, Session};

/// Made with openssl for this test, and of use for nothing else.
const RSA_KEY: &str = include_str!("data/rsa-of-a-test.pem");
const DOMAIN: &str = "prod.example";

fn ca(name: &str, uri: &str, below: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CountryName, "US");
    params
        .distinguished_name
        .push(DnType::OrganizationName, "SPIFFE");
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// As SPIRE makes one: no common name, both extended usages, perhaps DNS names beside the one URI.
fn svid(path: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CountryName, "US");
    params
        .distinguished_name
        .push(DnType::OrganizationName, "SPIRE");
    let uri = format!("spiffe://{DOMAIN}/{path}");
    params.subject_alt_names = vec![
        SanType::URI(uri.as_str().try_into().unwrap()),
        SanType::DnsName("node.prod.example".try_into().unwrap()),
    ];
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::KeyAgreement,
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params
}

struct Authority {
    dir: TempDir,
    root: String,
    between: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A root, and SPIRE's own CA below it.
    fn new() -> Self {
        let root_key = KeyPair::generate().unwrap();
        let root = ca("root", &format!("spiffe://{DOMAIN}"), 1);
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let root = Issuer::new(root, root_key);
        let key = KeyPair::generate().unwrap();
        let below = ca("spire", &format!("spiffe://{DOMAIN}"), 0);
        let between = below.signed_by(&key, &root).unwrap().pem();
        Self {
            dir: TempDir::new().unwrap(),
            root: root_pem,
            between,
            issuer: Issuer::new(below, key),
        }
    }

    fn identity(&self, path: &str, key: &KeyPair, names: [&str; 3]) -> Identity {
        let leaf = svid(path).signed_by(key, &self.issuer).unwrap();
        let dir: PathBuf = self.dir.path().join(path.replace('/', "-"));
        std::fs::create_dir_all(&dir).unwrap();
        let [ca, certificate, private] = names.map(|name| dir.join(name));
        std::fs::write(ca, &self.root).unwrap();
        std::fs::write(certificate, format!("{}{}", leaf.pem(), self.between)).unwrap();
        std::fs::write(&private, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o400)).unwrap();
        Identity::load(&dir).unwrap()
    }
}

const SPIRE: [&str; 3] = ["bundle.0.pem", "svid.0.pem", "svid.0.key"];
const CERT_MANAGER: [&str; 3] = ["ca.crt", "tls.crt", "tls.key"];

async fn meets(federator: &Identity, agent: &Identity) -> (Session, Session) {
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into(), federator).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let dialler = Dialler::new(agent).unwrap();
    let dialled = dialler
        .dial(&address, &Expect::any_federator())
        .await
        .unwrap();
    let accepted = listener.accept().await.unwrap();
    (dialled, accepted)
}

#[tokio::test]
async fn svids_of_ecdsa_and_rsa_meet() {
    let authority = Authority::new();
    let rsa = || KeyPair::from_pem(RSA_KEY).unwrap();
    let ecdsa = || KeyPair::generate().unwrap();
    let fed = "region/r/federator/fed";
    let agent = "region/r/agent/a";
    for (fed_key, agent_key) in [(ecdsa(), ecdsa()), (rsa(), ecdsa()), (ecdsa(), rsa())] {
        let federator = authority.identity(fed, &fed_key, CERT_MANAGER);
        let agent = authority.identity(agent, &agent_key, SPIRE);
        let (dialled, accepted) = meets(&federator, &agent).await;
        assert_eq!(dialled.peer().role(), PeerRole::Federator);
        assert_eq!(
            accepted.peer().to_string(),
            "spiffe://prod.example/region/r/agent/a"
        );
    }
}

#[tokio::test]
async fn an_agent_with_a_servers_usage_is_still_no_federator() {
    let authority = Authority::new();
    let key = || KeyPair::generate().unwrap();
    let impostor = authority.identity("region/r/agent/impostor", &key(), SPIRE);
    let agent = authority.identity("region/r/agent/a", &key(), SPIRE);
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into(), &impostor).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let dialler = Dialler::new(&agent).unwrap();
    let error = dialler.dial(&address, &Expect::any_federator()).await;
    assert!(matches!(
        error.unwrap_err(),
        weft_transport::TransportError::PeerMisbehaved {
            code: weft_wire::control::CloseCode::Role,
            ..
        }
    ));
}

#[test]
fn a_name_of_another_form_is_told_so() {
    let authority = Authority::new();
    let key = KeyPair::generate().unwrap();
    let leaf = svid("ns/shop/sa/default")
        .signed_by(&key, &authority.issuer)
        .unwrap();
    let dir = authority.dir.path().join("ns");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("ca.crt"), &authority.root).unwrap();
    std::fs::write(dir.join("tls.crt"), leaf.pem()).unwrap();
    std::fs::write(dir.join("tls.key"), key.serialize_pem()).unwrap();
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(dir.join("tls.key"), mode).unwrap();
    let error = Identity::load(&dir).unwrap_err().to_string();
    assert!(
        error.contains("spiffe://DOMAIN/region/REGION/ROLE/NAME"),
        "{error}"
    );
}
