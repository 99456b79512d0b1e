//! Webhooks: notifies the caller how a job goes and how it ended.
//!
//! - `inference.progress` (PATCH) at 0, 25, 50, 75 and 90 percent, best effort; `inference.complete` (POST) and
//!   `inference.failed` (POST) are terminal: tried until a 2xx, and an error if there is none in time.
//! - They go to `{backend_api_url}/api/webhooks/inference/{progress|complete|failed}` with `Authorization: Bearer`; or, all
//!   of them and without that token, to the job's `callback.url`, which must be a public address.
//! - Standard Webhooks headers: `webhook-id` (the same for every delivery of the same notification), `webhook-timestamp`,
//!   `webhook-signature`. See <https://www.standardwebhooks.com>.
//! - `traceparent` (W3C Trace Context), where the job came with one: the very same; where traces are exported, that of the attempt to
//!   send it, in the job's trace.
//! - A redirect is a failure, 410 means that no one wants to hear, `Retry-After` is obeyed.

mod answer;
mod attempts;
mod backend;
pub mod body;
mod delivery;
pub mod failure;
mod multipart;
pub mod once;
pub mod progress;
mod reach;
mod retry;
mod silence;
pub mod tryon;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use standardwebhooks::Webhook;

use self::attempts::Attempts;
use self::backend::Backend;
use self::body::{Complete, Failed};
use self::retry::Schedule;
use self::silence::Silence;
use self::tryon::TryOnService;
use crate::authorities;
use crate::clock::FAR;
use crate::job::measured::WebhookAttempts;
use crate::job::notification::{Kind, Message, Notification, NotificationTarget};
use crate::job::outcome::{JobError, Problem, Record};
use crate::job::trace::Trace;
use crate::job::{Callback, Job};
use crate::outbound::Outbound;
use crate::setting::{Secret, SettingError};

/// Settings of section `notify`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where notifications go that have no `callback.url` of their own; without it such notifications are not sent.
    pub backend_api_url: Option<String>,
    /// What the backend knows us by, 32 characters or more; never sent to a `callback.url`.
    pub internal_api_token: Option<Secret>,
    /// `whsec_` and the base64 form of 24 to 64 random bytes; without it notifications are not signed.
    pub signing_secret: Option<Secret>,
    /// Milliseconds to wait for a connection.
    pub connect_timeout_ms: u64,
    /// Milliseconds for one attempt.
    pub attempt_timeout_ms: u64,
    /// Attempts to deliver a terminal notification before the job is handed back.
    pub max_attempts: u32,
    /// Milliseconds that the first pause lasts at most; each further one can be twice as long.
    pub initial_backoff_ms: u64,
    /// Milliseconds that a pause lasts at most.
    pub max_backoff_ms: u64,
    /// Milliseconds for all attempts and pauses together.
    pub total_ms: u64,
    /// Milliseconds for one progress notification.
    pub progress_timeout_ms: u64,
    /// Under a host: hours after a job's end in which its terminal notifications are sent again and again; then its message is
    /// dead-lettered as `webhook_failed`. More than 0, and at most 8760.
    pub give_up_after_hours: f64,
    /// Under a host: terminal notifications on their way at once.
    pub max_sends: usize,
    /// The same to one receiver, which is a host name with its port.
    pub max_sends_per_receiver: usize,
    /// Under a host: a receiver that has failed as often in a row is left alone for a while.
    pub breaker_failures: u32,
    /// Seconds that it is left alone at most before it is tried with one notification.
    pub breaker_max_seconds: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            backend_api_url: None,
            internal_api_token: None,
            signing_secret: None,
            connect_timeout_ms: 5_000,
            attempt_timeout_ms: 10_000,
            max_attempts: 6,
            initial_backoff_ms: 500,
            max_backoff_ms: 20_000,
            total_ms: 60_000,
            progress_timeout_ms: 1_000,
            give_up_after_hours: 72.0,
            max_sends: 64,
            max_sends_per_receiver: 8,
            breaker_failures: 5,
            breaker_max_seconds: 60,
        }
    }
}

