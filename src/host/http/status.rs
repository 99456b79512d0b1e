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

/// Whether a job sent now would be generated soon.
pub(super) async fn test(State(http): State<Arc<Http>>) -> (StatusCode, Json<Value>) {
    let trouble = http.job_service.queue.trouble();
    let snapshot = http.job_service.snapshot.borrow().clone();
    let (code, status) = match snapshot.model {
        // A load balancer is to send nothing more here.
        Model::Hot if snapshot.draining || trouble.is_some() => (StatusCode::SERVICE_UNAVAILABLE, "failed"),
        Model::Hot => (StatusCode::OK, "hot"),
        Model::Loading => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
        Model::Failed(_) => (StatusCode::SERVICE_UNAVAILABLE, "failed"),
    };
    let body = json!({
        "status": status,
        "model_loaded": snapshot.model == Model::Hot,
        "node_id": http.node_id,
        "model_type": http.model.model_type,
    });
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
