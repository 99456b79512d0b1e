//! Settings of section `content_credentials`: where certificates and key come from.

use std::fs;
use std::path::PathBuf;

use serde::Deserialize;

use super::source::{DEVELOPMENT_DIRECTORY, Given, Kind, PrivateKey, Source};
use super::{development, kms, timestamp};
use crate::setting::{Secret, SettingError};
use crate::shown;

const CERTIFICATE: &str = "content_credentials.certificate";
const CERTIFICATE_FILE: &str = "content_credentials.certificate_file";
const PRIVATE_KEY: &str = "content_credentials.private_key";
const PRIVATE_KEY_FILE: &str = "content_credentials.private_key_file";

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// PEM of the certificates: the one that signs first, then those that issued each other.
    pub certificate: Option<String>,
    /// A file with the same.
    pub certificate_file: Option<PathBuf>,
    /// PEM of the private key (PKCS #8).
    pub private_key: Option<Secret>,
    /// A file with the same.
    pub private_key_file: Option<PathBuf>,
    /// Where a development signer has its key, which is made there; no one trusts what it signs.
    pub development_directory: Option<PathBuf>,
    /// In place of a private key: one that stays in AWS KMS.
    pub kms: kms::Settings,
    /// Who says when an image was signed.
    pub timestamp: timestamp::Settings,
}

impl Settings {
    /// Whether images are to be signed.
    #[must_use]
    pub fn names_signer(&self) -> bool {
        let Self { certificate, certificate_file, private_key, private_key_file, development_directory, kms, timestamp: _ } =
            self;
        let files = [certificate_file, private_key_file, development_directory];
        certificate.is_some() || private_key.is_some() || kms.key.is_some() || files.into_iter().any(Option::is_some)
    }

    /// Reads what the settings name; none: they name no signer.
    ///
    /// # Errors
    /// Names what is missing, doubled or cannot be read.
    pub(super) fn source(&self) -> Result<Option<Source>, SettingError> {
        let certificate = self.certificate()?;
        let private_key = self.private_key()?;
        let timestamp = self.timestamp.clone();
        match (certificate, private_key, &self.development_directory) {
            // What is wrong is to show before there is a signer.
            (None, None, None) => timestamp.url().map(|_| None),
            (Some(certificate), Some(private_key), None) => {
                Ok(Some(Source { kind: Kind::Given, certificate, private_key, timestamp }))
            }
            (None, None, Some(directory)) => {
                let (certificate, private_key) = development::given(directory)?;
                let private_key = PrivateKey::Here(private_key);
                Ok(Some(Source { kind: Kind::Development, certificate, private_key, timestamp }))
            }
            (Some(_), None, _) => Err(SettingError::new(
                PRIVATE_KEY,
                missing_next_to("certificate", &format!("{PRIVATE_KEY_FILE}, or {}", kms::KEY)),
            )),
            (None, Some(_), _) => Err(SettingError::new(CERTIFICATE, missing_next_to("private key", CERTIFICATE_FILE))),
            (Some(_), Some(_), Some(_)) => {
                let problem = "cannot stand next to a certificate: images are signed with one or the other";
                Err(SettingError::new(DEVELOPMENT_DIRECTORY, problem))
            }
        }
    }

    fn certificate(&self) -> Result<Option<Given<String>>, SettingError> {
        match (&self.certificate, &self.certificate_file) {
            (None, None) => Ok(None),
            (Some(text), None) => Ok(Some(Given { key: CERTIFICATE, text: text.clone() })),
            (None, Some(path)) => Ok(Some(Given { key: CERTIFICATE_FILE, text: read(CERTIFICATE_FILE, path)? })),
            (Some(_), Some(_)) => Err(doubled(CERTIFICATE, CERTIFICATE_FILE)),
        }
    }

    fn private_key(&self) -> Result<Option<PrivateKey>, SettingError> {
        let given = match (&self.private_key, &self.private_key_file) {
            (None, None) => None,
            (Some(text), None) => Some(Given { key: PRIVATE_KEY, text: text.clone() }),
            (None, Some(path)) => Some(Given { key: PRIVATE_KEY_FILE, text: Secret::new(&read(PRIVATE_KEY_FILE, path)?) }),
            (Some(_), Some(_)) => return Err(doubled(PRIVATE_KEY, PRIVATE_KEY_FILE)),
        };
        match (given, &self.kms.key) {
            (None, None) => Ok(None),
            (Some(given), None) => Ok(Some(PrivateKey::Here(given))),
            (None, Some(id)) => Ok(Some(PrivateKey::Kms { settings: self.kms.clone(), id: id.clone() })),
            (Some(given), Some(_)) => Err(SettingError::new(
                kms::KEY,
                format!("cannot stand next to {}: images are signed with one or the other", given.key),
            )),
        }
    }
}

fn missing_next_to(what: &str, file: &str) -> String {
    format!("is missing: there is a {what}, and images are signed with both; set it, or {file}")
}

fn doubled(text: &str, file: &'static str) -> SettingError {
    SettingError::new(file, format!("cannot stand next to {text}: give the PEM or a file with it"))
}

fn read(key: &str, path: &PathBuf) -> Result<String, SettingError> {
    let path_shown = shown::text(&path.display().to_string());
    let bytes = fs::read(path).map_err(|error| SettingError::new(key, format!("{path_shown} cannot be read ({error})")))?;
    String::from_utf8(bytes).map_err(|_| SettingError::new(key, format!("{path_shown} is no text, and so no PEM")))
}
