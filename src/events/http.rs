//! HTTP through the platform: API Gateway (both payload formats), function URLs and load balancers, one request in, one response out.
//!
//! Of an event only what a request needs is read, and each part may be null or absent.

use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::auth::{Auth, Stranger};
use crate::job::metadata::Metadata;
use crate::job::outcome::{JobError, Outcome, Problem, RetryPolicy};
use crate::job::trace::{TRACEPARENT, Trace};

/// A request that waits for its response.
#[derive(Debug)]
pub struct Exchange {
    method: String,
    path: String,
    headers: HeaderMap,
    /// Or why it cannot be read.
    body: Result<Vec<u8>, String>,
    platform: Platform,
}

/// Who sent the request, and so which shape the response has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Platform {
    /// `requestContext.http`: API Gateway's payload format 2.0, function URLs.
    V2,
    /// `requestContext` and `httpMethod`: API Gateway's payload format 1.0.
    V1,
    /// `requestContext.elb`.
    LoadBalancer,
}

impl Platform {
    fn of(payload: &Value) -> Option<Self> {
        let context = &payload["requestContext"];
        if context["http"].is_object() {
            Some(Self::V2)
        } else if context["elb"].is_object() {
            Some(Self::LoadBalancer)
        } else if context.is_object() && payload["httpMethod"].is_string() {
            Some(Self::V1)
        } else {
            None
        }
    }
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    /// Generate the job in the body.
    Generate(Vec<u8>),
    /// Is anyone there?
    Health,
}

/// A response before it is put into the platform's shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    pub status: u16,
    pub body: Value,
    /// One more member of the body, which a [`Value`] could not hold as it is.
    pub metadata: Option<Metadata>,
    pub retry_after_s: Option<u32>,
}

/// The body's text.
#[derive(Serialize)]
struct Text<'a> {
    #[serde(flatten)]
    body: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a Metadata>,
}

impl Exchange {
    /// None: the event is no HTTP request.
    pub(super) fn parse(payload: &Value) -> Option<Self> {
        Platform::of(payload).map(|platform| Self::read(payload, platform))
    }

    fn read(payload: &Value, platform: Platform) -> Self {
        let text = payload["body"].as_str().unwrap_or_default();
        let body = if payload["isBase64Encoded"] == true {
            STANDARD
                .decode(text)
                .map_err(|error| format!("the event says isBase64Encoded, and its body is not base64 ({error})"))
        } else {
            Ok(text.as_bytes().to_vec())
        };
        let (method, path) = match platform {
            Platform::V2 => (&payload["requestContext"]["http"]["method"], &payload["rawPath"]),
            Platform::V1 | Platform::LoadBalancer => (&payload["httpMethod"], &payload["path"]),
        };
        Self {
            method: method.as_str().unwrap_or_default().to_owned(),
            path: path.as_str().unwrap_or_default().to_owned(),
            headers: headers(payload),
            body,
            platform,
        }
    }

    /// Which answer the request wants.
    ///
    /// # Errors
    /// The response that says what there is.
    pub fn route(&self) -> Result<Route, Response> {
        match (self.method.as_str(), self.path.trim_end_matches('/')) {
            ("POST", path) if path.ends_with("/generate") => match &self.body {
                Ok(body) => Ok(Route::Generate(body.clone())),
                Err(problem) => Err(Response::problem(400, "invalid_request", problem)),
            },
            ("GET", path) if path.ends_with("/health") => Ok(Route::Health),
            (_, path) if path.ends_with("/generate") => {
                Err(Response::problem(405, "method_not_allowed", "POST a job body here"))
            }
            _ => Err(Response::problem(404, "not_found", "there are POST /generate and GET /health")),
        }
    }

    /// Checks what the caller presented.
    ///
    /// # Errors
    /// The 401 response, or a 503 where no token is configured.
    pub fn authorize(&self, auth: &Auth) -> Result<(), Response> {
        auth.check(&self.headers).map_err(Response::stranger)
    }

    /// Of the caller's header.
    #[must_use]
    pub fn trace(&self) -> Option<Trace> {
        Trace::from_traceparent(self.headers.get(TRACEPARENT)?.to_str().ok()?)
    }

