//! A signer for development: key and certificates are made where it is first used, and trusted by no one but who trusts its root.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::source::{DEVELOPMENT_DIRECTORY, Given};
use crate::setting::{Secret, SettingError};

/// What a verifier must be given to trust the images.
pub const ROOT: &str = "root.pem";
const CHAIN: &str = "chain.pem";
const KEY: &str = "key.pem";
/// Of C2PA's claim signing.
const CLAIM_SIGNING: [u64; 9] = [1, 3, 6, 1, 4, 1, 62_558, 2, 1];
const VALID: Duration = Duration::days(3_650);
/// Clocks of verifiers may be behind.
const BACKDATED: Duration = Duration::days(1);

/// Whether `directory` has a signer already.
#[must_use]
pub fn is_made(directory: &Path) -> bool {
    directory.join(KEY).exists()
}

/// Certificates and key of `directory`, which are made where there are none.
pub(super) fn given(directory: &Path) -> Result<(Given<String>, Given<Secret>), SettingError> {
    let read = |name: &str| fs::read_to_string(directory.join(name));
    let failed = |problem: String| {
        let shown = directory.display();
        SettingError::new(DEVELOPMENT_DIRECTORY, format!("{shown}: the development signer cannot be kept there ({problem})"))
    };
    if !is_made(directory) {
        make(directory).map_err(failed)?;
    }
    let chain = read(CHAIN).map_err(|error| failed(format!("{CHAIN}: {error}")))?;
    let key = read(KEY).map_err(|error| failed(format!("{KEY}: {error}")))?;
    let certificate = Given { key: DEVELOPMENT_DIRECTORY, text: chain };
    Ok((certificate, Given { key: DEVELOPMENT_DIRECTORY, text: Secret::new(&key) }))
}

/// Handlers of one host may be here at the same time: the directory appears with all of its files, and the first one stays.
fn make(directory: &Path) -> Result<(), String> {
    let files = issue().map_err(|error| format!("no key can be made: {error}"))?;
    let made = directory.with_extension(format!("{}.partial", Uuid::new_v4().simple()));
    let written = write(&made, &files).and_then(|()| match fs::rename(&made, directory) {
        // Another process was faster.
        Err(_) if is_made(directory) => Ok(()),
        renamed => renamed,
    });
    let _ = fs::remove_dir_all(&made);
    written.map_err(|error| error.to_string())
}

fn write(directory: &Path, files: &[(&str, String)]) -> io::Result<()> {
    /// Of the owner alone.
    const MODE: u32 = 0o600;
    fs::create_dir_all(directory)?;
    for (name, text) in files {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(directory.join(name))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
    }
    Ok(())
}

/// A root, whose key is forgotten, and a certificate of it that signs.
fn issue() -> Result<[(&'static str, String); 3], rcgen::Error> {
    let installation = Uuid::new_v4().simple().to_string();
    let mut root = parameters(&format!("atelier development root {}", &installation[..8]));
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate()?)?;
    let mut leaf = parameters(&format!("atelier development signer {}", &installation[..8]));
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.use_authority_key_identifier_extension = true;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::EmailProtection, ExtendedKeyUsagePurpose::Other(CLAIM_SIGNING.to_vec())];
    let key = KeyPair::generate()?;
    let signed = leaf.signed_by(&key, &root)?;
    Ok([(ROOT, root.pem()), (CHAIN, format!("{}{}", signed.pem(), root.pem())), (KEY, key.serialize_pem())])
}

fn parameters(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    parameters.not_before = now - BACKDATED;
    parameters.not_after = now + VALID;
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.distinguished_name.push(DnType::OrganizationName, "for development, trusted by no one");
    parameters
}
