//! What this node says of itself. None of it waits, so that it is answered while jobs run and handlers crash.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::Http;
use super::problem::Problem;
use crate::host::job_service::Model;

const OPENAPI: &str = include_str!("../../../docs/openapi.json");
/// Of build.rs: a commit, `development`, or `unknown` for a release that was built without git.
const GIT_COMMIT: &str = env!("ATELIER_GIT_COMMIT");

pub(super) async fn health(State(http): State<Arc<Http>>) -> Json<Value> {
    let model_loaded = http.job_service.snapshot.borrow().model == Model::Hot;
    Json(json!({ "status": "ok", "model_loaded": model_loaded, "node_id": http.node_id }))
}

/// Whether a job sent now would be generated soon, else why not: `reason`, in words.
pub(super) async fn test(State(http): State<Arc<Http>>) -> (StatusCode, Json<Value>) {
    let snapshot = http.job_service.snapshot.borrow().clone();
    let store_trouble = http.job_service.store_trouble.borrow().clone();
    // A load balancer is to send nothing more here.
    let trouble = if snapshot.draining {
        Some("the host shuts down: it takes no new job".to_owned())
    } else {
        store_trouble.or_else(|| http.job_service.queue.trouble())
    };
    let (status, reason) = match (&snapshot.model, trouble) {
        (Model::Hot, None) => ("hot", None),
        (Model::Hot, trouble) => ("failed", trouble),
        (Model::Loading, trouble) => ("loading", trouble.or_else(|| Some("no handler is ready yet".to_owned()))),
        (Model::Failed(why), _) => ("failed", Some(why.clone())),
    };
    let mut body = json!({
        "status": status,
        "model_loaded": snapshot.model == Model::Hot,
        "node_id": http.node_id,
        "model_type": http.model.model_type,
    });
    let code = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if let Some(reason) = reason {
        body["reason"] = reason.into();
    }
    (code, Json(body))
}

pub(super) async fn version(State(http): State<Arc<Http>>) -> Json<Value> {
    Json(json!({
        "model_type": http.model.model_type,
        "model_version": http.model.model_version,
        "backend": http.model.backend,
        "git_commit": GIT_COMMIT,
        "node_id": http.node_id,
    }))
}

/// Busy: every handler has a job.
pub(super) async fn gpu(State(http): State<Arc<Http>>) -> Result<Json<Value>, Problem> {
    let queue_length = http.job_service.waiting().await?;
    let snapshot = http.job_service.snapshot.borrow();
    Ok(Json(json!({
        "node_id": http.node_id,
        "busy": snapshot.free == 0 && !snapshot.running.is_empty(),
        "current_job_id": snapshot.running.first(),
        "queue_length": queue_length,
    })))
}

pub(super) async fn metrics(State(http): State<Arc<Http>>) -> impl IntoResponse {
    (http.refresh)();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], http.metrics.render())
}

pub(super) async fn openapi() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], OPENAPI)
}
