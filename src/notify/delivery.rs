//! Delivers one notification: sign, send, judge the answer, try again.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use standardwebhooks::{HEADER_WEBHOOK_ID, HEADER_WEBHOOK_SIGNATURE, HEADER_WEBHOOK_TIMESTAMP, Webhook};
use tokio::time::Instant;
use tracing::Instrument as _;
use url::Url;

use super::failure::{DeliveryError, Undelivered};
use super::multipart::Form;
use super::once::OnceError;
use super::retry::retry_after;
use super::{Notifier, answer};
use crate::clock::later;
use crate::job::notification::{Kind, Message, Notification};
use crate::job::outcome::{JobError, RetryPolicy};
use crate::job::trace::{self, TRACEPARENT, Trace};
use crate::outbound::error::OutboundError;
use crate::setting::Secret;

/// A notification in its envelope; every attempt sends the same id and the same bytes.
#[derive(Debug)]
pub(super) struct DeliveryRequest<'a> {
    notification: &'a Notification,
    method: Method,
    url: Url,
    way: Way,
    content_type: String,
    body: Bytes,
}

/// Where a notification goes.
pub(super) struct Address {
    method: Method,
    pub(super) url: Url,
    way: Way,
}

/// How it goes. Only an address that a caller named goes through the guarded client, and never with a token.
#[derive(Debug)]
enum Way {
    Bearer(Secret),
    InternalAuth(Secret),
    Plain,
    Guarded,
}

impl Way {
    /// What the receiver knows us by, and may repeat in its answer.
    fn token(&self) -> Option<&Secret> {
        match self {
            Self::Bearer(token) | Self::InternalAuth(token) => Some(token),
            Self::Plain | Self::Guarded => None,
        }
    }
}

impl Notifier {
    /// Delivers a notification, here or handed over from another process with the same configuration.
    ///
    /// # Errors
    /// [`JobError::Notification`] when it could not be delivered now, [`JobError::Storage`] when an image of it could not be read;
    /// [`JobError::Input`] when `callback.url` may not be reached.
    pub async fn send(&self, notification: &Notification) -> Result<(), JobError> {
        if notification.is_best_effort() {
            // It hears of a job once, or not at all.
            return match self.send_once(notification).await {
                Err(OnceError::NotWritten(error)) => Err(error),
                Err(OnceError::Undelivered(Undelivered { problem, .. })) => {
                    tracing::warn!(
                        webhook_id = notification.id,
                        kind = notification.as_str(),
                        problem,
                        "notification not delivered"
                    );
                    Ok(())
                }
                Ok(()) | Err(OnceError::Refused(_)) => Ok(()),
            };
        }
        self.deliver(&self.delivery_request(notification).await?).await
    }

    /// Delivers all of them, whatever becomes of each.
    ///
    /// # Errors
    /// The first one that [`Self::send`] had.
    pub async fn send_all(&self, notifications: &[Notification]) -> Result<(), JobError> {
        let mut first = Ok(());
        for notification in notifications {
            let sent = self.send(notification).await;
            first = first.and(sent);
        }
        first
    }

    /// As [`Self::send_all`], with the backend in the place of a `callback.url` that may not be reached: how the job ended does not
    /// change because its caller named an address that is of no use.
    ///
    /// # Errors
    /// The first one that [`Self::send`] had, but for the refusal of a `callback.url`.
    pub async fn send_all_or_backend(&self, notifications: &[Notification]) -> Result<(), JobError> {
        let mut first = Ok(());
        for notification in notifications {
            let sent = match self.send(notification).await {
                Err(refused) if refused.retry_policy() == RetryPolicy::Terminal => {
                    self.send_to_backend(notification, &refused).await
                }
                sent => sent,
            };
            first = first.and(sent);
        }
        first
    }

    async fn send_to_backend(&self, notification: &Notification, refused: &JobError) -> Result<(), JobError> {
        match self.backend_instead(notification, refused) {
            Some(notification) => self.send(&notification).await,
            None => Ok(()),
        }
    }

    /// Whether somebody may be asked to take it, as far as its address alone says.
    #[must_use]
    pub fn can_reach(&self, notification: &Notification) -> bool {
        match &notification.message {
            Message::Callback { url, .. } => self.backend.is_some() || self.outbound.check(url.as_url()).is_ok(),
            Message::Backend { .. } | Message::AssetService(_) | Message::LoadBalancer { .. } => true,
        }
    }

