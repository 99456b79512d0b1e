//! HTTP through the platform: API Gateway v2, function URLs and load balancers, one request in, one response out.

use aws_lambda_events::alb::AlbTargetGroupResponse;
use aws_lambda_events::apigw::ApiGatewayV2httpResponse;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lambda_http::http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use lambda_http::request::RequestContext;
use lambda_http::{Body, Request, RequestExt as _};
use serde::Serialize;
use serde_json::{Value, json};

use super::EventError;
use super::auth::{Auth, Stranger};
use crate::job::metadata::Metadata;
use crate::job::outcome::{JobError, Outcome, Problem, RetryPolicy};
use crate::job::trace::{TRACEPARENT, Trace};

/// A request that waits for its response.
#[derive(Debug)]
pub struct Exchange {
    request: Request,
    behind_load_balancer: bool,
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    /// Generate the job in the body.
    Generate(Vec<u8>),
    /// Is anybody there?
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
    pub(super) fn parse(payload: &Value) -> Result<Self, EventError> {
        let malformed = |problem: String| EventError::Malformed { kind: "an HTTP request", problem };
        // lambda_http panics on a body that only claims to be base64.
        if payload["isBase64Encoded"] == true {
            let body = payload["body"].as_str().unwrap_or_default();
            STANDARD.decode(body).map_err(|error| malformed(format!("its body is not base64: {error}")))?;
        }
        let request = lambda_http::request::from_str(&payload.to_string()).map_err(|error| malformed(error.to_string()))?;
        let behind_load_balancer = matches!(request.request_context_ref(), Some(RequestContext::Alb(_)));
        Ok(Self { request, behind_load_balancer })
    }

    /// Which answer the request wants.
    ///
    /// # Errors
    /// The response that says what there is.
    pub fn route(&self) -> Result<Route, Response> {
        let path = self.request.raw_http_path().trim_end_matches('/');
        match (self.request.method().as_str(), path) {
            ("POST", path) if path.ends_with("/generate") => Ok(Route::Generate(self.body())),
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
        auth.check(self.request.headers()).map_err(Response::stranger)
    }

    /// Of the caller's header.
    #[must_use]
    pub fn trace(&self) -> Option<Trace> {
        Trace::from_traceparent(self.request.headers().get(TRACEPARENT)?.to_str().ok()?)
    }

    fn body(&self) -> Vec<u8> {
        match self.request.body() {
            Body::Text(text) => text.clone().into_bytes(),
            Body::Binary(bytes) => bytes.clone(),
            _ => Vec::new(),
        }
    }

    /// The response in the shape of the platform that sent the request.
    #[must_use]
    pub fn reply(&self, response: &Response) -> Value {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = response.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if response.status == 401 {
            headers.insert(HeaderName::from_static("www-authenticate"), HeaderValue::from_static("Bearer"));
        }
        let Response { body, metadata, .. } = response;
        let text = serde_json::to_string(&Text { body, metadata: metadata.as_ref() }).unwrap_or_else(|_| body.to_string());
        let body = Some(aws_lambda_events::encodings::Body::Text(text));
        if self.behind_load_balancer {
            let mut reply = AlbTargetGroupResponse::default();
            reply.status_code = response.status.into();
            reply.headers = headers;
            reply.body = body;
            return json!(reply);
        }
        let mut reply = ApiGatewayV2httpResponse::default();
        reply.status_code = response.status.into();
        reply.headers = headers;
        reply.body = body;
        json!(reply)
    }
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

    /// A finished job: the body of the `complete` notification, with the caller's own `metadata`.
    #[must_use]
    pub fn done(outcome: &Outcome, mut body: Value, metadata: Metadata) -> Self {
        body["status"] = "complete".into();
        body["replayed"] = outcome.replayed.into();
        if let Some(body) = body.as_object_mut() {
            body.shift_remove("metadata");
        }
        Self { status: 200, body, metadata: Some(metadata), retry_after_s: None }
    }

    #[must_use]
    pub fn failed(job_id: Option<&str>, error: &JobError) -> Self {
        let (status, retry_after_s) = match error {
            JobError::Conflict { .. } => (409, None),
            JobError::Invalid { .. } => (400, None),
            JobError::Cancelled => (410, None),
            error if error.retry_policy() == RetryPolicy::Retry => (503, Some(5)),
            _ => (422, None),
        };
        let body = json!({ "job_id": job_id, "status": "failed", "error": Problem::from(error) });
        Self { status, body, metadata: None, retry_after_s }
    }
}
