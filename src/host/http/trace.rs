//! What is logged and counted of a request, and the id that it is known by.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use tower_http::request_id::{MakeRequestId, RequestId};
use tracing::Instrument as _;
use uuid::Uuid;

use super::Http;
use super::problem::Refused;

/// Ids for requests that bring none; they sort by time.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestIds;

impl MakeRequestId for RequestIds {
    fn make_request_id<B>(&mut self, _request: &axum::http::Request<B>) -> Option<RequestId> {
        HeaderValue::from_str(&Uuid::now_v7().to_string()).ok().map(RequestId::new)
    }
}

/// One line a request, and its id on every line that is logged on the way. What probes ask all the time is logged at `debug`.
pub(super) async fn propagate(State(http): State<Arc<Http>>, request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>().and_then(|id| id.header_value().to_str().ok()).unwrap_or_default();
    let span = tracing::info_span!("http", request_id = id);
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let started = Instant::now();
    async move {
        let response = next.run(request).await;
        let status = response.status().as_u16();
        let took_ms = started.elapsed().as_millis() as u64;
        http.metrics.http_request(route.as_ref().map_or("other", MatchedPath::as_str), status);
        if matches!(path.as_str(), "/health" | "/test" | "/metrics" | "/gpu/status") {
            tracing::debug!(%method, path, status, took_ms, "answered");
        } else if let Some(refused) = response.extensions().get::<Refused>() {
            let error = &refused.body["error"];
            let [code, field, problem] = ["code", "field", "message"].map(|name| error[name].as_str());
            tracing::info!(%method, path, status, took_ms, code, field, problem, "answered");
        } else {
            tracing::info!(%method, path, status, took_ms, "answered");
        }
        response
    }
    .instrument(span)
    .await
}