    /// The response in the shape of the platform that sent the request.
    #[must_use]
    pub fn reply(&self, response: &Response) -> Value {
        let mut headers = Map::new();
        headers.insert(CONTENT_TYPE.as_str().to_owned(), "application/json".into());
        if let Some(seconds) = response.retry_after_s {
            headers.insert(RETRY_AFTER.as_str().to_owned(), seconds.to_string().into());
        }
        if response.status == 401 {
            headers.insert(WWW_AUTHENTICATE.as_str().to_owned(), "Bearer".into());
        }
        let Response { body, metadata, .. } = response;
        let text = serde_json::to_string(&Text { body, metadata: metadata.as_ref() }).unwrap_or_else(|_| body.to_string());
        let mut reply = json!({ "statusCode": response.status, "body": text, "isBase64Encoded": false });
        if self.platform == Platform::V2 {
            // `cargo lambda` reads no reply without them.
            reply["cookies"] = json!([]);
        } else {
            // A load balancer that was set to multi-value headers reads nothing else; one that was not reads the other form.
            let lists = headers.iter().map(|(name, value)| (name.clone(), json!([value])));
            reply["multiValueHeaders"] = Value::Object(lists.collect());
        }
        if self.platform == Platform::LoadBalancer {
            let status = StatusCode::from_u16(response.status).ok();
            let reason = status.and_then(|status| status.canonical_reason()).unwrap_or("Unknown");
            reply["statusDescription"] = format!("{} {reason}", response.status).into();
        }
        reply["headers"] = Value::Object(headers);
        reply
    }
}

/// Those of `multiValueHeaders`, and of `headers` where a name is not among the former. What is no header is left out.
fn headers(payload: &Value) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, values) in payload["multiValueHeaders"].as_object().into_iter().flatten() {
        for value in values.as_array().into_iter().flatten() {
            headers.extend(header(name, value));
        }
    }
    let single = payload["headers"].as_object().into_iter().flatten().filter_map(|(name, value)| header(name, value));
    for (name, value) in single {
        headers.entry(name).or_insert(value);
    }
    headers
}

fn header(name: &str, value: &Value) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    let mut value = HeaderValue::from_str(value.as_str()?).ok()?;
    value.set_sensitive(name == AUTHORIZATION || name == "x-internal-auth");
    Some((name, value))
}

impl Response {
    /// `code`: a stable word for programs; `message` says what is allowed.
    #[must_use]
    pub fn problem(status: u16, code: &str, message: &str) -> Self {
        Self { status, body: json!({ "error": { "code": code, "message": message } }), metadata: None, retry_after_s: None }
    }

    #[must_use]
    pub fn stranger(stranger: Stranger) -> Self {
        let (status, code) = match stranger {
            Stranger::NoToken => (401, "unauthorized"),
            Stranger::NotConfigured => (503, "not_configured"),
        };
        Self::problem(status, code, &stranger.to_string())
    }

    #[must_use]
    pub fn health(node_id: &str) -> Self {
        let body = json!({ "status": "ok", "model_loaded": true, "node_id": node_id });
        Self { status: 200, body, metadata: None, retry_after_s: None }
    }

    /// A finished job: the body of the `complete` notification, and the caller's own `metadata` beside it.
    #[must_use]
    pub fn done(outcome: &Outcome, mut body: Value, metadata: Metadata) -> Self {
        body["status"] = "complete".into();
        body["replayed"] = outcome.replayed.into();
        Self { status: 200, body, metadata: Some(metadata), retry_after_s: None }
    }

    #[must_use]
    pub fn failed(job_id: Option<&str>, error: &JobError) -> Self {
        let (status, retry_after_s) = match error {
            JobError::Conflict { .. } => (409, None),
            JobError::Invalid { .. } => (400, None),
            JobError::Cancelled => (410, None),
            error if error.retry_policy() != RetryPolicy::Terminal => (503, Some(5)),
            _ => (422, None),
        };
        let body = json!({ "job_id": job_id, "status": "failed", "error": Problem::from(error) });
        Self { status, body, metadata: None, retry_after_s }
    }
}