/// Sends the notifications; clones share their connections.
#[derive(Debug, Clone)]
pub struct Notifier {
    backend: Option<Backend>,
    /// For the backend alone, which the operator named; everything else goes through `outbound`.
    client: reqwest::Client,
    outbound: Outbound,
    tryon: Option<TryOnService>,
    signing_secret: Option<Secret>,
    schedule: Schedule,
    progress_timeout: Duration,
    attempts: Arc<Attempts>,
    silence: Arc<Silence>,
}

impl Settings {
    /// How long a terminal notification is sent again and again.
    #[must_use]
    pub fn give_up_after(&self) -> Duration {
        Duration::try_from_secs_f64(self.give_up_after_hours * 3_600.0).unwrap_or(FAR).min(FAR)
    }

    fn check(&self) -> Result<(), SettingError> {
        let wrong = |key: &str, problem: String| Err(SettingError::new(&format!("notify.{key}"), problem));
        // Not a number is neither.
        if !(self.give_up_after_hours > 0.0 && self.give_up_after_hours <= 8_760.0) {
            return wrong(
                "give_up_after_hours",
                format!("must be more than 0 and at most 8760 hours, got {}", self.give_up_after_hours),
            );
        }
        for (key, number) in [
            ("max_sends", self.max_sends as u64),
            ("max_sends_per_receiver", self.max_sends_per_receiver as u64),
            ("breaker_failures", self.breaker_failures.into()),
            ("breaker_max_seconds", self.breaker_max_seconds),
        ] {
            if number == 0 {
                return wrong(key, "must be at least 1".into());
            }
        }
        if let Some(secret) = &self.signing_secret {
            check_signing_secret(secret)?;
        }
        Ok(())
    }
}

