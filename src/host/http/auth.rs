//! Lets in callers that present the token; stands before every endpoint that takes or shows jobs.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::problem::Problem;
use super::{Http, body};

pub(super) async fn require(State(http): State<Arc<Http>>, request: Request, next: Next) -> Response {
    match http.auth.check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(stranger) => {
            body::drain(request).await;
            Problem::from(stranger).into_response()
        }
    }
}
