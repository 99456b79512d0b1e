//! Errors as HTTP says them: always JSON, `{"error": {"code", "message", "field"?}}`, with what is allowed or to be done.

use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::events;
use crate::events::auth::Stranger;
use crate::host::acceptance::NotAccepted;
use crate::host::source::SourceError;
use crate::job::outcome::JobError;
use crate::job::request::PROBLEM_MAX_CHARS;
use crate::shown;

/// Seconds after which a caller who was turned away may ask again.
pub(super) const RETRY_AFTER_S: u32 = 5;

/// Travels with the answer of a refused request, for those who say it in another shape.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    pub(super) body: Value,
}

/// A request that is answered with an error.
#[derive(Debug)]
pub(super) struct Problem(events::http::Response);

impl Problem {
    /// `code`: a stable word for programs.
    pub(super) fn new(status: StatusCode, code: &str, message: &str) -> Self {
        Self(events::http::Response::problem(status.as_u16(), code, message))
    }

    /// A bad request, by the field at fault.
    pub(super) fn invalid(field: &str, problem: impl Into<String>) -> Self {
        // Either may be a caller's own text, at any length.
        JobError::Invalid { field: shown::name(field), problem: shown::clipped(problem.into(), PROBLEM_MAX_CHARS) }.into()
    }

    /// The job is known and not at its end: the caller may ask again.
    pub(super) fn in_progress(message: &str) -> Self {
        Self::new(StatusCode::CONFLICT, "in_progress", message).retry()
    }

    /// There is no room for it now; in the words of the service that is replaced, and in ours.
    pub(super) fn busy(message: &str) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", message)
            .with("status", "busy")
            .with("message", message)
            .with("retry_after", RETRY_AFTER_S)
            .retry()
    }

    /// The caller may try the same again.
    pub(super) fn unavailable(code: &str, message: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message).retry()
    }

    pub(super) fn too_large(message: &str) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    pub(super) fn field(mut self, field: &str) -> Self {
        self.0.body["error"]["field"] = field.into();
        self
    }

    pub(super) fn retry(mut self) -> Self {
        self.0.retry_after_s = Some(RETRY_AFTER_S);
        self
    }

    pub(super) fn is_not_found(&self) -> bool {
        self.0.status == StatusCode::NOT_FOUND.as_u16()
    }

    /// What goes out, for a check that answers no one.
    pub(super) fn into_answer(self) -> events::http::Response {
        self.0
    }

    /// With one more member next to `error`.
    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.body[name] = value.into();
        self
    }
}

impl From<events::http::Response> for Problem {
    fn from(response: events::http::Response) -> Self {
        Self(response)
    }
}

impl From<JobError> for Problem {
    fn from(error: JobError) -> Self {
        if !matches!(error, JobError::Invalid { .. } | JobError::Input { .. }) {
            tracing::warn!(code = error.code(), error = %error, "request failed");
        }
        let mut response = events::http::Response::failed(None, &error);
        response.body = json!({ "error": response.body["error"] });
        Self(response)
    }
}

impl From<Stranger> for Problem {
    fn from(stranger: Stranger) -> Self {
        Self(events::http::Response::stranger(stranger))
    }
}

impl From<SourceError> for Problem {
    fn from(error: SourceError) -> Self {
        if matches!(error, SourceError::TooLarge { .. }) {
            return Self::too_large(&error.to_string());
        }
        tracing::error!(error = %error, "the queue does not do what it was asked");
        Self::unavailable("queue_unavailable", &error.to_string())
    }
}

impl From<NotAccepted> for Problem {
    fn from(reason: NotAccepted) -> Self {
        let message = reason.to_string();
        match reason {
            NotAccepted::Conflict(id) => JobError::Conflict { job_id: id }.into(),
            NotAccepted::InProgress(_) => Self::in_progress(&message),
            NotAccepted::Busy | NotAccepted::NoHandlerFree | NotAccepted::TenantBusy { .. } => Self::busy(&message),
            NotAccepted::Draining => Self::unavailable("shutting_down", &message),
            NotAccepted::Queue(error) => error.into(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self(events::http::Response { status, body, retry_after_s, .. }) = self;
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let refused = Refused { body: body.clone() };
        let mut response = (status, Json(body)).into_response();
        response.extensions_mut().insert(refused);
        if let Some(seconds) = retry_after_s {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, axum::http::HeaderValue::from_static("Bearer"));
        }
        response
    }
}

pub(super) async fn not_found(uri: Uri) -> Problem {
    let page = if uri.path() == "/" { " (the page is switched on by server.page: true)" } else { "" };
    let message = format!("there is nothing at {}{page}; GET /openapi.json says what there is", shown::name(uri.path()));
    Problem::new(StatusCode::NOT_FOUND, "not_found", &message)
}

/// The header `Allow` is set by the router.
pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let message = format!("{} does not take {method}; the header Allow says what it takes", shown::name(uri.path()));
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", &message)
}
