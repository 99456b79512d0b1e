//! From the command line: a host's API, with jobs handed in, followed and cancelled; and what its queues keep that failed for good.

mod bucket_dead_letters;
pub mod dead;
mod events;
mod follow;
pub mod jobs;
pub mod submit;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde_json::Value;

use crate::authorities;
use crate::config::{Config, Environment};
use crate::job::JobId;
use crate::setting::Secret;
use crate::shown;

/// For a whole answer, but for streams.
const LIMIT: Duration = Duration::from_mins(1);
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A host, as its clients see it.
pub(crate) struct Api {
    client: Client,
    base: Url,
    token: Option<Secret>,
}

impl Api {
    /// `at`: the host's address; none: the one that the configuration would listen at on this machine.
    pub(crate) fn new(at: Option<&str>, config: Option<&Path>, environment: &Environment) -> anyhow::Result<Self> {
        let config = Config::load(config, environment)?;
        let own = format!("http://127.0.0.1:{}", config.server.port);
        let at = at.unwrap_or(&own);
        let base = Url::parse(at).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let base = base.with_context(|| format!("{at:?} is no address of a host: give one such as http://127.0.0.1:8080"))?;
        let client = authorities::client().connect_timeout(CONNECT_LIMIT).build()?;
        Ok(Self { client, base, token: config.security.internal_auth_token })
    }

    fn request(&self, method: Method, path: &[&str]) -> anyhow::Result<RequestBuilder> {
        Ok(self.request_to(method, self.url(path)?))
    }

    fn url(&self, path: &[&str]) -> anyhow::Result<Url> {
        let mut url = self.base.clone();
        url.path_segments_mut().ok().context("the address takes no path")?.pop_if_empty().extend(path);
        Ok(url)
    }

    fn request_to(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.client.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token.reveal()),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        request.send().await.with_context(|| format!("{} does not answer", self.base))
    }

    /// The document of an answer.
    ///
    /// # Errors
    /// What the host says is wrong.
    async fn answer(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        let response = self.send(request.timeout(LIMIT)).await?;
        said(response).await
    }

    pub(crate) async fn job(&self, id: &JobId) -> anyhow::Result<Value> {
        self.answer(self.request(Method::GET, &["jobs", id.as_str()])?).await
    }
}

/// The document of a good answer; the words of a bad one.
async fn said(response: Response) -> anyhow::Result<Value> {
    let status = response.status();
    let text = response.text().await.context("the answer broke off")?;
    let body: Value = serde_json::from_str(&text).unwrap_or_default();
    if status.is_success() {
        return Ok(body);
    }
    let error = &body["error"];
    let message = shown::one_line(error["message"].as_str().unwrap_or("it says no more"));
    let hint = match status {
        StatusCode::UNAUTHORIZED => " (set INTERNAL_API_TOKEN or security.internal_auth_token to the host's token)",
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => " (try again in a moment)",
        _ => "",
    };
    bail!("the host answered {status}: {message}{hint}")
}

/// A job id of the command line.
fn job_id(text: &str) -> anyhow::Result<JobId> {
    JobId::new(text).map_err(|problem| anyhow::anyhow!("{text:?} is no job id: {problem}"))
}
