//! Delivers one notice: sign, send, judge the answer, try again.

use std::time::{Duration, SystemTime};

use reqwest::{RequestBuilder, Response, StatusCode};
use serde::Serialize;
use standardwebhooks::{HEADER_WEBHOOK_ID, HEADER_WEBHOOK_SIGNATURE, HEADER_WEBHOOK_TIMESTAMP, Webhook};
use tokio::time::Instant;
use url::Url;

use super::retry::retry_after;
use super::{Kind, Notifier};
use crate::job::outcome::JobError;
use crate::outbound::error::OutboundError;
use crate::setting::Secret;

/// Where a notice goes.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// The operator named it: it may lie anywhere.
    Backend { url: Url, token: Secret },
    /// A caller named it.
    Callback(Url),
}

/// A notice ready to be sent; every attempt sends the same id and the same bytes.
#[derive(Debug)]
pub(super) struct Notice {
    target: Target,
    kind: Kind,
    id: String,
    body: Vec<u8>,
}

/// Why an attempt did not deliver.
pub(super) enum Setback {
    /// The receiver asks not to be told (410).
    Unwanted,
    /// The address may not be reached, now or later.
    Refused(OutboundError),
    Failed {
        problem: String,
        retry_after: Option<Duration>,
    },
}

impl Notice {
    pub(super) fn new(target: Target, kind: Kind, id: String, body: &impl Serialize) -> Result<Self, JobError> {
        let body = serde_json::to_vec(body)
            .map_err(|error| JobError::Internal { problem: format!("a notice could not be written as JSON ({error})") })?;
        Ok(Self { target, kind, id, body })
    }
}

impl Notifier {
    pub(super) async fn deliver(&self, notice: &Notice) -> Result<(), JobError> {
        let end = Instant::now() + self.schedule.total;
        let mut attempt = 1;
        loop {
            let limit = self.schedule.attempt_timeout.min(end.saturating_duration_since(Instant::now()));
            let (problem, asked) = match self.attempt(notice, limit).await {
                Ok(()) => return Ok(()),
                Err(Setback::Unwanted) => {
                    tracing::warn!(
                        webhook_id = notice.id,
                        kind = notice.kind.word(),
                        "the receiver answered 410: not told again"
                    );
                    return Ok(());
                }
                Err(Setback::Refused(error)) => return Err(error.for_field("callback.url")),
                Err(Setback::Failed { problem, retry_after }) => (problem, retry_after),
            };
            let pause = asked.unwrap_or_else(|| self.schedule.pause(attempt, rand::random()));
            if attempt == self.schedule.max_attempts || Instant::now() + pause >= end {
                return Err(notice.undelivered(&problem, attempt, asked));
            }
            tracing::debug!(
                webhook_id = notice.id,
                attempt,
                problem,
                pause_ms = pause.as_millis() as u64,
                "notice not delivered yet"
            );
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    /// Sends the notice once.
    pub(super) async fn attempt(&self, notice: &Notice, limit: Duration) -> Result<(), Setback> {
        let sent = tokio::time::timeout(limit, async { judge(self.send(notice).await?).await }).await;
        sent.unwrap_or_else(|_| {
            let problem = format!("no answer within {} ms", limit.as_millis());
            Err(Setback::Failed { problem, retry_after: None })
        })
    }

    async fn send(&self, notice: &Notice) -> Result<Response, Setback> {
        let method = notice.kind.method();
        match &notice.target {
            Target::Backend { url, token } => {
                let request = self.client.request(method, url.clone()).bearer_auth(token.reveal());
                let sent = self.signed(request, notice)?.send().await;
                sent.map_err(|error| Setback::from(OutboundError::Connection(error.without_url())))
            }
            Target::Callback(url) => {
                let request = self.signed(self.outbound.request(method, url)?, notice)?;
                Ok(self.outbound.send(request).await?)
            }
        }
    }

    fn signed(&self, request: RequestBuilder, notice: &Notice) -> Result<RequestBuilder, Setback> {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let timestamp = since_1970.as_secs() as i64;
        let mut request = request
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .header(HEADER_WEBHOOK_ID, &notice.id)
            .header(HEADER_WEBHOOK_TIMESTAMP, timestamp);
        if let Some(secret) = &self.signing_secret {
            let signature = Webhook::new(secret.reveal())
                .and_then(|webhook| webhook.sign(&notice.id, timestamp, &notice.body))
                .map_err(|error| Setback::Failed { problem: format!("could not be signed ({error})"), retry_after: None })?;
            request = request.header(HEADER_WEBHOOK_SIGNATURE, signature);
        }
        Ok(request.body(notice.body.clone()))
    }
}

impl Notice {
    fn undelivered(&self, problem: &str, attempts: u32, asked: Option<Duration>) -> JobError {
        let receiver = match &self.target {
            Target::Backend { url, .. } | Target::Callback(url) => url.origin().ascii_serialization(),
        };
        let asked = asked.map(|pause| format!(", which asks to wait {} s", pause.as_secs())).unwrap_or_default();
        let tries = if attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts") };
        let problem = format!("{} to {receiver}{asked}: {problem} ({tries})", self.kind.word());
        JobError::Notice { problem, cause: None }
    }
}

impl From<OutboundError> for Setback {
    fn from(error: OutboundError) -> Self {
        match error {
            OutboundError::Refused(_) => Self::Refused(error),
            other => Self::Failed { problem: other.to_string(), retry_after: None },
        }
    }
}

/// Any 2xx is success, everything else is not: a redirect would turn the POST into a GET.
async fn judge(response: Response) -> Result<(), Setback> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    if status == StatusCode::GONE {
        return Err(Setback::Unwanted);
    }
    let retry_after = retry_after(response.headers(), SystemTime::now());
    let advice = if status.is_redirection() { " (redirects are not followed: configure the final address)" } else { "" };
    Err(Setback::Failed { problem: format!("the answer was {status}{advice}{}", first_words(response).await), retry_after })
}

/// The start of an answer's body, for the log.
async fn first_words(mut response: Response) -> String {
    const MOST_BYTES: usize = 200;
    match response.chunk().await {
        Ok(Some(chunk)) if !chunk.is_empty() => {
            let start = String::from_utf8_lossy(&chunk[..chunk.len().min(MOST_BYTES)]);
            format!(" {:?}", start.trim())
        }
        _ => String::new(),
    }
}
