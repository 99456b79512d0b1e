//! A signer that has signed: what is wrong with key and certificates shows at start, and not at the first paid image.

use super::manifest::Manifest;
use super::settings::Settings;
use super::signing::Signing;
use super::source::{PrivateKey, Source};
use super::verify::{self, Failure};
use crate::setting::SettingError;

const FORMAT: &str = "image/png";
const CREATED_BY_A_MODEL: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia";
/// The signature was made by another key, or over something else.
const SIGNATURE_MISMATCH: &str = "claimSignature.mismatch";

/// The signer that the settings name; none: they name none.
///
/// # Errors
/// Says in words what is wrong with the certificates or the key: all that would make verifiers refuse an image.
pub fn signing(settings: &Settings) -> Result<Option<Signing>, SettingError> {
    let Some(source) = settings.source()? else { return Ok(None) };
    let signing = Signing::new(&source)?;
    try_out(&signing.without_timestamps(), &source)?;
    Ok(Some(signing))
}

/// Signs a small image and verifies it.
fn try_out(signing: &Signing, source: &Source) -> Result<(), SettingError> {
    // Of a key that is here all was checked, and what is wrong is a certificate that c2pa does not take; another is asked for the first time.
    let setting = match &source.private_key {
        PrivateKey::Here(_) => source.certificate.key,
        PrivateKey::Kms { .. } => source.private_key.setting(),
    };
    let signed = small_image()
        .and_then(|file| Manifest::new(signing, None, CREATED_BY_A_MODEL, &[])?.sign(signing, &file, FORMAT, false))
        .map(|signed| signed.file)
        .map_err(|problem| SettingError::new(setting, problem))?;
    let found = verify::verify(&signed, FORMAT, None);
    let credentials = found.map_err(|problem| SettingError::new(source.certificate.key, problem))?;
    let failures = credentials.map(|credentials| credentials.failures).unwrap_or_default();
    if failures.iter().any(|failure| failure.code == SIGNATURE_MISMATCH) {
        let problem = "is not the key of the certificate that signs: what it signs does not verify";
        return Err(SettingError::new(source.private_key.setting(), problem));
    }
    match failures.into_iter().find(|failure| failure.code != verify::UNTRUSTED) {
        None => Ok(()),
        Some(Failure { code, explanation }) => {
            let problem = format!("what is signed with it does not verify: {explanation} ({code})");
            Err(SettingError::new(source.certificate.key, problem))
        }
    }
}

fn small_image() -> Result<Vec<u8>, String> {
    const SIDE_PX: u32 = 16;
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, SIDE_PX, SIDE_PX);
    encoder.set_color(png::ColorType::Grayscale);
    let written = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(&[0; (SIDE_PX * SIDE_PX) as usize])?;
        writer.finish()
    });
    written.map_err(|error| error.to_string())?;
    Ok(file)
}
