//! A timestamp authority (RFC 3161): with its word for when an image was signed, the signature outlives the certificate.
//!
//! Images do not wait for it for long, and are never lost for it: one that has no timestamp is signed all the same, and the log says so.

use std::io::{self, Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use c2pa::Context;
use c2pa::crypto::time_stamp::{default_rfc3161_message, default_rfc3161_request};
use c2pa::http::http::{Request, Response};
use c2pa::http::{HttpResolverError, SyncHttpResolver};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use serde::Deserialize;
use url::Url;

use super::network::Network;
use crate::authorities;
use crate::setting::SettingError;
use crate::shown;

const URL: &str = "content_credentials.timestamp.url";
/// What is kept for it in a file, certificates of the authority included; those of public authorities have 4 to 7 kB.
pub(super) const MAX_BYTES: usize = 10 << 10;

/// Settings of section `content_credentials.timestamp`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Of the authority, which gets a POST for each image; none: no one is asked.
    pub url: Option<String>,
    /// Milliseconds that an image waits for it.
    pub timeout_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { url: None, timeout_ms: 3_000 }
    }
}

impl Settings {
    /// The authority's address; none: no one is asked.
    ///
    /// # Errors
    /// When it is no address.
    pub(super) fn url(&self) -> Result<Option<Url>, SettingError> {
        let Some(address) = &self.url else { return Ok(None) };
        let url = Url::parse(address).ok().filter(|url| ["http", "https"].contains(&url.scheme()));
        url.map(Some).ok_or_else(|| {
            let problem = format!("must be an address such as https://timestamp.example.com, and is {}", shown::text(address));
            SettingError::new(URL, problem)
        })
    }
}

/// Who says when something was signed.
pub(super) struct Authority {
    url: Url,
    context: Context,
}

impl Authority {
    /// None: the settings name none. Asks no one yet.
    ///
    /// # Errors
    /// Names the setting, when it is no address.
    pub(super) fn new(settings: &Settings) -> Result<Option<Self>, SettingError> {
        let Some(url) = settings.url()? else { return Ok(None) };
        let wrong = |problem: String| SettingError::new(URL, problem);
        let timeout = Duration::from_millis(settings.timeout_ms);
        let client = authorities::client().timeout(timeout).redirect(reqwest::redirect::Policy::none()).build();
        let client = client.map_err(|error| wrong(format!("the HTTPS client could not be set up: {error:?}")))?;
        let network = Network::new().map_err(wrong)?;
        Ok(Some(Self { url, context: Context::new().with_resolver(Client { client, network }) }))
    }

    /// The authority's answer (`TimeStampResp`, DER) about `message`, checked to be about it: [`MAX_BYTES`] at most, for no more is read.
    ///
    /// # Errors
    /// Names the authority and what it did.
    pub(super) fn timestamp(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        // Its address may have a password in it, or a token.
        let url = shown::without_queries(self.url.as_str());
        let failed = |problem: String| format!("the timestamp authority {url} {problem}");
        let body = default_rfc3161_message(message).map_err(|error| failed(format!("cannot be asked: {error}")))?;
        // What an authority answers is no reason to lose an image, whatever the library makes of it.
        let answer =
            catch_unwind(AssertUnwindSafe(|| default_rfc3161_request(self.url.as_str(), None, &body, message, &self.context)));
        let answer = answer.map_err(|_| failed("gave no timestamp: its answer cannot be read".to_owned()))?;
        answer.map_err(|error| failed(format!("gave no timestamp: {}", shown::without_queries(&error.to_string()))))
    }
}

/// c2pa's requests, by our client.
struct Client {
    client: reqwest::Client,
    network: Network,
}

impl SyncHttpResolver for Client {
    fn http_resolve(&self, request: Request<Vec<u8>>) -> Result<Response<Box<dyn Read>>, HttpResolverError> {
        let asked = async {
            let request = request.try_into().map_err(|error: reqwest::Error| error.to_string())?;
            let failed = |error: reqwest::Error| shown::deepest_cause(&error).to_string();
            let mut answer = self.client.execute(request).await.map_err(failed)?;
            let mut bytes = Vec::new();
            while let Some(chunk) = answer.chunk().await.map_err(failed)? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() > MAX_BYTES {
                    return Err(format!("more than {MAX_BYTES} bytes"));
                }
            }
            // Of its headers only what the body is: c2pa believes a length, and makes room for it.
            let mut response = Response::builder().status(answer.status()).header(CONTENT_LENGTH, bytes.len());
            if let Some(kind) = answer.headers().get(CONTENT_TYPE) {
                response = response.header(CONTENT_TYPE, kind);
            }
            let body: Box<dyn Read> = Box::new(Cursor::new(bytes));
            response.body(body).map_err(|error| error.to_string())
        };
        self.network.wait_for(asked).map_err(|problem| HttpResolverError::Io(io::Error::other(problem)))
    }
}
