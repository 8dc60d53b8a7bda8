//! What a certificate says of its holder.

use rustls_pki_types::CertificateDer;
use weft_wire::Timestamp;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::spiffe::{SpiffeError, SpiffeId};

/// Name, validity and number of a certificate.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    pub(crate) id: SpiffeId,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    /// Lower hexadecimal digits.
    pub(crate) serial: String,
}

/// Reads the name: exactly one URI among the alternative names, and it is a SPIFFE id of ours.
pub(crate) fn holder(certificate: &CertificateDer<'_>) -> Result<Holder, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let uris = uris(&parsed)?;
    let [uri] = uris.as_slice() else {
        return Err(format!(
            "{} URI names in a certificate, must be exactly one",
            uris.len()
        ));
    };
    let id = uri
        .parse()
        .map_err(|error: SpiffeError| error.to_string())?;
    let at = |seconds: i64| Timestamp(seconds.saturating_mul(1_000_000));
    Ok(Holder {
        id,
        not_before: at(parsed.validity().not_before.timestamp()),
        not_after: at(parsed.validity().not_after.timestamp()),
        serial: serial(&parsed),
    })
}

/// The serial number in lower hexadecimal digits, as `openssl x509 -serial` shows it in upper ones.
pub(crate) fn serial(certificate: &X509Certificate<'_>) -> String {
    let raw = certificate.raw_serial();
    let from = raw.iter().position(|byte| *byte != 0).unwrap_or(raw.len());
    data_encoding::HEXLOWER.encode(&raw[from..])
}

/// The URIs among a certificate's alternative names.
pub(crate) fn uris<'a>(certificate: &X509Certificate<'a>) -> Result<Vec<&'a str>, String> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| error.to_string())?;
    let names = names
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let uri = |name: &GeneralName<'a>| {
        if let GeneralName::URI(uri) = name {
            Some(*uri)
        } else {
            None
        }
    };
    Ok(names.iter().filter_map(uri).collect())
}
