//! `/generate`, `/tryon` and `/edit`: put a job into the queue, once, and say so.

use std::sync::Arc;

use axum::Json;
use axum::extract::{self, Request};
use axum::http::header::LOCATION;
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use tracing::Instrument as _;

use super::draft::Takes;
use super::idempotency::{Key, Ownership};
use super::problem::Problem;
use super::submission::{self, Submission};
use super::{Http, jobs};
use crate::host::acceptance::NotAccepted;
use crate::host::job_service::Accepted;
use crate::host::jobs::State;
use crate::job::{Job, JobId};

const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

pub(super) async fn generate(extract::State(http): extract::State<Arc<Http>>, request: Request) -> Result<Response, Problem> {
    let order = submission::read(&http, request, Takes::Generate).await?;
    submit(&http, order).await
}

pub(super) async fn tryon(extract::State(http): extract::State<Arc<Http>>, request: Request) -> Result<Response, Problem> {
    let order = submission::read(&http, request, Takes::TryOn).await?;
    submit(&http, order).await
}

pub(super) async fn edit(extract::State(http): extract::State<Arc<Http>>, request: Request) -> Result<Response, Problem> {
    let order = submission::read(&http, request, Takes::Edit).await?;
    submit(&http, order).await
}

/// # Errors
/// Why the job was not accepted.
async fn submit(http: &Arc<Http>, order: Submission) -> Result<Response, Problem> {
    let Some(key) = order.key.clone() else { return enqueue(http, &order, false).await };
    // What has begun is brought to its end although the caller is gone: the claim says how it ended.
    let http = Arc::clone(http);
    let submitting = tokio::spawn(async move { Box::pin(submit_once(&http, &key, &order)).await }.in_current_span());
    submitting.await.unwrap_or_else(|_| Err(NotAccepted::Draining.into()))
}

/// As the others who come with the key have it.
async fn submit_once(http: &Http, key: &Key, order: &Submission) -> Result<Response, Problem> {
    let job = &order.job;
    let ownership = Box::pin(key.claim(http, job)).await?;
    if let Ownership::Own(owned) = ownership {
        // Whoever had the key before may have brought the job to its end.
        let replayed = if owned.follows_another() { replay(http, job).await } else { Ok(None) };
        let accepted = match replayed {
            Ok(Some(response)) => Ok(response),
            Ok(None) => enqueue(http, order, false).await,
            Err(problem) => Err(problem),
        };
        match &accepted {
            Ok(_) => owned.sent(http).await,
            Err(_) => owned.free(http).await,
        }
        return accepted;
    }
    if let Some(response) = replay(http, job).await? {
        return Ok(response);
    }
    match ownership {
        Ownership::Sent => Ok(accepted(&job.id, "a request with the same Idempotency-Key has put the job into a queue")),
        Ownership::Elsewhere => Err(under_way()),
        Ownership::Here | Ownership::Own(_) => enqueue(http, order, true).await,
    }
}

/// `claimed_before`: by another request of this node.
async fn enqueue(http: &Http, order: &Submission, claimed_before: bool) -> Result<Response, Problem> {
    let job = &order.job;
    if !order.inputs.is_empty() {
        http.job_service.room(job).await?;
        keep(http, order).await?;
    }
    match http.job_service.submit(job, &order.message).await? {
        Accepted::New => Ok(accepted(&job.id, "the job is in the queue")),
        Accepted::Known(known) if known.state == State::Complete => {
            match jobs::document(http, &job.id, Some(known)).await {
                Ok(document) => Ok(complete(&job.id, &document["result"])),
                // The bucket has no record of it any more, nor its images: it is a job like any other.
                Err(gone) if gone.is_not_found() => {
                    http.job_service.jobs.forget(job);
                    Box::pin(enqueue(http, order, claimed_before)).await
                }
                Err(problem) => Err(problem),
            }
        }
        Accepted::Known(_) if claimed_before => Err(under_way()),
        Accepted::Known(known) if known.state == State::Running => Ok(accepted(&job.id, "the job is running already")),
        Accepted::Known(_) => Ok(accepted(&job.id, "the job is in the queue already")),
    }
}

/// Puts the images that came along into the bucket.
///
/// # Errors
/// When the bucket does not take them.
pub(super) async fn keep(http: &Http, order: &Submission) -> Result<(), Problem> {
    for input in &order.inputs {
        http.store.put_input(&order.job.id, &input.name, input.content_type, input.file.clone()).await?;
    }
    Ok(())
}

/// What the same request under the same `Idempotency-Key` is answered; none: its job never got going, or failed.
async fn replay(http: &Http, job: &Job) -> Result<Option<Response>, Problem> {
    let known = jobs::job_status(http, &job.id).await?.filter(|known| known.fingerprint == job.fingerprint);
    let known = known.filter(|known| !known.may_be_over(http.job_service.queue.is_shared()));
    match known.as_ref().map(|known| known.state) {
        Some(State::Queued | State::Running) => return Err(under_way()),
        Some(State::Failed | State::Cancelled) => return Ok(None),
        Some(State::Complete) | None => {}
    }
    let Some(record) = http.store.record(&job.output.prefix, &job.id).await? else { return Ok(None) };
    if record.fingerprint != job.fingerprint {
        return Err(crate::job::outcome::JobError::Conflict { job_id: job.id.clone() }.into());
    }
    let result = jobs::result(http, &record).await?;
    let mut response = complete(&job.id, &result);
    response.headers_mut().insert(REPLAYED, axum::http::HeaderValue::from_static("true"));
    Ok(Some(response))
}

fn accepted(id: &JobId, message: &str) -> Response {
    let body = json!({ "status": "accepted", "job_id": id, "message": message });
    (StatusCode::ACCEPTED, [(LOCATION, format!("/jobs/{id}"))], Json(body)).into_response()
}

fn complete(id: &JobId, result: &Value) -> Response {
    let body = json!({ "status": "complete", "job_id": id, "message": "the job is complete", "result": result });
    (StatusCode::OK, [(LOCATION, format!("/jobs/{id}"))], Json(body)).into_response()
}

fn under_way() -> Problem {
    Problem::in_progress("the request with this Idempotency-Key is under way; come back for its result")
}
