//! The one HTTP client for addresses that callers hand us: it never reaches loopback, private or metadata addresses.
//!
//! - `https` only, unless `allow_http`.
//! - A host is resolved once; the addresses that were checked are the ones that are connected to.
//! - Proxies of the environment are not used, and every redirect of a download is checked like the first address.
//! - Webhooks do not follow redirects.

pub mod error;
mod reach;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ETAG, HeaderMap, IF_NONE_MATCH, LOCATION};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use url::{Host, Url};

use self::error::{OutboundError, Refused, refusal_behind};
use self::reach::Reach;
use crate::authorities;
use crate::setting::SettingError;

/// Settings of section `outbound`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Take `http://` addresses from callers as well.
    pub allow_http: bool,
    /// Host names, addresses and networks that may be reached although they are not public:
    /// `["127.0.0.1/32", "10.1.0.0/16", "hooks.internal"]`.
    pub allow: Vec<String>,
    /// Milliseconds to wait for a connection.
    pub connect_timeout_ms: u64,
    /// Milliseconds without a single byte after which a server counts as gone.
    pub read_timeout_ms: u64,
    /// Redirects that a download follows.
    pub max_redirects: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { allow_http: false, allow: Vec::new(), connect_timeout_ms: 5_000, read_timeout_ms: 20_000, max_redirects: 3 }
    }
}

/// The guarded client; clones share their connections.
#[derive(Debug, Clone)]
pub struct Outbound {
    client: reqwest::Client,
    reach: Arc<Reach>,
    allow_http: bool,
    max_redirects: u32,
}

/// What a download found.
#[derive(Debug)]
pub enum Found {
    /// The server says that the caller's copy is still the same.
    NotModified,
    File {
        etag: Option<String>,
        response: Response,
    },
}

impl Outbound {
    /// # Errors
    /// When `allow` has an entry that is neither a host name nor a network, or TLS cannot be set up.
    pub fn new(settings: &Settings) -> Result<Self, SettingError> {
        let reach = Arc::new(Reach::new(&settings.allow)?);
        let client = authorities::client()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(Duration::from_millis(settings.connect_timeout_ms))
            .read_timeout(Duration::from_millis(settings.read_timeout_ms))
            .user_agent(concat!("atelier/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(CheckedNames(Arc::clone(&reach)))
            .build()
            .map_err(|error| SettingError::new("outbound", format!("the HTTPS client could not be set up: {error:?}")))?;
        Ok(Self { client, reach, allow_http: settings.allow_http, max_redirects: settings.max_redirects })
    }

    /// A request to a checked address, to be finished by the caller and handed to [`Self::send`].
    ///
    /// # Errors
    /// [`OutboundError::Refused`] when the address may not be reached.
    pub fn request(&self, method: Method, url: &Url) -> Result<RequestBuilder, OutboundError> {
        self.check(url)?;
        Ok(self.client.request(method, url.clone()))
    }

    /// # Errors
    /// When the host leads to addresses that may not be reached, or the connection fails.
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, OutboundError> {
        request.send().await.map_err(|error| match refusal_behind(&error) {
            Some(refused) => OutboundError::Refused(refused),
            None => OutboundError::Connection(error.without_url()),
        })
    }

    /// Starts a download, following redirects, unless the file is still the one that `etag` names.
    ///
    /// # Errors
    /// When an address on the way may not be reached, or the answer is no file.
    pub async fn get(&self, url: &Url, etag: Option<&str>) -> Result<Found, OutboundError> {
        let mut url = url.clone();
        for _ in 0..=self.max_redirects {
            let mut request = self.request(Method::GET, &url)?;
            if let Some(etag) = etag {
                request = request.header(IF_NONE_MATCH, etag);
            }
            let response = self.send(request).await?;
            match response.status() {
                StatusCode::NOT_MODIFIED if etag.is_some() => return Ok(Found::NotModified),
                StatusCode::OK => return Ok(Found::File { etag: etag_of(response.headers()), response }),
                status if status.is_redirection() => url = next_hop(&url, &response)?,
                status => return Err(OutboundError::Status(status)),
            }
        }
        Err(OutboundError::TooManyRedirects { max: self.max_redirects })
    }

    /// Whether `url` has a scheme and, where it names an address itself, an address that may be reached.
    ///
    /// # Errors
    /// [`OutboundError::Refused`], saying what is allowed.
    pub fn check(&self, url: &Url) -> Result<(), OutboundError> {
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            other => return Err(Refused::Scheme { scheme: other.to_owned(), http_allowed: self.allow_http }.into()),
        }
        let address = match url.host() {
            Some(Host::Ipv4(address)) => address.into(),
            Some(Host::Ipv6(address)) => address.into(),
            Some(Host::Domain(_)) | None => return Ok(()),
        };
        self.reach.check(address).map_err(|what| Refused::Address { host: address.to_string(), address, what }.into())
    }

    /// As [`Self::check`], and whether it names this machine. No name is resolved: what it leads to is checked when it is connected to.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_at_the_door(&self, url: &Url) -> Result<(), OutboundError> {
        self.check(url)?;
        match url.host() {
            Some(Host::Domain(name)) => Ok(self.reach.check_name(name)?),
            _ => Ok(()),
        }
    }
}

fn etag_of(headers: &HeaderMap) -> Option<String> {
    headers.get(ETAG)?.to_str().ok().map(str::to_owned)
}

fn next_hop(url: &Url, response: &Response) -> Result<Url, OutboundError> {
    let location = response.headers().get(LOCATION).map(|value| escaped(value.as_bytes()));
    location.and_then(|location| url.join(&location).ok()).ok_or(OutboundError::Status(response.status()))
}

/// Many servers send a `Location` as raw bytes, mostly UTF-8. curl and browsers send those bytes back, percent-encoded.
fn escaped(location: &[u8]) -> String {
    location.iter().map(|byte| if byte.is_ascii() { char::from(*byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Resolves names through the system, and lets through only addresses that may be reached.
struct CheckedNames(Arc<Reach>);

impl Resolve for CheckedNames {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = Arc::clone(&self.0);
        Box::pin(async move {
            let host = name.as_str();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host, 0)).await?.collect();
            if reach.allows_host(host) {
                return Ok(Box::new(found.into_iter()) as Addrs);
            }
            let (open, closed): (Vec<_>, Vec<_>) =
                found.into_iter().map(|socket| (socket, reach.check(socket.ip()))).partition(|(_, checked)| checked.is_ok());
            match closed.first() {
                Some((socket, Err(what))) if open.is_empty() => {
                    Err(Refused::Address { host: host.to_owned(), address: socket.ip(), what }.into())
                }
                _ => Ok(Box::new(open.into_iter().map(|(socket, _)| socket)) as Addrs),
            }
        })
    }
}
