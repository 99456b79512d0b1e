//! A model hub with the addresses of huggingface.co.
//!
//! - `GET /api/models/{repository}/revision/{revision}?blobs=true` lists the files of a commit.
//! - `GET /{repository}/resolve/{commit}/{path}` is a file, mostly by way of a redirect to another host.
//! - The token goes to the hub alone, never to where it redirects to.

use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::header::{AUTHORIZATION, LOCATION, RANGE};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;
use url::Url;

use super::ModelError;
use super::file::{Checksum, FilePath};
use super::listing::{Content, Listed, Listing};
use crate::authorities;
use crate::setting::{Secret, SettingError, check_address};
use crate::shown;

/// Redirects of one download.
const MAX_REDIRECTS: usize = 5;
/// Without a byte for so long a connection counts as broken.
const STALLED: Duration = Duration::from_mins(1);

/// Settings of section `hub`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    pub endpoint: String,
    /// For repositories that are not open to everyone.
    pub token: Option<Secret>,
    /// Nothing is fetched from anywhere: what is missing is an error.
    pub offline: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { endpoint: "https://huggingface.co".into(), token: None, offline: false }
    }
}

pub struct Hub {
    client: Client,
    endpoint: Url,
    token: Option<Secret>,
    repository: String,
    revision: String,
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Checksum,
}

impl Hub {
    pub(super) fn new(settings: &Settings, repository: &str, revision: &str) -> Result<Self, SettingError> {
        check_address("hub.endpoint", Some(&settings.endpoint))?;
        let wrong = |error: &dyn std::fmt::Display| SettingError::new("hub.endpoint", error.to_string());
        let client = authorities::client().redirect(Policy::none()).connect_timeout(STALLED).read_timeout(STALLED).build();
        Ok(Self {
            client: client.map_err(|error| wrong(&error))?,
            endpoint: Url::parse(&settings.endpoint).map_err(|error| wrong(&error))?,
            token: settings.token.clone(),
            repository: repository.to_owned(),
            revision: revision.to_owned(),
        })
    }

    pub(super) async fn list(&self) -> Result<Listing, ModelError> {
        let address = self.url_of(&format!("api/models/{}/revision/{}?blobs=true", self.repository, self.revision))?;
        let response = self.get(&address, 0).await?;
        if !response.status().is_success() {
            return Err(self.refused(&response));
        }
        let Answer { sha, siblings } =
            response.json().await.map_err(|error| self.unusable(format!("its listing cannot be read ({})", cause(&error))))?;
        let mut files = Vec::new();
        for Sibling { rfilename, size, lfs } in siblings {
            let path = FilePath::new(&rfilename).map_err(|problem| self.unusable(format!("names a file that {problem}")))?;
            files.push(Listed { path, bytes: size, checksum: lfs.map(|lfs| lfs.sha256) });
        }
        Ok(Listing { commit: Some(sha), files })
    }

    /// The bytes of `path` from `from` on, as of `commit`.
    pub(super) async fn open(&self, path: &FilePath, commit: Option<&str>, from: u64) -> Result<Content, ModelError> {
        let revision = commit.unwrap_or(&self.revision);
        let mut address = self.url_of(&format!("{}/resolve/{revision}/{path}", self.repository))?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.get(&address, from).await?;
            if response.status().is_redirection() {
                let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
                let to = to.and_then(|to| address.join(to).ok());
                address = to.ok_or_else(|| self.unusable(format!("{path}: redirects to nowhere")))?;
                continue;
            }
            return match response.status() {
                StatusCode::PARTIAL_CONTENT => Ok(content(response, from)),
                status if status.is_success() => Ok(content(response, 0)),
                // All of it was there already.
                StatusCode::RANGE_NOT_SATISFIABLE => Ok(Content::nothing(from)),
                StatusCode::NOT_FOUND => Err(ModelError::Lacks { place: self.to_string(), files: vec![path.to_string()] }),
                _ => Err(self.refused(&response)),
            };
        }
        Err(self.unusable(format!("{path}: redirects more than {MAX_REDIRECTS} times")))
    }

    async fn get(&self, address: &Url, from: u64) -> Result<Response, ModelError> {
        let mut request = self.client.get(address.clone());
        if let Some(token) = self.token.as_ref().filter(|_| address.origin() == self.endpoint.origin()) {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.reveal()));
        }
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let response = request
            .send()
            .await
            .map_err(|error| ModelError::Unreachable { place: self.to_string(), problem: cause(&error) })?;
        let status = response.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            let problem = format!("{} answered {}", self.endpoint, status.as_u16());
            return Err(ModelError::Unreachable { place: self.to_string(), problem });
        }
        Ok(response)
    }

    fn url_of(&self, path: &str) -> Result<Url, ModelError> {
        let base = self.endpoint.as_str().trim_end_matches('/');
        Url::parse(&format!("{base}/{path}")).map_err(|error| self.unusable(error.to_string()))
    }

    fn refused(&self, response: &Response) -> ModelError {
        let repository = &self.repository;
        let revision = &self.revision;
        let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or_default();
        self.unusable(match (response.status().as_u16(), code) {
            (_, "GatedRepo") => {
                format!("{repository} is only for those who accepted its terms: do so in a browser, and set HF_TOKEN")
            }
            (_, "RevisionNotFound") => format!("{repository} has no revision {revision}"),
            (401 | 403 | 404, _) => {
                format!("{repository} is not there, or not open to everyone, and the token in HF_TOKEN may not read it")
            }
            (status, _) => format!("{} answered {status}", self.endpoint),
        })
    }

    fn unusable(&self, problem: impl std::fmt::Display) -> ModelError {
        ModelError::Place { place: self.to_string(), problem: format!("cannot be used: {problem}") }
    }
}

impl std::fmt::Display for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "hub {}@{}", self.repository, self.revision)
    }
}

fn content(response: Response, from: u64) -> Content {
    let bytes = response.content_length();
    let chunks = response.bytes_stream().map(|piece| piece.map_err(|error| cause(&error)));
    Content { from, bytes, chunks: Box::pin(chunks) }
}

/// The deepest cause: what reqwest says itself repeats the address, and a hub redirects to presigned ones.
fn cause(error: &reqwest::Error) -> String {
    shown::without_queries(&shown::deepest_cause(error).to_string())
}
