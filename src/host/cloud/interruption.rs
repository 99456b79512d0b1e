//! EC2 spot interruption: two minutes before the machine is taken away, its metadata say so, and the host drains.
//!
//! - `GET {endpoint}/latest/meta-data/spot/instance-action` every five seconds: 404 until there is a notice, then
//!   `{"action": "terminate", "time": "2026-11-25T08:22:00Z"}`.
//! - `IMDSv2`: each request carries a token, which `PUT {endpoint}/latest/api/token` gives for six hours.
//! - ECS and Kubernetes send SIGTERM by themselves; this is for a host that runs on the machine as it is.
//!
//! See <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html>.

use std::time::Duration;

use reqwest::StatusCode;
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};

use super::{client, problem};
use crate::setting::{SettingError, check_address};

const LINK_LOCAL: &str = "http://169.254.169.254";
/// On EC2 the metadata answer in milliseconds; elsewhere nothing may answer at all.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
const TOKEN_SECONDS: &str = "21600";

/// Settings of section `host.interruption`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Address of the instance metadata; without it, EC2's own is tried once at start and used where it answers.
    pub endpoint: Option<String>,
    /// `true`: EC2's own is not tried, as the AWS SDKs understand `AWS_EC2_METADATA_DISABLED`.
    pub metadata_disabled: Option<String>,
    /// Milliseconds between two looks.
    pub poll_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { endpoint: None, metadata_disabled: None, poll_ms: 5_000 }
    }
}

/// What is going to happen to the machine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Notice {
    /// `terminate`, `stop` or `hibernate`.
    pub action: String,
    /// When, in UTC: `2026-11-25T08:22:00Z`. Hibernation begins at once and has none.
    #[serde(default)]
    pub time: Option<String>,
}

/// The instance metadata of this machine.
#[derive(Debug)]
pub struct Interruption {
    client: reqwest::Client,
    endpoint: String,
    every: Duration,
    token: Option<String>,
}

impl Interruption {
    /// None where there is no instance metadata; takes a second at most.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub async fn find(settings: &Settings) -> Result<Option<Self>, SettingError> {
        const SETTING: &str = "host.interruption.endpoint";
        check_address(SETTING, settings.endpoint.as_deref())?;
        let disabled = settings.metadata_disabled.as_deref().is_some_and(|word| word.eq_ignore_ascii_case("true"));
        if settings.endpoint.is_none() && disabled {
            return Ok(None);
        }
        let endpoint = settings.endpoint.as_deref().unwrap_or(LINK_LOCAL).trim_end_matches('/').to_owned();
        let every = Duration::from_millis(settings.poll_ms.max(1));
        let mut found = Self { client: client(SETTING, ANSWER_WITHIN)?, endpoint, every, token: None };
        found.token = found.fetch_token().await.ok();
        if settings.endpoint.is_none() && found.token.is_none() {
            return Ok(None);
        }
        tracing::info!(endpoint = found.endpoint, "the instance metadata are watched for an interruption");
        Ok(Some(found))
    }

    /// Waits for the notice, for ever where none comes.
    pub async fn notice(mut self) -> Notice {
        let mut looks = interval(self.every);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            looks.tick().await;
            let result = self.query().await;
            match &result {
                Ok(Some(notice)) => return notice.clone(),
                Ok(None) if failing => tracing::info!("the instance metadata answer again"),
                Err(problem) if !failing => {
                    tracing::warn!(
                        endpoint = self.endpoint,
                        problem,
                        "the instance metadata cannot be read; an interruption would come without notice"
                    );
                }
                _ => {}
            }
            failing = result.is_err();
        }
    }

    async fn query(&mut self) -> Result<Option<Notice>, String> {
        if let Some(token) = self.token.take()
            && let Some(seen) = self.query_with(token).await?
        {
            return Ok(seen);
        }
        let token = self.fetch_token().await?;
        self.query_with(token).await?.ok_or_else(|| "a new token was refused (401)".into())
    }

    /// None when the token has run out.
    async fn query_with(&mut self, token: String) -> Result<Option<Option<Notice>>, String> {
        let get = self.client.get(format!("{}/latest/meta-data/spot/instance-action", self.endpoint));
        let answer = get.header("x-aws-ec2-metadata-token", &token).send().await.map_err(|error| problem(&error))?;
        match answer.status() {
            StatusCode::UNAUTHORIZED => Ok(None),
            StatusCode::NOT_FOUND => {
                self.token = Some(token);
                Ok(Some(None))
            }
            StatusCode::OK => answer.json().await.map(|notice| Some(Some(notice))).map_err(|error| problem(&error)),
            status => Err(format!("the answer was {status}")),
        }
    }

    async fn fetch_token(&self) -> Result<String, String> {
        let put = self.client.put(format!("{}/latest/api/token", self.endpoint));
        let put = put.header("x-aws-ec2-metadata-token-ttl-seconds", TOKEN_SECONDS);
        let answer = put.send().await.and_then(reqwest::Response::error_for_status).map_err(|error| problem(&error))?;
        answer.text().await.map_err(|error| problem(&error))
    }
}
