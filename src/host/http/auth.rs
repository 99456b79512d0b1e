//! Lets in callers that present the token; stands before every endpoint that takes or shows jobs.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{HOST, HeaderMap, ORIGIN};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::problem::Problem;
use super::{Http, body};
use crate::events::auth::Auth;

pub(super) async fn require(State(http): State<Arc<Http>>, request: Request, next: Next) -> Response {
    let problem = match http.auth.check(request.headers()) {
        // Where a person's browser is served without a token, any page that it shows could send jobs in that person's name.
        Ok(()) if http.page && matches!(http.auth, Auth::Off) && is_of_another_site(request.headers()) => {
            const SAYS: &str =
                "this host serves its page without a token, and takes no request from the page of another site; set a token";
            Problem::new(StatusCode::FORBIDDEN, "cross_site", SAYS)
        }
        Ok(()) => return next.run(request).await,
        Err(stranger) => Problem::from(stranger),
    };
    body::drain(request).await;
    problem.into_response()
}

/// What browsers say of themselves (Fetch Metadata, and RFC 6454 from those without it); other callers say neither.
fn is_of_another_site(headers: &HeaderMap) -> bool {
    let text = |value: Option<&HeaderValue>| value.and_then(|value| value.to_str().ok().map(str::to_owned));
    let site = text(headers.get("sec-fetch-site"));
    if site.is_some_and(|site| site == "cross-site" || site == "same-site") {
        return true;
    }
    let Some(origin) = text(headers.get(ORIGIN)) else { return false };
    let authority = origin.split_once("://").map(|(_, authority)| authority.to_owned());
    authority.is_none() || authority != text(headers.get(HOST))
}
