//! ECS task protection: while a job runs, neither scale-in nor a deployment ends this task.
//!
//! - `PUT {ECS_AGENT_URI}/task-protection/v1/state` with `{"ProtectionEnabled":true,"ExpiresInMinutes":60}` when the first job
//!   starts, again every 20 minutes, and with `false` when none has run for a moment.
//! - The answer holds `protection`, or `failure` or `error` with the reason. The task's role needs `ecs:UpdateTaskProtection`.
//! - A task that cannot be protected works all the same: the log says so once, and once when it changes.
//!
//! See <https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-scale-in-protection-endpoint.html>.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;
use url::Url;

use super::{client, problem};
use crate::host::job_service::StatusSnapshot;
use crate::setting::{SettingError, check_address};

/// Settings of section `host.protection`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Address of the ECS agent, which ECS itself puts into the environment; without it there is nothing to protect.
    pub ecs_agent_uri: Option<String>,
    /// Minutes that the protection lasts unless it is renewed, 1 to 2880.
    pub expires_minutes: u32,
    /// Milliseconds until it is renewed; less than `expires_minutes`.
    pub renew_ms: u64,
    /// Milliseconds until a failed request is tried again.
    pub pause_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { ecs_agent_uri: None, expires_minutes: 60, renew_ms: 1_200_000, pause_ms: 30_000 }
    }
}

/// Jobs that follow each other leave a gap of milliseconds; the agent need not hear of it.
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// AWS asks for 5 s or more.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

pub struct Protection {
    client: reqwest::Client,
    url: Url,
    expires_minutes: u32,
    renew_after: Duration,
    pause: Duration,
    /// Whether the last request failed.
    failing: bool,
}

impl Protection {
    /// None outside ECS.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn new(settings: &Settings) -> Result<Option<Self>, SettingError> {
        const SETTING: &str = "host.protection.ecs_agent_uri";
        if !(1..=2_880).contains(&settings.expires_minutes) {
            let problem = format!("must be 1 to 2880 minutes (ECS's limit), got {}", settings.expires_minutes);
            return Err(SettingError::new("host.protection.expires_minutes", problem));
        }
        if settings.renew_ms >= u64::from(settings.expires_minutes) * 60_000 {
            let problem =
                format!("must be less than expires_minutes ({} minutes), got {}", settings.expires_minutes, settings.renew_ms);
            return Err(SettingError::new("host.protection.renew_ms", problem));
        }
        check_address(SETTING, settings.ecs_agent_uri.as_deref())?;
        let Some(base) = &settings.ecs_agent_uri else { return Ok(None) };
        let Ok(url) = Url::parse(&format!("{}/task-protection/v1/state", base.trim_end_matches('/'))) else { return Ok(None) };
        Ok(Some(Self {
            client: client(SETTING, ANSWER_WITHIN)?,
            url,
            expires_minutes: settings.expires_minutes,
            renew_after: Duration::from_millis(settings.renew_ms),
            pause: Duration::from_millis(settings.pause_ms),
            failing: false,
        }))
    }

    /// Keeps the protection in step with the jobs until the host is gone.
    pub async fn watch(mut self, mut snapshot: watch::Receiver<StatusSnapshot>) {
        while snapshot.wait_for(busy).await.is_ok() {
            loop {
                let pause = if self.request(true).await { self.renew_after } else { self.pause };
                if timeout(pause, idle(&mut snapshot)).await.is_ok() {
                    break;
                }
            }
            while !self.request(false).await {
                if timeout(self.pause, snapshot.wait_for(busy)).await.is_ok() {
                    break;
                }
            }
            // What is left of a host that is gone may still look busy.
            if snapshot.has_changed().is_err() {
                return;
            }
        }
    }

    /// Whether the agent took it.
    async fn request(&mut self, enabled: bool) -> bool {
        let result = self.put(enabled).await;
        match &result {
            Ok(()) if self.failing => tracing::info!(enabled, "ECS task protection works again"),
            Ok(()) => tracing::debug!(enabled, "ECS task protection set"),
            Err(problem) if !self.failing => {
                tracing::warn!(
                    enabled,
                    problem,
                    "ECS task protection was not set; jobs run all the same, tried again silently"
                );
            }
            Err(problem) => tracing::debug!(enabled, problem, "ECS task protection was not set"),
        }
        self.failing = result.is_err();
        result.is_ok()
    }

    async fn put(&self, enabled: bool) -> Result<(), String> {
        let mut body = json!({ "ProtectionEnabled": enabled });
        if enabled {
            body["ExpiresInMinutes"] = self.expires_minutes.into();
        }
        let sent = self.client.put(self.url.clone()).json(&body).send().await.map_err(|error| problem(&error))?;
        let status = sent.status();
        let answer: Value = sent.json().await.unwrap_or_default();
        // The agent reports what ECS refused with a 200 as well.
        if status.is_success() && answer["protection"].is_object() {
            return Ok(());
        }
        let words =
            ["error", "failure"].iter().flat_map(|part| ["Code", "Reason", "Message", "Detail"].map(|key| &answer[part][key]));
        let words: Vec<_> = words.filter_map(Value::as_str).collect();
        Err(format!("the ECS agent answered {status} {}", words.join(": ")))
    }
}

fn busy(snapshot: &StatusSnapshot) -> bool {
    !snapshot.running.is_empty()
}

/// Waits until nothing has run for a moment, or the host is gone.
async fn idle(snapshot: &mut watch::Receiver<StatusSnapshot>) {
    while snapshot.wait_for(|snapshot| !busy(snapshot)).await.is_ok() {
        if !matches!(timeout(IDLE_AFTER, snapshot.wait_for(busy)).await, Ok(Ok(_))) {
            return;
        }
    }
}