    /// The notification for the backend, where a `callback.url` may not be reached; none where nobody can be notified.
    #[must_use]
    pub fn backend_instead(&self, notification: &Notification, refused: &JobError) -> Option<Notification> {
        let Notification { id, trace, message } = notification;
        let (Message::Callback { kind, body, .. }, Some(_)) = (message, &self.backend) else {
            tracing::error!(webhook_id = id, error = %refused, "no one can be notified: the address is refused, and no backend is set");
            return None;
        };
        tracing::warn!(webhook_id = id, error = %refused, "the backend is notified instead");
        Some(Notification { id: id.clone(), trace: *trace, message: Message::Backend { kind: *kind, body: body.clone() } })
    }

    async fn deliver(&self, delivery_request: &DeliveryRequest<'_>) -> Result<(), JobError> {
        let notification = delivery_request.notification;
        let end = later(Instant::now(), self.schedule.total);
        let mut backoff = self.schedule.backoff();
        let mut attempt = 1;
        loop {
            let limit = self.schedule.attempt_timeout.min(end.saturating_duration_since(Instant::now()));
            let (problem, asked) = match self.attempt(delivery_request, limit).await {
                Ok(()) => return Ok(()),
                Err(DeliveryError::Unwanted) => {
                    tracing::warn!(
                        webhook_id = notification.id,
                        kind = notification.as_str(),
                        "the receiver answered 410: not notified again"
                    );
                    return Ok(());
                }
                Err(DeliveryError::Refused(error)) => return Err(error.for_field("callback.url")),
                Err(DeliveryError::Failed(undelivered)) => (undelivered.problem, undelivered.retry_after),
            };
            let pause = asked.unwrap_or_else(|| backoff.next_pause());
            if attempt == self.schedule.max_attempts || later(Instant::now(), pause) >= end {
                return Err(delivery_request.undelivered(&problem, attempt, asked));
            }
            tracing::debug!(
                webhook_id = notification.id,
                attempt,
                problem,
                pause_ms = pause.as_millis() as u64,
                "notification not delivered yet"
            );
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    /// Sends it once.
    pub(super) async fn attempt(&self, delivery_request: &DeliveryRequest<'_>, limit: Duration) -> Result<(), DeliveryError> {
        let notification = delivery_request.notification;
        let host = delivery_request.url.host_str().unwrap_or_default();
        let span = trace::webhook_span(notification.as_str(), &notification.id, host, notification.trace);
        let sending = async { delivery_request.judge(self.post(delivery_request).await?).await }.instrument(span.clone());
        let sent = tokio::time::timeout(limit, sending).await;
        let sent = sent.unwrap_or_else(|_| {
            Err(DeliveryError::Failed(Undelivered::no_answer(format!("no answer within {} ms", limit.as_millis()))))
        });
        if sent.is_err() {
            trace::fail(&span, "undelivered");
        }
        self.attempts.count(notification.as_str(), sent.is_ok());
        sent
    }

    async fn post(&self, delivery_request: &DeliveryRequest<'_>) -> Result<Response, DeliveryError> {
        let method = delivery_request.method.clone();
        let url = &delivery_request.url;
        let request = match &delivery_request.way {
            Way::Guarded => {
                let request = self.signed(self.outbound.request(method, url)?, delivery_request)?;
                return Ok(self.outbound.send(request).await?);
            }
            Way::Plain => self.client.request(method, url.clone()),
            Way::Bearer(token) => self.client.request(method, url.clone()).bearer_auth(token.reveal()),
            Way::InternalAuth(token) => self.client.request(method, url.clone()).header("x-internal-auth", token.reveal()),
        };
        let sent = self.signed(request, delivery_request)?.send().await;
        sent.map_err(|error| DeliveryError::from(OutboundError::Connection(error.without_url())))
    }

    fn signed(&self, request: RequestBuilder, delivery_request: &DeliveryRequest<'_>) -> Result<RequestBuilder, DeliveryError> {
        let id = &delivery_request.notification.id;
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let timestamp = since_1970.as_secs() as i64;
        let mut request = request
            .header(reqwest::header::CONTENT_TYPE, &delivery_request.content_type)
            .header(HEADER_WEBHOOK_ID, id)
            .header(HEADER_WEBHOOK_TIMESTAMP, timestamp);
        if let Some(trace) = Trace::current().or(delivery_request.notification.trace) {
            request = request.header(TRACEPARENT, trace.to_string());
        }
        // Standard Webhooks signs texts; the asset service, which gets an image, knows us by its token.
        let signable = !matches!(delivery_request.way, Way::InternalAuth(_));
        if let Some(secret) = self.signing_secret.as_ref().filter(|_| signable) {
            let signature = Webhook::new(secret.reveal())
                .and_then(|webhook| webhook.sign(id, timestamp, &delivery_request.body))
                .map_err(|error| DeliveryError::Failed(Undelivered::not_sent(format!("could not be signed ({error})"))))?;
            request = request.header(HEADER_WEBHOOK_SIGNATURE, signature);
        }
        Ok(request.body(delivery_request.body.clone()))
    }

    /// Puts the notification into its envelope, with this process's own addresses and tokens.
    pub(super) async fn delivery_request<'a>(&self, notification: &'a Notification) -> Result<DeliveryRequest<'a>, JobError> {
        let Address { method, url, way } = self.address(notification)?;
        let Form { content_type, body } = match (&notification.message, &self.tryon) {
            (Message::AssetService(result), Some(tryon)) => tryon.form(result).await?,
            (Message::AssetService(_), None) => return Err(unset(notification, "asset_service.callback_url")),
            (Message::Callback { body, .. } | Message::Backend { body, .. } | Message::LoadBalancer { body }, _) => {
                Form { content_type: "application/json".into(), body: Bytes::copy_from_slice(body.as_bytes()) }
            }
        };
        Ok(DeliveryRequest { notification, method, url, way, content_type, body })
    }