impl Notifier {
    /// # Errors
    /// Names the setting that is missing or wrong: an address that is none, a token that is too short, a secret that is none.
    pub fn new(settings: &Settings, outbound: Outbound) -> Result<Self, SettingError> {
        let client = authorities::client()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_millis(settings.connect_timeout_ms))
            .user_agent(concat!("atelier/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| SettingError::new("notify", format!("the HTTP client could not be set up: {error:?}")))?;
        settings.check()?;
        Ok(Self {
            backend: Backend::new(settings)?,
            client,
            outbound,
            tryon: None,
            signing_secret: settings.signing_secret.clone(),
            schedule: Schedule {
                max_attempts: settings.max_attempts.max(1),
                initial_backoff: Duration::from_millis(settings.initial_backoff_ms),
                max_backoff: Duration::from_millis(settings.max_backoff_ms),
                attempt_timeout: Duration::from_millis(settings.attempt_timeout_ms),
                total: Duration::from_millis(settings.total_ms),
            },
            progress_timeout: Duration::from_millis(settings.progress_timeout_ms),
            attempts: Arc::default(),
            silence: Arc::default(),
        })
    }

    /// What was sent since the last call, by any clone.
    #[must_use]
    pub fn take_attempts(&self) -> Vec<WebhookAttempts> {
        self.attempts.take()
    }

    /// Notifies the try-on service as well of what becomes of its jobs.
    #[must_use]
    pub fn with_tryon(self, service: TryOnService) -> Self {
        Self { tryon: Some(service), ..self }
    }

    /// Refuses a job whose `callback.url` could never be reached, before anything is generated for it.
    ///
    /// # Errors
    /// [`JobError::Input`] for the field `callback.url`.
    pub fn check(&self, job: &Job) -> Result<(), JobError> {
        let url = job.callback.as_ref().and_then(|callback| callback.url.as_ref());
        url.map_or(Ok(()), |url| self.outbound.check(url.as_url()).map_err(|error| error.for_field("callback.url")))
    }

    /// The body of the complete notification, without the caller's metadata: those are text. `urls`: one an image of the record, in its
    /// order.
    #[must_use]
    pub fn complete_body(&self, job: &Job, record: &Record, urls: &[String]) -> serde_json::Value {
        let mut body = Complete::new(job, record, urls);
        body.metadata = None;
        serde_json::json!(body)
    }

    /// The notifications that the images are there. `urls`: one an image of the record, in its order.
    ///
    /// # Errors
    /// [`JobError::Internal`] when one could not be written.
    pub fn complete(&self, job: &Job, record: &Record, urls: &[String]) -> Result<Vec<Notification>, JobError> {
        let id = webhook_id(job.output.own_prefix(), &[Kind::Complete.as_str(), job.id.as_str()]);
        let webhook = self.webhook(&job.into(), Kind::Complete, id, &Complete::new(job, record, urls))?;
        let tryon = self.tryon.as_ref().map(|service| service.notifications(&job.into(), Ok(record)));
        Ok(webhook.into_iter().chain(tryon.into_iter().flatten()).collect())
    }

    /// The notifications that there will be no images. `attempt`: which delivery of the job this was, counted from 1. When it is
    /// the `callback.url` that cannot be used, the backend is notified instead. Of a conflict only the webhook's receiver hears, in words
    /// that are not about the job whose id it is.
    ///
    /// # Errors
    /// [`JobError::Internal`] when one could not be written.
    pub fn failed(&self, of: &NotificationTarget<'_>, error: &JobError, attempt: u32) -> Result<Vec<Notification>, JobError> {
        self.failed_as(of, &Problem::from(error), attempt)
    }

    /// As [`Self::failed`], of an error that another process had.
    ///
    /// # Errors
    /// As [`Self::failed`].
    pub fn failed_as(
        &self,
        of: &NotificationTarget<'_>,
        problem: &Problem,
        attempt: u32,
    ) -> Result<Vec<Notification>, JobError> {
        let kind = Kind::Failed.as_str();
        let id = match of.job_id {
            Some(job_id) if problem.is_conflict() => {
                webhook_id(of.prefix, &[kind, job_id.as_str(), &problem.code, of.fingerprint.unwrap_or_default()])
            }
            Some(job_id) => webhook_id(of.prefix, &[kind, job_id.as_str()]),
            None => webhook_id(of.prefix, &[kind, "", &problem.message]),
        };
        let callback = of.callback.filter(|_| problem.field.as_deref() != Some("callback.url"));
        let reachable = NotificationTarget { callback, ..*of };
        let webhook = self.webhook(&reachable, Kind::Failed, id, &Failed::new(of.job_id, of.callback, problem, attempt))?;
        let tryon = self.tryon.as_ref().map(|service| service.notifications(of, Err(problem)));
        Ok(webhook.into_iter().chain(tryon.into_iter().flatten()).collect())
    }

    fn has_listener(&self, callback: Option<&Callback>) -> bool {
        self.backend.is_some() || callback.is_some_and(|callback| callback.url.is_some())
    }

    /// None when no one listens.
    fn webhook(
        &self,
        to: &NotificationTarget<'_>,
        kind: Kind,
        id: String,
        body: &impl Serialize,
    ) -> Result<Option<Notification>, JobError> {
        if !self.has_listener(to.callback) {
            return Ok(None);
        }
        let body = serde_json::to_string(body).map_err(|error| JobError::Internal {
            problem: format!("a notification could not be written as JSON ({error})"),
        })?;
        let message = match to.callback.and_then(|callback| callback.url.clone()) {
            Some(url) => Message::Callback { url, kind, body },
            None => Message::Backend { kind, body },
        };
        Ok(Some(Notification { id, trace: Trace::current().or(to.trace), message }))
    }
}

fn check_signing_secret(secret: &Secret) -> Result<(), SettingError> {
    use base64::Engine as _;
    let encoded = secret.reveal().strip_prefix("whsec_").unwrap_or_default();
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).map_or(0, |key| key.len());
    if (24..=64).contains(&bytes) && Webhook::new(secret.reveal()).is_ok() {
        return Ok(());
    }
    let problem = "must be whsec_ and the base64 form of 24 to 64 bytes; make one with: echo whsec_$(openssl rand -base64 32)";
    Err(SettingError::new("notify.signing_secret", problem))
}

/// The same notification has the same id, however often it is sent: receivers drop what they have seen. `prefix`: where it is not
/// the default one; the ids of all other jobs are those of earlier releases.
fn webhook_id(prefix: Option<&str>, parts: &[&str]) -> String {
    let prefix = prefix.map(|prefix| format!("prefix {prefix}"));
    let parts: Vec<&str> = parts.iter().copied().chain(prefix.as_deref()).collect();
    let hash = base16ct::lower::encode_string(&Sha256::digest(parts.join("\n")));
    format!("msg_{}", &hash[..32])
}
