//! Addresses that callers hand us: checked for form here, for where they lead when they are used.

use std::fmt;

use ::url::Url;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;

use super::shown::shown;

/// Where an input file lies: `s3://bucket/key`, `https://…` or (where the configuration allows it) `http://…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AssetUrl {
    S3 { bucket: String, key: String },
    Http(Url),
}

impl AssetUrl {
    /// # Errors
    /// Says which schemes are allowed when `text` has another one or is no address at all.
    pub fn parse(text: &str) -> Result<Self, String> {
        const ALLOWED: &str = "must be s3://BUCKET/KEY or an https:// address";
        let url = Url::parse(text).map_err(|error| format!("{ALLOWED}, got {text:?} ({error})"))?;
        match url.scheme() {
            "s3" => {
                let rest = text.get("s3://".len()..).unwrap_or_default();
                match rest.split_once('/') {
                    Some((bucket, key)) if !bucket.is_empty() && !key.is_empty() => {
                        Ok(Self::S3 { bucket: bucket.to_owned(), key: key.to_owned() })
                    }
                    _ => Err(format!("{ALLOWED}, got {text:?} (bucket or key is missing)")),
                }
            }
            "https" | "http" => Ok(Self::Http(without_credentials(url, ALLOWED)?)),
            other => Err(format!("{ALLOWED}, got the scheme {other:?}")),
        }
    }
}

impl AssetUrl {
    /// What decides whether two requests name the same file: the address without the signature of a presigned request,
    /// which is new each time. Not for logs.
    #[must_use]
    pub fn identity(&self) -> String {
        let Self::Http(url) = self else { return self.to_string() };
        let lasting: Vec<_> = url.query_pairs().filter(|(name, _)| !name.starts_with("X-Amz-")).collect();
        let mut bare = url.clone();
        bare.set_query(None);
        if !lasting.is_empty() {
            bare.query_pairs_mut().extend_pairs(lasting);
        }
        bare.into()
    }
}

impl AssetUrl {
    /// The file `name` in the same directory; none of a URL with a query, which may be signed for its own file alone.
    #[must_use]
    pub fn sibling(&self, name: &str) -> Option<Self> {
        match self {
            Self::S3 { bucket, key } => {
                let directory = key.rfind('/').map_or("", |slash| &key[..=slash]);
                Some(Self::S3 { bucket: bucket.clone(), key: format!("{directory}{name}") })
            }
            Self::Http(url) if url.query().is_none() => {
                let mut sibling = url.clone();
                sibling.set_fragment(None);
                sibling.path_segments_mut().ok()?.pop().push(name);
                Some(Self::Http(sibling))
            }
            Self::Http(_) => None,
        }
    }
}

impl fmt::Display for AssetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, key } => write!(f, "s3://{bucket}/{key}"),
            // The query of a presigned address is a credential, and must not reach a log.
            Self::Http(url) => write!(f, "{}{}", url.origin().ascii_serialization(), url.path()),
        }
    }
}

impl<'de> Deserialize<'de> for AssetUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        address(deserializer, Self::parse)
    }
}

/// Where notifications of one job go instead of the configured backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallbackUrl(Url);

impl CallbackUrl {
    /// # Errors
    /// Says which schemes are allowed when `text` has another one or is no address at all.
    pub fn parse(text: &str) -> Result<Self, String> {
        const ALLOWED: &str = "must be an https:// address";
        let url = Url::parse(text).map_err(|error| format!("{ALLOWED}, got {text:?} ({error})"))?;
        match url.scheme() {
            "https" | "http" => Ok(Self(without_credentials(url, ALLOWED)?)),
            other => Err(format!("{ALLOWED}, got the scheme {other:?}")),
        }
    }

    #[must_use]
    pub fn as_url(&self) -> &Url {
        &self.0
    }
}

impl Serialize for CallbackUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}

impl<'de> Deserialize<'de> for CallbackUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        address(deserializer, Self::parse)
    }
}

fn address<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => parse(&text).map_err(de::Error::custom),
        other => Err(de::Error::custom(format!("must be an address, got {}", shown(&other)))),
    }
}

fn without_credentials(url: Url, allowed: &str) -> Result<Url, String> {
    if url.username().is_empty() && url.password().is_none() {
        Ok(url)
    } else {
        Err(format!("{allowed} without a user name or password in it"))
    }
}
