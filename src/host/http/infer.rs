//! `/infer`: waits for the image and hands it over. A caller who goes away cancels the job.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, SET_COOKIE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::oneshot;
use tracing::{Instrument as _, Span};

use super::draft::Takes;
use super::problem::Problem;
use super::submission::{self, Submission};
use super::{Http, job_images, jobs, submit};
use crate::events;
use crate::host::acceptance::NotAccepted;
use crate::host::job_service::{Direct, Ending, ModelStatus};
use crate::job::JobId;
use crate::job::outcome::{JobError, StoredImage};
use crate::protocol::reply;

const JOB_ID: HeaderName = HeaderName::from_static("x-job-id");
const INFERENCE_TIME_MS: HeaderName = HeaderName::from_static("x-inference-time-ms");

pub(super) async fn infer(State(http): State<Arc<Http>>, request: Request) -> Result<Response, Problem> {
    let order = submission::read(&http, request, Takes::Any).await?;
    let running = begin(&http, order).await?;
    let id = running.id.clone();
    let answered = match running.reply().await {
        Ok(reply) => answer(&http, &reply).await,
        Err(problem) => Err(problem),
    };
    Ok(with_job_id(answered, &id))
}

/// The answer about a job that was begun, good or bad, names it: by its id the caller finds what becomes of it.
pub(super) fn with_job_id(answered: Result<Response, Problem>, id: &JobId) -> Response {
    let mut response = answered.into_response();
    if let Ok(id) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().entry(JOB_ID).or_insert(id);
    }
    response
}

/// A job that a handler of this host runs for its caller. Dropped before its end, the job is cancelled.
pub(super) struct Running {
    pub(super) id: JobId,
    ending: oneshot::Receiver<Ending>,
    span: Span,
}

/// Gives a job to a free handler, once its images lie in the bucket.
///
/// # Errors
/// When no handler is ready or free, or when this host has the job already.
pub(super) async fn begin(http: &Http, order: Submission) -> Result<Running, Problem> {
    let ModelStatus { model, free } = http.job_service.of(&order.job);
    if !model.is_served() {
        return Err(Problem::unavailable("model_not_ready", "the model is not ready yet"));
    }
    if free == 0 {
        return Err(NotAccepted::NoHandlerFree.into());
    }
    // One that waits as far as this node knows may be complete by another: then the handler has its image.
    jobs::job_status(http, &order.job.id).await?;
    submit::keep(http, &order).await?;
    let Submission { job, message, inputs, room, .. } = order;
    // Its images lie in the bucket now.
    drop((inputs, room));
    let id = job.id.clone();
    let span = Direct::span(&job);
    let ending = span.in_scope(|| http.job_service.run_now(job, message, span.clone()))?;
    Ok(Running { id, ending, span })
}

impl Running {
    /// The handler's answer, an API Gateway v2 response of `POST /generate`.
    ///
    /// # Errors
    /// When the handler did not live to answer, or the host shuts down.
    pub(super) async fn reply(self) -> Result<Value, Problem> {
        let Self { ending, span, .. } = self;
        match ending.instrument(span.clone()).await {
            Ok(Ending::Answer(reply)) => Ok(reply),
            Ok(Ending::Crashed(how)) => {
                span.in_scope(|| tracing::error!(how, "the handler did not live to answer"));
                Err(Problem::unavailable("handler_crashed", &format!("the job was not finished ({how}); try again")))
            }
            Ok(Ending::Cancelled) => Err(JobError::Cancelled.into()),
            Ok(Ending::Drained) | Err(_) => Err(NotAccepted::Draining.into()),
        }
    }
}

/// What of a finished job's answer is needed here.
#[derive(Deserialize)]
pub(super) struct Done {
    pub(super) images: Vec<DoneImage>,
    timings_ms: Value,
}

#[derive(Deserialize)]
pub(super) struct DoneImage {
    #[serde(default)]
    pub(super) url: String,
    bucket: String,
    key: String,
    content_type: String,
    width: u32,
    height: u32,
    bytes: u64,
    seed: u64,
}

