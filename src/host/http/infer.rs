//! `/infer`: waits for the image and hands it over. A caller who goes away cancels the job.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, SET_COOKIE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use serde::Deserialize;
use serde_json::Value;
use tracing::Instrument as _;

use super::draft::Takes;
use super::problem::Problem;
use super::submission::{self, Submission};
use super::{Http, jobs, submit};
use crate::events;
use crate::host::acceptance::NotAccepted;
use crate::host::job_service::{Direct, Ending, Model};
use crate::job::outcome::StoredImage;
use crate::job::{Job, JobId};
use crate::protocol::reply;

const JOB_ID: HeaderName = HeaderName::from_static("x-job-id");
const INFERENCE_TIME_MS: HeaderName = HeaderName::from_static("x-inference-time-ms");

pub(super) async fn infer(State(http): State<Arc<Http>>, request: Request) -> Result<Response, Problem> {
    let order = submission::read(&http, request, Takes::Any).await?;
    let (model, free) = {
        let snapshot = http.job_service.snapshot.borrow();
        (snapshot.model.clone(), snapshot.free)
    };
    if model != Model::Hot {
        return Err(Problem::unavailable("model_not_ready", "the model is not ready yet"));
    }
    if free == 0 {
        return Err(NotAccepted::Busy.into());
    }
    // One that waits as far as this node knows may be complete by another: then the handler has its image.
    jobs::job_status(&http, &order.job.id).await?;
    submit::keep(&http, &order).await?;
    let Submission { job, message, inputs, room, .. } = order;
    // Its images lie in the bucket now.
    drop((inputs, room));
    let id = job.id.clone();
    let span = Direct::span(&job);
    run(&http, &id, job, message).instrument(span).await
}

async fn run(http: &Http, id: &JobId, job: Job, message: Vec<u8>) -> Result<Response, Problem> {
    // Dropped with this future when the caller is gone, and then the job is cancelled.
    match http.job_service.run_now(job, message)?.await {
        Ok(Ending::Answer(reply)) => answer(http, id, &reply).await,
        Ok(Ending::Crashed(how)) => {
            tracing::error!(how, "the handler did not live to answer");
            Err(Problem::unavailable("handler_crashed", &format!("the job was not finished ({how}); try again")))
        }
        Ok(Ending::Drained) | Err(_) => Err(NotAccepted::Draining.into()),
    }
}

/// What of a finished job's answer is needed here.
#[derive(Deserialize)]
struct Done {
    images: Vec<Image>,
    timings_ms: Value,
}

#[derive(Deserialize)]
struct Image {
    bucket: String,
    key: String,
    content_type: String,
    width: u32,
    height: u32,
    bytes: u64,
    seed: u64,
}

/// `reply`: an API Gateway v2 response of `POST /generate`.
async fn answer(http: &Http, id: &JobId, reply: &Value) -> Result<Response, Problem> {
    if http.passes_through && !reply::is_ours(reply) && !reply.is_null() {
        return pass_through(id, reply);
    }
    let body: Value = reply["body"].as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let status = reply["statusCode"].as_u64().and_then(|status| u16::try_from(status).ok()).unwrap_or_default();
    if status >= 400 && body["error"].is_object() {
        let retry_after_s = reply["headers"]["retry-after"].as_str().and_then(|seconds| seconds.parse().ok());
        return Err(events::http::Response { status, body, metadata: None, retry_after_s }.into());
    }
    let first = serde_json::from_value::<Done>(body).ok().filter(|_| status == 200);
    let Some((image, timings_ms)) = first.and_then(|done| Some((done.images.into_iter().next()?, done.timings_ms))) else {
        tracing::error!(status, "the handler's answer is none");
        return Err(Problem::new(StatusCode::BAD_GATEWAY, "handler_answer", "the handler's answer could not be read"));
    };
    let Image { bucket, key, content_type, width: width_px, height: height_px, bytes, seed } = image;
    let image = StoredImage { bucket, key, content_type, width_px, height_px, bytes, seed, sha256: None };
    let file = http.store.image(&image).await?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_LENGTH, bytes.into());
    headers.insert(INFERENCE_TIME_MS, timings_ms["infer"].as_u64().unwrap_or_default().into());
    for (name, text) in [(CONTENT_TYPE, image.content_type.as_str()), (JOB_ID, id.as_str())] {
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    }
    let chunks = stream::try_unfold(file, |mut file| async move {
        Ok::<_, axum::BoxError>(file.try_next().await?.map(|chunk| (chunk, file)))
    });
    Ok((headers, Body::from_stream(chunks)).into_response())
}

/// What API Gateway makes of a function's reply in its payload format 2.0: a reply without `statusCode` is the body itself.
fn pass_through(id: &JobId, reply: &Value) -> Result<Response, Problem> {
    let wrong = |problem: &str| {
        tracing::error!(problem, "the function's answer is none");
        Problem::new(StatusCode::BAD_GATEWAY, "handler_answer", &format!("the function's answer could not be read: {problem}"))
    };
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        headers.insert(JOB_ID, value);
    }
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
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        headers.entry(JOB_ID).or_insert(value);
    }
    Ok((status, headers, Body::from(body)).into_response())
}
