//! The page at `/`, where a person tries the host: plain modules inside this binary, under a policy that lets nothing else in.
//!
//! - It speaks to the API as every caller does, with the token that a person gives it. The files themselves need none: they say nothing.
//! - Images come by `GET /jobs/{id}/images/{n}`, so that the page asks nobody but this host.
//! - A browser asks for each file again (`no-cache`) and is told by its `ETag` that it has it: a new release is seen at once.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};

use super::Http;
use super::problem::{self, Problem};

/// Scripts and styles are this host's own files, images also what the page itself holds; nothing may frame the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; \
    frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'";
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// Name below `/page/`, content type, content.
type File = (&'static str, &'static str, &'static [u8]);

const INDEX: File = ("index.html", "text/html; charset=utf-8", include_bytes!("assets/index.html"));
const FILES: [File; 18] = [
    ("style.css", "text/css; charset=utf-8", include_bytes!("assets/style.css")),
    ("icon.svg", "image/svg+xml", include_bytes!("assets/icon.svg")),
    ("api.js", JAVASCRIPT, include_bytes!("assets/api.js")),
    ("app.js", JAVASCRIPT, include_bytes!("assets/app.js")),
    ("auto_mask.js", JAVASCRIPT, include_bytes!("assets/auto_mask.js")),
    ("credentials.js", JAVASCRIPT, include_bytes!("assets/credentials.js")),
    ("dom.js", JAVASCRIPT, include_bytes!("assets/dom.js")),
    ("follow.js", JAVASCRIPT, include_bytes!("assets/follow.js")),
    ("form.js", JAVASCRIPT, include_bytes!("assets/form.js")),
    ("jobs.js", JAVASCRIPT, include_bytes!("assets/jobs.js")),
    ("mask.js", JAVASCRIPT, include_bytes!("assets/mask.js")),
    ("memory.js", JAVASCRIPT, include_bytes!("assets/memory.js")),
    ("metrics.js", JAVASCRIPT, include_bytes!("assets/metrics.js")),
    ("input_image.js", JAVASCRIPT, include_bytes!("assets/input_image.js")),
    ("input_images.js", JAVASCRIPT, include_bytes!("assets/input_images.js")),
    ("result.js", JAVASCRIPT, include_bytes!("assets/result.js")),
    ("slider.js", JAVASCRIPT, include_bytes!("assets/slider.js")),
    ("system.js", JAVASCRIPT, include_bytes!("assets/system.js")),
];

/// Changes with the content of any file.
static TAG: LazyLock<String> = LazyLock::new(|| {
    let all =
        FILES.iter().chain([&INDEX]).fold(Sha256::new(), |hash, (name, _, bytes)| hash.chain_update(name).chain_update(bytes));
    format!("\"{}\"", &base16ct::lower::encode_string(&all.finalize())[..32])
});

pub(super) fn routes() -> Router<Arc<Http>> {
    Router::new().route("/", get(index)).route("/page/{file}", get(file))
}

async fn index(headers: HeaderMap) -> Response {
    answer(INDEX, &headers)
}

async fn file(path: Result<Path<String>, PathRejection>, uri: Uri, headers: HeaderMap) -> Result<Response, Problem> {
    let found = path.ok().and_then(|Path(name)| FILES.into_iter().find(|(file, ..)| *file == name));
    match found {
        Some(found) => Ok(answer(found, &headers)),
        None => Err(problem::not_found(uri).await),
    }
}

fn answer((_, content_type, bytes): File, asked: &HeaderMap) -> Response {
    let headers = [
        (CONTENT_TYPE, content_type),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (X_FRAME_OPTIONS, "DENY"),
        (OPENER_POLICY, "same-origin"),
        (RESOURCE_POLICY, "same-origin"),
        (CACHE_CONTROL, "no-cache"),
        (ETAG, TAG.as_str()),
    ];
    let known = asked.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let is_known = known.flat_map(|list| list.split(',')).any(|tag| tag.trim().trim_start_matches("W/") == TAG.as_str());
    if is_known { (StatusCode::NOT_MODIFIED, headers).into_response() } else { (headers, bytes).into_response() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is not listed would be missing in the browser alone.
    #[test]
    fn every_file_that_another_names_is_listed() {
        for (name, _, bytes) in FILES.iter().chain([&INDEX]) {
            let text = String::from_utf8_lossy(bytes);
            let imports = text.split(" from './").skip(1).filter_map(|rest| rest.split('\'').next());
            let links = text.split("\"/page/").skip(1).filter_map(|rest| rest.split('"').next());
            for named in imports.chain(links) {
                assert!(FILES.iter().any(|(file, ..)| *file == named), "{name} names {named}");
            }
        }
    }
}