impl DoneImage {
    /// Such as `512x512`.
    pub(super) fn size(&self) -> String {
        format!("{}x{}", self.width, self.height)
    }

    pub(super) fn stored(&self) -> StoredImage {
        StoredImage {
            bucket: self.bucket.clone(),
            key: self.key.clone(),
            content_type: self.content_type.clone(),
            width_px: self.width,
            height_px: self.height,
            bytes: self.bytes,
            seed: self.seed,
            sha256: None,
            invisible_mark: None,
        }
    }
}

/// Reads the reply of a handler of ours: its images, one at least.
///
/// # Errors
/// What the handler said went wrong, or that its answer could not be read.
pub(super) fn done(reply: &Value) -> Result<Done, Problem> {
    let text = reply["body"].as_str().unwrap_or_default();
    let status = reply["statusCode"].as_u64().and_then(|status| u16::try_from(status).ok()).unwrap_or_default();
    let body: Value = if status >= 400 { serde_json::from_str(text).unwrap_or_default() } else { Value::Null };
    if body["error"].is_object() {
        let retry_after_s = reply["headers"]["retry-after"].as_str().and_then(|seconds| seconds.parse().ok());
        return Err(events::http::Response { status, body, metadata: None, retry_after_s }.into());
    }
    // Read for what is needed: no `Value` holds every caller's metadata, which stand beside it.
    let done = serde_json::from_str::<Done>(text).ok().filter(|done| status == 200 && !done.images.is_empty());
    done.ok_or_else(|| {
        tracing::error!(status, "the handler's answer is none");
        Problem::new(StatusCode::BAD_GATEWAY, "handler_answer", "the handler's answer could not be read")
    })
}

async fn answer(http: &Http, reply: &Value) -> Result<Response, Problem> {
    if http.passes_through && !reply::is_ours(reply) && !reply.is_null() {
        return pass_through(reply);
    }
    let Done { images, timings_ms } = done(reply)?;
    let mut response = job_images::file(http, &images[0].stored()).await?;
    let infer_ms = timings_ms["infer"].as_u64().unwrap_or_default();
    response.headers_mut().insert(INFERENCE_TIME_MS, infer_ms.into());
    Ok(response)
}

/// What API Gateway makes of a function's reply in its payload format 2.0: a reply without `statusCode` is the body itself.
fn pass_through(reply: &Value) -> Result<Response, Problem> {
    let wrong = |problem: &str| {
        tracing::error!(problem, "the function's answer is none");
        Problem::new(StatusCode::BAD_GATEWAY, "handler_answer", &format!("the function's answer could not be read: {problem}"))
    };
    let mut headers = HeaderMap::new();
    let Some(status) = reply.get("statusCode") else {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        return Ok((StatusCode::OK, headers, reply.to_string()).into_response());
    };
    let status = status.as_u64().and_then(|status| StatusCode::from_u16(u16::try_from(status).ok()?).ok());
    let status = status.ok_or_else(|| wrong("statusCode must be a number from 100 to 999"))?;
    let text = reply["body"].as_str().unwrap_or_default();
    let body = if reply["isBase64Encoded"] == true {
        STANDARD.decode(text).map_err(|_| wrong("its body is not base64"))?
    } else {
        text.as_bytes().to_vec()
    };
    for (name, value) in reply["headers"].as_object().into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let name = HeaderName::from_bytes(name.as_bytes()).ok().filter(|name| *name != CONTENT_LENGTH);
        if let (Some(name), Ok(value)) = (name, HeaderValue::from_str(&text)) {
            headers.append(name, value);
        }
    }
    for cookie in reply["cookies"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if let Ok(value) = HeaderValue::from_str(cookie) {
            headers.append(SET_COOKIE, value);
        }
    }
    Ok((status, headers, Body::from(body)).into_response())
}
