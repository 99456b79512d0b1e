//! A job's events, from the host's stream.

use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::{Api, said};
use crate::job::JobId;

/// A stream says something every ten seconds.
pub(super) const SILENCE: Duration = Duration::from_secs(45);
/// Before a host that went away is asked again.
const PAUSE: Duration = Duration::from_secs(2);
/// So many tries in a row that brought nothing.
const MAX_TRIES: u32 = 30;

/// One thing that happened.
pub(super) struct JobEvent {
    /// None: nothing that a stream could begin behind.
    id: Option<String>,
    /// Such as `step`.
    pub(super) name: String,
    /// As `GET /jobs/{id}` answers; of a preview, the image with its step.
    pub(super) document: Value,
}

impl JobEvent {
    pub(super) fn is_end(&self) -> bool {
        matches!(self.name.as_str(), "complete" | "failed" | "cancelled")
    }

    pub(super) fn read(text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let document = serde_json::from_str(field("data:")?).ok()?;
        Some(Self { id: field("id:").map(str::to_owned), name: field("event:")?.to_owned(), document })
    }
}

impl Api {
    /// Hands every event of a job to `tell`, also over restarts of the host, until the job has ended; its last document. `previews`: those
    /// of its first image are among them.
    ///
    /// # Errors
    /// When the host knows no such job, or is away for long.
    pub(super) async fn follow(
        &self,
        id: &JobId,
        previews: bool,
        mut tell: impl FnMut(&JobEvent) -> anyhow::Result<()>,
    ) -> anyhow::Result<Value> {
        let mut last = None;
        let mut tries = 0;
        loop {
            let mut stream = match self.stream(id, previews, last.as_deref()).await {
                Ok(Some(response)) => Stream { response, text: Vec::new() },
                Ok(None) => return self.job(id).await,
                Err(error) if tries >= MAX_TRIES || last.is_none() => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "the host is asked again");
                    tries += 1;
                    sleep(PAUSE).await;
                    continue;
                }
            };
            while let Some(event) = stream.next().await {
                tries = 0;
                tell(&event)?;
                if event.is_end() {
                    return Ok(event.document);
                }
                last = event.id.or(last);
            }
            tries += 1;
            if tries >= MAX_TRIES {
                bail!("the host ended the stream {MAX_TRIES} times without a word; GET /jobs/{id} says how the job is");
            }
            sleep(PAUSE).await;
        }
    }

    /// None: the caller has the end already.
    async fn stream(&self, id: &JobId, previews: bool, last: Option<&str>) -> anyhow::Result<Option<Response>> {
        let mut url = self.url(&["jobs", id.as_str(), "events"])?;
        url.set_query(previews.then_some("previews=true"));
        let request = self.request_to(Method::GET, url);
        let request = match last {
            Some(last) => request.header("last-event-id", last),
            None => request,
        };
        let response = timeout(SILENCE, self.send(request)).await.context("the host does not answer")??;
        match response.status() {
            StatusCode::NO_CONTENT => Ok(None),
            StatusCode::OK => Ok(Some(response)),
            _ => said(response).await.map(|_| None),
        }
    }
}

struct Stream {
    response: Response,
    text: Vec<u8>,
}

impl Stream {
    /// None where the stream has ended, broke off or fell silent.
    async fn next(&mut self) -> Option<JobEvent> {
        loop {
            if let Some(end) = self.text.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.text.drain(..end + 2).collect();
                match JobEvent::read(&String::from_utf8_lossy(&event)) {
                    Some(event) => return Some(event),
                    // A comment, which only says that the host is there.
                    None => continue,
                }
            }
            let chunk = timeout(SILENCE, self.response.chunk()).await.ok()?.ok()??;
            self.text.extend_from_slice(&chunk);
        }
    }
}
