//! `/generate`, `/tryon` and `/jobs/{id}`: hand a job in, ask how it is, cancel it.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::Http;
use super::order::{self, Takes};
use super::problem::Problem;
use super::submit::submit;
use crate::host::jobs::{Cancelling, Standing, State as JobState};
use crate::job::JobId;
use crate::job::outcome::Record;
use crate::notify::body::Painted;

pub(super) async fn generate(State(http): State<Arc<Http>>, request: Request) -> Result<Response, Problem> {
    let order = order::read(&http, request, Takes::Generate).await?;
    submit(&http, order).await
}

pub(super) async fn tryon(State(http): State<Arc<Http>>, request: Request) -> Result<Response, Problem> {
    let order = order::read(&http, request, Takes::TryOn).await?;
    submit(&http, order).await
}

pub(super) async fn show(
    State(http): State<Arc<Http>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, Problem> {
    let id = id_of(path)?;
    let known = standing(&http, &id).await?;
    document(&http, &id, known).await.map(Json)
}

pub(super) async fn cancel(
    State(http): State<Arc<Http>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let id = id_of(path)?;
    let (state, message) = match http.desk.cancel(id.as_str()) {
        Cancelling::Waiting => (JobState::Queued, "this host will not start the job"),
        Cancelling::Running => (JobState::Running, "the job stops before its next denoising step"),
        Cancelling::Ended(state) => return Err(ended(&id, state)),
        Cancelling::Unknown => {
            return Err(match http.store.record(&http.desk.defaults.prefix, &id).await? {
                Some(_) => ended(&id, JobState::Complete),
                None => unknown(&id),
            });
        }
    };
    let body = json!({ "status": "cancelling", "job_id": id, "state": state, "message": message });
    Ok((StatusCode::ACCEPTED, Json(body)))
}

/// What this node knows of a job. One that waits as far as it knows may have been painted by another host of the same queue:
/// then it is complete.
///
/// # Errors
/// Storage, when the bucket cannot be asked.
pub(super) async fn standing(http: &Http, id: &JobId) -> Result<Option<Standing>, Problem> {
    let Some(known) = http.desk.jobs.standing(id.as_str()) else { return Ok(None) };
    if known.state == JobState::Queued
        && let Some(record) = http.store.record(&known.prefix, id).await?
        && record.fingerprint == known.fingerprint
    {
        http.desk.jobs.end(id.as_str(), JobState::Complete, None);
        return Ok(http.desk.jobs.standing(id.as_str()));
    }
    Ok(Some(known))
}

/// All that is known of a job: from this node's own knowledge, else from its record under the usual prefix.
///
/// # Errors
/// Not found; or storage, when the job's record cannot be read.
pub(super) async fn document(http: &Http, id: &JobId, known: Option<Standing>) -> Result<Value, Problem> {
    let prefix = known.as_ref().map_or(&http.desk.defaults.prefix, |known| &known.prefix);
    let record = match &known {
        Some(known) if known.state != JobState::Complete => None,
        _ => http.store.record(prefix, id).await?,
    };
    let result = match &record {
        Some(record) => result(http, record).await?,
        None => Value::Null,
    };
    let (state, progress, attempt, error) = match known {
        Some(known) => (known.state, known.progress_percent, Some(known.attempt), known.error),
        None if record.is_some() => (JobState::Complete, 100, None, None),
        None => return Err(unknown(id)),
    };
    Ok(json!({
        "job_id": id, "state": state, "progress": progress, "attempt": attempt, "error": error, "result": result,
    }))
}

/// What a complete job has made, as the `complete` notice says it.
///
/// # Errors
/// When an address of a picture could not be made.
pub(super) async fn result(http: &Http, record: &Record) -> Result<Value, Problem> {
    let urls = http.store.urls(record).await?;
    Ok(json!(Painted::new(record, &urls)))
}

fn id_of(path: Result<Path<String>, PathRejection>) -> Result<JobId, Problem> {
    let Path(text) = path.map_err(|error| Problem::invalid("job_id", error.body_text()))?;
    JobId::new(&text).map_err(|problem| Problem::invalid("job_id", problem))
}

fn unknown(id: &JobId) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "unknown_job", &format!("this node knows no job {id}"))
}

fn ended(id: &JobId, state: JobState) -> Problem {
    let message = "the job has ended and cannot be cancelled any more";
    Problem::new(StatusCode::CONFLICT, "already_ended", message).with("job_id", id.as_str()).with("state", json!(state))
}