    /// Where this process sends the notification.
    ///
    /// # Errors
    /// [`JobError::Notification`] where its configuration has no address for it.
    pub(super) fn address(&self, notification: &Notification) -> Result<Address, JobError> {
        let unset = |setting: &str| unset(notification, setting);
        let tryon = self.tryon.as_ref();
        Ok(match &notification.message {
            Message::Callback { url, kind, .. } => {
                Address { method: method(*kind), url: url.as_url().clone(), way: Way::Guarded }
            }
            Message::Backend { kind, .. } => {
                let backend = self.backend.as_ref().ok_or_else(|| unset("notify.backend_api_url"))?;
                let url = backend.base.join(&format!("api/webhooks/inference/{}", kind.as_str()));
                let url = url.map_err(|_| unset("notify.backend_api_url"))?;
                Address { method: method(*kind), url, way: Way::Bearer(backend.token.clone()) }
            }
            Message::LoadBalancer { .. } => {
                let url = tryon.and_then(|tryon| tryon.load_balancer.clone()).ok_or_else(|| unset("load_balancer.url"))?;
                Address { method: Method::POST, url, way: Way::Plain }
            }
            Message::AssetService(_) => {
                let target = tryon.and_then(|tryon| tryon.asset_service.clone());
                let (url, token) = target.ok_or_else(|| unset("asset_service.callback_url"))?;
                Address { method: Method::POST, url, way: Way::InternalAuth(token) }
            }
        })
    }
}

fn unset(notification: &Notification, setting: &str) -> JobError {
    let problem = format!("{}: {setting} is not set where it is to be sent", notification.as_str());
    JobError::Notification { problem, cause: None }
}

fn method(kind: Kind) -> Method {
    match kind {
        Kind::Progress => Method::PATCH,
        Kind::Complete | Kind::Failed => Method::POST,
    }
}

impl DeliveryRequest<'_> {
    /// Any 2xx is success, everything else is not: a redirect would turn the POST into a GET.
    async fn judge(&self, response: Response) -> Result<(), DeliveryError> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        // A rule of Standard Webhooks, which the asset service never agreed to.
        if status == StatusCode::GONE && !matches!(self.notification.message, Message::AssetService(_)) {
            return Err(DeliveryError::Unwanted);
        }
        let retry_after = retry_after(response.headers(), SystemTime::now());
        let advice = if status.is_redirection() { " (redirects are not followed: configure the final address)" } else { "" };
        Err(DeliveryError::Failed(Undelivered {
            problem: format!("the answer was {status}{advice}{}", answer::beginning(response, self.way.token()).await),
            retry_after,
            is_down: status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS,
        }))
    }

    fn undelivered(&self, problem: &str, attempts: u32, asked: Option<Duration>) -> JobError {
        let receiver = self.url.origin().ascii_serialization();
        let asked = asked.map(|pause| format!(", which asks to wait {} s", pause.as_secs())).unwrap_or_default();
        let tries = if attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts") };
        let problem = format!("{} to {receiver}{asked}: {problem} ({tries})", self.notification.as_str());
        JobError::Notification { problem, cause: None }
    }
}
