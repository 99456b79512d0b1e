//! Whether images are signed, and whether what signs them will be accepted.

use std::time::{Duration, SystemTime};

use super::aside;
use super::finding::Finding;
use crate::config::Config;
use crate::content_credentials::settings::Settings;
use crate::content_credentials::{development, ready};

pub(super) const CHECK: &str = "signer";
/// A certificate that expires within this time is to be renewed now.
const SOON: Duration = Duration::from_hours(30 * 24);
const HOW: &str = "set content_credentials.certificate and private_key; docs/compliance.md says what a certificate must be";

/// KMS and a timestamp authority may take their time.
pub(super) async fn check(config: &Config) -> Finding {
    let settings = config.content_credentials.clone();
    let found = aside(move || found(&settings)).await;
    found.unwrap_or_else(|| Finding::fail(CHECK, "no thread could be started", "give the process more threads"))
}

fn found(settings: &Settings) -> Finding {
    if !settings.names_signer() {
        return Finding::warn(CHECK, "images carry the machine-readable mark (XMP) and no content credentials", HOW);
    }
    // Its key is made at start: a check leaves nothing behind.
    if let Some(directory) = settings.development_directory.as_deref().filter(|directory| !development::is_made(directory)) {
        return Finding::warn(
            CHECK,
            format!("a development signer, whose key is made in {} at start", directory.display()),
            HOW,
        );
    }
    match ready::signing(settings) {
        Err(error) => Finding::fail(CHECK, error.to_string(), HOW),
        Ok(None) => Finding::warn(CHECK, "images carry the machine-readable mark (XMP) and no content credentials", HOW),
        Ok(Some(signing)) if signing.is_development => {
            Finding::warn(CHECK, format!("{}, a development signer that no one trusts", signing.subject), HOW)
        }
        Ok(Some(signing)) => {
            let until = httpdate::fmt_http_date(signing.not_after);
            let mut found = format!("{}, until {until}", signing.subject);
            if signing.not_after.duration_since(SystemTime::now()).unwrap_or_default() < SOON {
                return Finding::warn(CHECK, found, "have the certificate renewed; once it has expired nothing is generated");
            }
            match signing.try_timestamps() {
                None => {}
                Some(Ok(())) => found += ", with timestamps",
                Some(Err(problem)) => {
                    let found = format!("{found}; {problem}");
                    return Finding::warn(CHECK, found, "repair it, or images are signed without a timestamp");
                }
            }
            Finding::ok(CHECK, found)
        }
    }
}
