//! A service of the operator's that is asked by POST with JSON, and asked again while it is away.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, StatusCode, Url};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use crate::authorities;
use crate::clock::later;
use crate::setting::{Secret, SettingError, check_address};
use crate::shown;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Reads an answer, which is a JSON object: serde would take the elements of a list for the fields.
///
/// # Errors
/// In words, when it is something else.
pub fn object<T: DeserializeOwned>(answer: &[u8]) -> Result<T, String> {
    if !answer.trim_ascii_start().starts_with(b"{") {
        return Err("it is no object".to_owned());
    }
    serde_json::from_slice(answer).map_err(|error| shown::text(&error.to_string()))
}

/// Where it is, and how long it has for an answer.
#[derive(Debug, Clone, Copy)]
pub struct Address<'a> {
    pub url: &'a str,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<&'a Secret>,
    /// Of one request.
    pub timeout_ms: u64,
    /// It is asked again for so long.
    pub max_wait_ms: u64,
    /// Of one answer.
    pub max_answer_bytes: u64,
}

/// Who is asked.
#[derive(Debug, Clone)]
pub struct Service {
    /// What messages call it.
    name: String,
    client: Client,
    url: Url,
    token: Option<Secret>,
    max_wait: Duration,
    max_answer_bytes: u64,
}

/// Why there is no answer that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoAnswer {
    /// No one is there, or says that now is not the time: nothing in time, 408, 425, 429, 5xx.
    Away(String),
    /// Someone answered, and not as the service must.
    Wrong(String),
}

impl NoAnswer {
    /// It in words.
    #[must_use]
    pub fn problem(&self) -> &str {
        match self {
            Self::Away(problem) | Self::Wrong(problem) => problem,
        }
    }
}

impl Service {
    /// `section`: the settings that the address is from. `name`: what messages call the service.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn new(section: &str, name: &str, address: Address<'_>) -> Result<Self, SettingError> {
        let Address { url, token, timeout_ms, max_wait_ms, max_answer_bytes } = address;
        let url_key = format!("{section}.url");
        check_address(&url_key, Some(url))?;
        if timeout_ms == 0 {
            return Err(SettingError::new(&format!("{section}.timeout_ms"), "must be at least 1"));
        }
        let url = url.parse().map_err(|error| SettingError::new(&url_key, format!("is no address: {error}")))?;
        let client = authorities::client()
            .timeout(Duration::from_millis(timeout_ms))
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("atelier/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| SettingError::new(section, format!("its client could not be set up: {error:?}")))?;
        let max_wait = Duration::from_millis(max_wait_ms);
        Ok(Self { name: name.to_owned(), client, url, token: token.cloned(), max_wait, max_answer_bytes })
    }

    /// Asks until there is an answer that `read` takes, for as long as the settings say. `is_waited_out`: what may be otherwise at the
    /// next time.
    ///
    /// # Errors
    /// Why there is none, the last time.
    pub async fn ask<T>(
        &self,
        question: Vec<u8>,
        read: impl Fn(Vec<u8>) -> Result<T, String>,
        is_waited_out: impl Fn(&NoAnswer) -> bool,
    ) -> Result<T, NoAnswer> {
        let question = Bytes::from(question);
        let until = later(Instant::now(), self.max_wait);
        let mut pause = FIRST_PAUSE;
        loop {
            let answer = self.ask_once(question.clone()).await.and_then(|body| read(body).map_err(NoAnswer::Wrong));
            let no_answer = match answer {
                Ok(answer) => return Ok(answer),
                Err(no_answer) => no_answer,
            };
            if !is_waited_out(&no_answer) || later(Instant::now(), pause) >= until {
                return Err(no_answer);
            }
            let pause_ms = pause.as_millis() as u64;
            tracing::warn!(
                service = self.name,
                problem = no_answer.problem(),
                pause_ms,
                "a service gave no answer; it is asked again"
            );
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    async fn ask_once(&self, question: Bytes) -> Result<Vec<u8>, NoAnswer> {
        let mut request = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/json").body(question);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.reveal());
        }
        let name = &self.name;
        let failed = |error: reqwest::Error| {
            let what = if error.is_timeout() { "did not answer in time" } else { "could not be reached" };
            let host = self.url.host_str().unwrap_or_default();
            // What reqwest says itself repeats the address, which may have a secret in it.
            let cause = shown::deepest_cause(&error);
            let cause = if cause.is::<reqwest::Error>() { String::new() } else { format!(": {cause}") };
            NoAnswer::Away(format!("{name} ({host}) {what}{cause}"))
        };
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        if status != StatusCode::OK {
            let problem = format!("{name} answered {status}, and must answer 200");
            return Err(if is_of_the_moment(status) { NoAnswer::Away(problem) } else { NoAnswer::Wrong(problem) });
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > self.max_answer_bytes {
                return Err(NoAnswer::Wrong(format!("{name} answered more than {} bytes", self.max_answer_bytes)));
            }
        }
        Ok(body)
    }
}

fn is_of_the_moment(status: StatusCode) -> bool {
    const TOO_EARLY: u16 = 425;
    let is_too_soon = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    status.is_server_error() || is_too_soon || status.as_u16() == TOO_EARLY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_cannot_do_now_is_told_from_what_it_never_will() {
        let of_the_moment = [408, 425, 429, 500, 502, 503, 504, 599];
        for code in 300..600 {
            let status = StatusCode::from_u16(code).unwrap();
            assert_eq!(is_of_the_moment(status), code >= 500 || of_the_moment.contains(&code), "{code}");
        }
    }
}
