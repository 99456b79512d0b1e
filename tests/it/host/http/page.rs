//! The page's files, where there is a page, and the images that it shows.

use atelier::events::auth::Auth;
use atelier::host::jobs::State;
use reqwest::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::{Front, assert_problem, generate, job_of, png, read};

#[tokio::test]
async fn the_page_is_served_under_a_policy_that_lets_nothing_else_in() {
    let front = Front::open().await;
    for (path, kind, says) in [
        ("/", "text/html; charset=utf-8", "<h1>atelier</h1>"),
        ("/page/app.js", "text/javascript; charset=utf-8", "start();"),
        ("/page/style.css", "text/css; charset=utf-8", "prefers-color-scheme"),
        ("/page/icon.svg", "image/svg+xml", "<svg"),
    ] {
        let response = front.anonymous(Method::GET, path).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let headers = response.headers().clone();
        assert_eq!(headers[CONTENT_TYPE], kind);
        let policy = headers[CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:;"));
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{policy}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("x-frame-options", "DENY"),
            ("cache-control", "no-cache"),
        ] {
            assert_eq!(headers[name], value, "{path}");
        }
        assert!(response.text().await.unwrap().contains(says), "{path}");
        // A browser that has it is told so.
        let again = front.anonymous(Method::GET, path).header(IF_NONE_MATCH, &headers[ETAG]).send().await.unwrap();
        assert_eq!((again.status(), &again.headers()[ETAG]), (StatusCode::NOT_MODIFIED, &headers[ETAG]), "{path}");
        assert!(again.bytes().await.unwrap().is_empty());
        let other = front.anonymous(Method::GET, path).header(IF_NONE_MATCH, "\"another\"").send().await.unwrap();
        assert_eq!(other.status(), StatusCode::OK);
    }
    for (method, path, status, code) in [
        (Method::GET, "/page/nothing.js", StatusCode::NOT_FOUND, "not_found"),
        (Method::GET, "/page/index.html", StatusCode::NOT_FOUND, "not_found"),
        (Method::GET, "/page/%2e%2e%2fapp.js", StatusCode::NOT_FOUND, "not_found"),
        (Method::POST, "/", StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
    ] {
        let (found, body) = read(front.anonymous(method, path)).await;
        assert_eq!(found, status, "{path}");
        assert_problem(&body, code, None, "");
    }
}

/// A browser sends what any page asks it to send: a form needs nobody's leave.
#[tokio::test]
async fn without_a_token_no_other_sites_page_sends_jobs() {
    let front = Front::open_with(|http| http.auth = Auth::Off).await;
    let host = front.address.to_string();
    let own = format!("http://{host}");
    let send = async |headers: &[(&str, &str)]| {
        let request = front.anonymous(Method::POST, "/generate").json(&generate("job-1"));
        read(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await
    };
    for headers in [
        &[("origin", "https://elsewhere.example")][..],
        &[("origin", "null")],
        &[("origin", own.as_str()), ("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site")],
    ] {
        let (status, body) = send(headers).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{headers:?}");
        assert_problem(&body, "cross_site", None, "set a token");
    }
    for headers in [&[][..], &[("origin", own.as_str()), ("sec-fetch-site", "same-origin")], &[("sec-fetch-site", "none")]] {
        assert_eq!(send(headers).await.0, StatusCode::ACCEPTED, "{headers:?}");
    }
}

#[tokio::test]
async fn where_there_is_no_page_nothing_is_there() {
    let front = Front::open_with(|http| http.page = false).await;
    for path in ["/", "/page/app.js"] {
        let (status, body) = read(front.anonymous(Method::GET, path)).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert_problem(&body, "not_found", None, &format!("there is nothing at {path}"));
        let names_setting = body["error"]["message"].as_str().is_some_and(|message| message.contains("server.page: true"));
        assert_eq!(names_setting, path == "/", "{body}");
    }
}

#[tokio::test]
async fn an_image_of_a_complete_job_comes_through_the_host() {
    let front = Front::open().await;
    let job = job_of(&generate("job-1"));
    let image = async |path: &str| read(front.request(Method::GET, path)).await;
    let (status, body) = image("/jobs/job-1/images/0").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_problem(&body, "unknown_job", None, "job-1");
    front.post("/generate", &generate("job-1")).await;
    front.jobs.start(&job, 1);
    let (status, body) = image("/jobs/job-1/images/0").await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_problem(&body, "in_progress", None, "no images yet");
    front.generate(&job).await;
    front.jobs.end("job-1", State::Complete, None);
    let response = front.request(Method::GET, "/jobs/job-1/images/0").send().await.unwrap();
    assert_eq!((response.status(), &response.headers()[CONTENT_TYPE]), (StatusCode::OK, &"image/png".parse().unwrap()));
    assert_eq!(response.headers()["cache-control"], "private, no-store");
    assert_eq!(response.headers()["content-length"], png().len().to_string());
    assert_eq!(response.bytes().await.unwrap(), png());
    let (status, body) = read(front.anonymous(Method::GET, "/jobs/job-1/images/0")).await;
    assert_eq!((status, &body["error"]["code"]), (StatusCode::UNAUTHORIZED, &json!("unauthorized")));
    for (path, status, code, field, says) in [
        ("/jobs/job-1/images/1", StatusCode::NOT_FOUND, "unknown_image", None, "has 1 images"),
        ("/jobs/job-1/images/first", StatusCode::BAD_REQUEST, "invalid_request", Some("n"), "from 0"),
        ("/jobs/job-1/images/-1", StatusCode::BAD_REQUEST, "invalid_request", Some("n"), "from 0"),
        ("/jobs/a%20b/images/0", StatusCode::BAD_REQUEST, "invalid_request", Some("job_id"), "A-Z a-z 0-9"),
    ] {
        let (found, body) = image(path).await;
        assert_eq!(found, status, "{path}: {body}");
        assert_problem(&body, code, field, says);
    }
    // One that another host has done, of which this one knows nothing but the record.
    front.generate(&job_of(&generate("job-2"))).await;
    assert_eq!(front.request(Method::GET, "/jobs/job-2/images/0").send().await.unwrap().status(), StatusCode::OK);
    front.post("/generate", &generate("job-3")).await;
    front.jobs.end("job-3", State::Failed, None);
    let (status, body) = image("/jobs/job-3/images/0").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_problem(&body, "unknown_image", None, "ended without images");
}
