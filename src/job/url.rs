//! URLs that callers hand us: checked for form here, for where they lead when they are used.

use std::char::REPLACEMENT_CHARACTER;
use std::fmt;

use ::url::{Url, form_urlencoded};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;

use super::signature;
use crate::shown;

/// Where an input file lies: `s3://bucket/key`, `https://…` or (where the configuration allows it) `http://…`.
#[derive(Clone, PartialEq, Eq)]
pub enum AssetUrl {
    S3 { bucket: String, key: String },
    Http(Url),
}

impl AssetUrl {
    /// # Errors
    /// Says which schemes are allowed when `text` has another one or is no address at all.
    pub fn parse(text: &str) -> Result<Self, String> {
        const ALLOWED: &str = "must be s3://BUCKET/KEY or an https:// address";
        let url = parsed(text, ALLOWED)?;
        match url.scheme() {
            "s3" => {
                let Some((_, rest)) = text.split_once("://") else {
                    return Err(format!("{ALLOWED}, got {} (two slashes belong behind s3:)", shown::text(text)));
                };
                match rest.split_once('/') {
                    Some((bucket, key)) if !bucket.is_empty() && !key.is_empty() => {
                        Ok(Self::S3 { bucket: bucket.to_owned(), key: key.to_owned() })
                    }
                    _ => Err(format!("{ALLOWED}, got {} (bucket or key is missing)", shown::text(text))),
                }
            }
            "https" | "http" => Ok(Self::Http(without_credentials(url, ALLOWED)?)),
            "data" => Err(format!(
                "{ALLOWED}; data: URLs are taken by POST /tryon, /edit and /infer alone, as images of a try-on or an edit"
            )),
            other => Err(format!("{ALLOWED}, got the scheme {}", shown::text(other))),
        }
    }

    /// What decides whether two requests name the same file: the address without the signature of a presigned request,
    /// which is new each time. Not for logs.
    #[must_use]
    pub fn identity(&self) -> String {
        let Self::Http(url) = self else { return self.to_string() };
        let mut bare = url.clone();
        let parts = query_parts(url);
        let lasting: Vec<String> = signature::without(&parts).into_iter().filter(|part| !part.is_empty()).map(tidy).collect();
        let query = lasting.join("&");
        bare.set_query(Some(query.as_str()).filter(|query| !query.is_empty()));
        bare.into()
    }
}

impl AssetUrl {
    /// Whether it is an `https://` address that carries a complete signature.
    #[must_use]
    pub fn is_presigned(&self) -> bool {
        let Self::Http(url) = self else { return false };
        let parts = query_parts(url);
        signature::without(&parts).len() < parts.len()
    }

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

/// As `Display`: what is printed for debugging reaches a log as well.
impl fmt::Debug for AssetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'de> Deserialize<'de> for AssetUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_url(deserializer, Self::parse)
    }
}

/// Where notifications of one job go instead of the configured backend.
#[derive(Clone, PartialEq, Eq)]
pub struct CallbackUrl(Url);

impl CallbackUrl {
    /// # Errors
    /// Says which schemes are allowed when `text` has another one or is no address at all.
    pub fn parse(text: &str) -> Result<Self, String> {
        const ALLOWED: &str = "must be an https:// address";
        let url = parsed(text, ALLOWED)?;
        match url.scheme() {
            "https" | "http" => Ok(Self(without_credentials(url, ALLOWED)?)),
            other => Err(format!("{ALLOWED}, got the scheme {}", shown::text(other))),
        }
    }

    #[must_use]
    pub fn as_url(&self) -> &Url {
        &self.0
    }
}

/// Without the query, which may hold the receiver's token.
impl fmt::Debug for CallbackUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.0.origin().ascii_serialization(), self.0.path())
    }
}

impl Serialize for CallbackUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}

impl<'de> Deserialize<'de> for CallbackUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_url(deserializer, Self::parse)
    }
}

fn read_url<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => parse(&text).map_err(de::Error::custom),
        other => Err(de::Error::custom(format!("must be an address, got {}", shown::json(&other)))),
    }
}

/// A URL parser drops white space around a URL and line breaks in it without a word, and an S3 key would keep them.
fn parsed(text: &str, allowed: &str) -> Result<Url, String> {
    if let Some(what) = base64_kind(text) {
        let advice = "images of a try-on or an edit may come as data:image/png;base64,... over HTTP";
        return Err(format!("{allowed}, got {what}; {advice}"));
    }
    if text.trim() != text || text.contains(char::is_control) {
        let advice = "without blanks around it or line breaks in it";
        return Err(format!("{allowed} {advice}, got {}", shown::text(text)));
    }
    Url::parse(text).map_err(|error| format!("{allowed}, got {} ({error})", shown::text(text)))
}

/// What a text is that looks like a file's bytes in base64, with line breaks or without. It is never echoed: it may be someone's photo.
fn base64_kind(given: &str) -> Option<&'static str> {
    /// Shorter ones may as well be the name of a file.
    const MIN_CHARS: usize = 64;
    /// The first three bytes of PNG, JPEG, WebP and GIF in base64.
    const IMAGES: [&str; 4] = ["iVBORw0K", "/9j/", "UklGR", "R0lGOD"];
    // What is left of a `data:` URL whose beginning was cut off.
    let start = given.trim_start();
    let data =
        ["image/png;", "image/jpeg;", "image/webp;", ""].iter().find_map(|kind| start.strip_prefix(kind)).unwrap_or(start);
    let is_said = data.starts_with("base64,");
    let data = data.strip_prefix("base64,").unwrap_or(data);
    let text: String = data.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    if !text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '-' | '_' | '=')) {
        return None;
    }
    if IMAGES.iter().any(|start| text.starts_with(start)) {
        return Some("an image in base64");
    }
    (is_said || text.len() >= MIN_CHARS && !text.contains(':')).then_some("base64")
}

/// As written.
fn query_parts(url: &Url) -> Vec<&str> {
    url.query().map(|query| query.split('&').collect()).unwrap_or_default()
}

/// A part of a query in one spelling; as it was written where its bytes are no UTF-8, since what replaces them is the same for all.
fn tidy(part: &str) -> String {
    match form_urlencoded::parse(part.as_bytes()).next() {
        Some((name, value)) if !name.contains(REPLACEMENT_CHARACTER) && !value.contains(REPLACEMENT_CHARACTER) => {
            form_urlencoded::Serializer::new(String::new()).append_pair(&name, &value).finish()
        }
        _ => part.to_owned(),
    }
}

fn without_credentials(url: Url, allowed: &str) -> Result<Url, String> {
    if url.username().is_empty() && url.password().is_none() {
        Ok(url)
    } else {
        Err(format!("{allowed} without a user name or password in it"))
    }
}
