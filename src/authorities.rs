//! Whom TLS clients trust: the system's certificate authorities, and Mozilla's of this binary where the system has none at all.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Certificate, ClientBuilder};
use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

/// Looked at once. A file or directory that the environment names and that cannot be read is an error of its own, which the clients
/// report: it must not widen whom they trust.
static SYSTEM_HAS_NONE: LazyLock<bool> = LazyLock::new(|| {
    let found = rustls_native_certs::load_native_certs();
    let has_none = found.certs.is_empty() && found.errors.is_empty();
    if has_none {
        tracing::warn!(
            "this system has no certificate authorities (package ca-certificates): Mozilla's, which atelier brings along, count"
        );
    }
    has_none
});

/// A client of HTTP and HTTPS that trusts them.
pub fn client() -> ClientBuilder {
    let client = reqwest::Client::builder();
    if !*SYSTEM_HAS_NONE {
        return client;
    }
    client.tls_certs_only(TLS_SERVER_ROOT_CERTS.iter().filter_map(|root| Certificate::from_der(root).ok()))
}

/// The authorities of this binary as PEM, for clients that are not built here; none where the system has its own.
#[must_use]
pub fn bundled() -> Option<String> {
    SYSTEM_HAS_NONE.then(|| {
        let blocks = TLS_SERVER_ROOT_CERTS.iter().map(|root| {
            let lines: Vec<_> =
                STANDARD.encode(root).into_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
            format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
        });
        blocks.collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bundled_authority_can_be_used() {
        let usable = TLS_SERVER_ROOT_CERTS.iter().filter(|root| Certificate::from_der(root).is_ok()).count();
        assert!(usable > 100 && usable == TLS_SERVER_ROOT_CERTS.len(), "{usable} of {}", TLS_SERVER_ROOT_CERTS.len());
    }
}
