//! Names and checksums of a model's files.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use sha2::{Digest as _, Sha256};

/// A file's place under its model's directory, with `/` between the parts: it never leads out of there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FilePath(String);

impl FilePath {
    /// # Errors
    /// Says what is allowed when `text` is no such path.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0', ':'])) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("must be a path inside of the model's directory, such as unet/config.json, got {text:?}"))
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn under(&self, directory: &Path) -> PathBuf {
        self.0.split('/').fold(directory.to_owned(), |path, part| path.join(part))
    }

    /// The directory it is in, empty at the top, and its name there.
    pub(super) fn split(&self) -> (&str, &str) {
        self.0.rsplit_once('/').unwrap_or(("", &self.0))
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for FilePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A SHA-256, shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Checksum([u8; 32]);

impl Checksum {
    /// # Errors
    /// Says what is allowed when `text` is none.
    pub fn new(text: &str) -> Result<Self, String> {
        let mut bytes = [0; 32];
        match base16ct::mixed::decode(text, &mut bytes) {
            Ok(decoded) if decoded.len() == 32 => Ok(Self(bytes)),
            _ => Err(format!("must be a SHA-256 as 64 hexadecimal digits, got {text:?}")),
        }
    }

    #[must_use]
    pub fn of(digest: Sha256) -> Self {
        Self(digest.finalize().into())
    }

    /// Reads all of a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of_file(path: &Path) -> std::io::Result<Self> {
        let mut digest = Sha256::new();
        feed(&mut digest, &mut File::open(path)?)?;
        Ok(Self::of(digest))
    }
}

/// Reads `file` to its end into `digest`.
pub(super) fn feed(digest: &mut Sha256, file: &mut File) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            count => digest.update(&buffer[..count]),
        }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base16ct::lower::encode_string(&self.0))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'de> Deserialize<'de> for Checksum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_never_leads_out_of_its_directory() {
        for wrong in ["", "/etc/passwd", "../x", "unet/../../x", "unet//x", "unet/", "c:\\x", "unet\\x", "."] {
            assert!(FilePath::new(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(FilePath::new("unet/a.json").expect("a path").under(Path::new("/m")), Path::new("/m/unet/a.json"));
    }

    #[test]
    fn checksums_are_64_digits() {
        let text = Checksum::of(Sha256::new_with_prefix(b"abc")).to_string();
        assert_eq!(text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(Checksum::new(&text.to_uppercase()).expect("a checksum").to_string(), text);
        assert!(Checksum::new(&text[1..]).is_err() && Checksum::new("sha256").is_err());
    }
}
