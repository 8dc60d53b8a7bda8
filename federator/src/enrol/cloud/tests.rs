//! Documents as the clouds publish their form, signed with keys made for these tests and thrown away since. `openssl smime
//! -sign` made those of AWS, definite and streamed (AWS streams its own); openssl also signed Google's.

use std::path::PathBuf;

use super::*;

const DEFINITE: &str = include_str!("../testdata/aws-definite.txt");
const STREAMED: &str = include_str!("../testdata/aws-streamed.txt");
const WITHOUT_ATTRIBUTES: &str = include_str!("../testdata/aws-without-attributes.txt");
const OTHER: &str = include_str!("../testdata/aws-other.txt");
const SHA1: &str = include_str!("../testdata/aws-sha1.txt");
const DETACHED: &str = include_str!("../testdata/aws-detached.txt");
const JWT: &str = include_str!("../testdata/gcp.jwt");
const JWT_OTHER: &str = include_str!("../testdata/gcp-other.jwt");
const AUDIENCE: &str = "sha256-made-up";

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("src/enrol/testdata")
        .join(name)
}

fn aws_settings() -> Aws {
    Aws {
        accounts: vec!["123456789012".into()],
        regions: vec!["test-1".into()],
        certificates: Some(file("aws-certificates.pem")),
        max_age_minutes: 60,
    }
}

fn gcp_settings() -> Gcp {
    Gcp {
        projects: vec!["project-a".into()],
        keys: file("google-keys.json"),
    }
}

fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

fn noon() -> Timestamp {
    at("2026-11-22T12:10:00.000000Z")
}

#[test]
fn an_instance_of_aws_is_called_by_its_id() {
    for document in [DEFINITE, STREAMED, WITHOUT_ATTRIBUTES] {
        let name = aws(document, &aws_settings(), noon()).unwrap();
        assert_eq!(name, "i-1234567890abcdef0");
    }
    let framed = format!("-----BEGIN PKCS7-----\n{STREAMED}-----END PKCS7-----\n");
    assert!(aws(&framed, &aws_settings(), noon()).is_ok());
}

#[test]
fn what_aws_did_not_sign_lets_nobody_in() {
    let good = aws_settings();
    let refused = |document: &str| aws(document, &good, noon()).unwrap_err().to_string();
    assert!(refused(OTHER).contains("none of the known keys"));
    assert!(refused(SHA1).contains("SHA-256"));
    assert!(refused(DETACHED).contains("is not in it"));
    assert!(refused("").contains("cut off"));
    // Signed by the certificate of another region, which speaks for that one only.
    let elsewhere = Aws {
        regions: vec!["test-2".into()],
        ..aws_settings()
    };
    let error = aws(OTHER, &elsewhere, noon()).unwrap_err();
    assert!(
        matches!(error, CloudRefused::Stranger { what: "region", .. }),
        "{error}"
    );
}

#[test]
fn no_changed_byte_is_taken_for_good() {
    let base64: String = DEFINITE.split_whitespace().collect();
    let good = aws(DEFINITE, &aws_settings(), noon()).unwrap();
    let mut refused = 0;
    for at in (0..base64.len()).step_by(3) {
        let mut changed = base64.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        match aws(&changed, &aws_settings(), noon()) {
            // What is not signed: numbers of versions and names of the signer's certificate.
            Ok(name) => assert_eq!(name, good),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > base64.len() / 6, "{refused}");
    for end in 0..base64.len() {
        assert!(aws(&base64[..end], &aws_settings(), noon()).is_err());
    }
}

#[test]
fn an_instance_of_somebody_else_or_from_long_ago_stays_outside() {
    let stranger = Aws {
        accounts: vec!["999999999999".into()],
        ..aws_settings()
    };
    let error = aws(DEFINITE, &stranger, noon()).unwrap_err();
    assert!(
        matches!(
            error,
            CloudRefused::Stranger {
                what: "account",
                ..
            }
        ),
        "{error}"
    );
    for when in ["2026-11-22T13:00:01.000000Z", "2026-11-22T11:58:00.000000Z"] {
        let error = aws(DEFINITE, &aws_settings(), at(when)).unwrap_err();
        assert!(matches!(error, CloudRefused::Time(_)), "{when}: {error}");
    }
}

#[test]
fn the_certificates_of_aws_are_there_by_region() {
    let count = AWS_CERTIFICATES.matches("BEGIN CERTIFICATE").count();
    let regions: Vec<_> = AWS_CERTIFICATES
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|region| region.split('-').count() >= 3 && !region.contains(' '))
        .collect();
    assert_eq!(regions.len(), count);
    for region in regions {
        let settings = Aws {
            regions: vec![region.into()],
            certificates: None,
            ..aws_settings()
        };
        // The certificate can be read, and did not sign this.
        let error = aws(DEFINITE, &settings, noon()).unwrap_err();
        assert!(
            matches!(error, CloudRefused::Proof(ProofError::Signature)),
            "{region}: {error}"
        );
    }
}

#[test]
fn an_instance_of_google_is_called_by_its_number() {
    let name = gcp(JWT, &gcp_settings(), AUDIENCE, noon()).unwrap();
    assert_eq!(name, "gce-152986662232938449");
}

#[test]
fn what_google_did_not_sign_or_not_for_us_lets_nobody_in() {
    let refused = |token: &str, audience: &str, now: Timestamp| {
        gcp(token, &gcp_settings(), audience, now).unwrap_err()
    };
    let error = refused(JWT_OTHER, AUDIENCE, noon());
    assert!(
        matches!(error, CloudRefused::Proof(ProofError::Signature)),
        "{error}"
    );
    let error = refused(JWT, "sha256-another-ca", noon());
    assert!(
        matches!(
            error,
            CloudRefused::Stranger {
                what: "audience",
                ..
            }
        ),
        "{error}"
    );
    for when in ["2026-11-22T13:00:00.000000Z", "2026-11-22T11:58:00.000000Z"] {
        let error = refused(JWT, AUDIENCE, at(when));
        assert!(matches!(error, CloudRefused::Time(_)), "{when}: {error}");
    }
    let stranger = Gcp {
        projects: vec!["project-b".into()],
        ..gcp_settings()
    };
    let error = gcp(JWT, &stranger, AUDIENCE, noon()).unwrap_err();
    assert!(
        matches!(
            error,
            CloudRefused::Stranger {
                what: "project",
                ..
            }
        ),
        "{error}"
    );
    // Header {"alg":"none","kid":"kid-1"}, no signature.
    let payload = JWT.split('.').nth(1).unwrap();
    let none = format!("eyJhbGciOiJub25lIiwia2lkIjoia2lkLTEifQ.{payload}.");
    assert!(matches!(
        refused(&none, AUDIENCE, noon()),
        CloudRefused::Proof(_)
    ));
    for at in (0..JWT.trim().len()).step_by(5) {
        let mut changed = JWT.trim().as_bytes().to_vec();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(
            gcp(&changed, &gcp_settings(), AUDIENCE, noon()).is_err(),
            "{at}"
        );
    }
}
