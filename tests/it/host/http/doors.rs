//! Who is let in, and what a request that fits nothing gets.

use std::time::Duration;

use atelier::events::auth::Auth;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Front, assert_problem, generate, json_of, read};
use crate::stage::TOKEN;

const GUARDED: [(Method, &str); 7] = [
    (Method::POST, "/generate"),
    (Method::POST, "/tryon"),
    (Method::POST, "/edit"),
    (Method::POST, "/infer"),
    (Method::GET, "/gpu/status"),
    (Method::GET, "/jobs/job-1"),
    (Method::DELETE, "/jobs/job-1"),
];

#[tokio::test]
async fn a_job_needs_the_token_in_one_of_two_headers() {
    let front = Front::open().await;
    let longer = format!("{TOKEN}x");
    let shorter = &TOKEN[..TOKEN.len() - 1];
    let wrong: [&[(&str, &str)]; 8] = [
        &[],
        &[("x-internal-auth", "")],
        &[("x-internal-auth", &longer)],
        &[("x-internal-auth", shorter)],
        &[("authorization", TOKEN)],
        &[("authorization", "Bearer ")],
        &[("authorization", "Basic ZGVtbw==")],
        &[("x-internal-auth", "wrong"), ("authorization", &format!("Bearer {TOKEN}"))],
    ];
    for (method, path) in GUARDED {
        for headers in wrong {
            let request = headers.iter().fold(front.anonymous(method.clone(), path), |request, (n, v)| request.header(*n, *v));
            let response = request.json(&generate("job-1")).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{method} {path} {headers:?}");
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            assert_problem(&json_of(response).await, "unauthorized", None, "X-Internal-Auth: TOKEN");
        }
    }
    assert!(front.shelf.taken().is_empty());
    let right = [
        ("x-internal-auth", TOKEN),
        ("authorization", &format!("Bearer {TOKEN}")),
        ("authorization", &format!("bearer {TOKEN}")),
    ];
    for (n, (name, value)) in right.iter().enumerate() {
        let request = front.anonymous(Method::POST, "/generate").header(*name, *value);
        assert_eq!(read(request.json(&generate(&format!("job-{n}")))).await.0, StatusCode::ACCEPTED, "{name}");
    }
}

#[tokio::test]
async fn the_door_is_open_or_shut_as_the_settings_say() {
    let open = Front::open_with(|http| http.auth = Auth::new(false, None)).await;
    let request = open.anonymous(Method::POST, "/generate").json(&generate("job-1"));
    assert_eq!(read(request).await.0, StatusCode::ACCEPTED);
    let shut = Front::open_with(|http| http.auth = Auth::new(true, None)).await;
    let (status, body) = shut.post("/generate", &generate("job-1")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_problem(&body, "not_configured", None, "security.internal_auth_token is not set");
    assert_eq!(shut.get("/health").await.0, StatusCode::OK);
}

#[tokio::test]
async fn the_callers_request_id_comes_back_or_a_new_one() {
    let front = Front::open().await;
    let own = front.anonymous(Method::GET, "/health").header("x-request-id", "caller-7").send().await.unwrap();
    assert_eq!(own.headers()["x-request-id"], "caller-7");
    let refused = front.anonymous(Method::POST, "/generate").header("x-request-id", "caller-8").send().await.unwrap();
    assert_eq!(
        (refused.status(), &refused.headers()["x-request-id"]),
        (StatusCode::UNAUTHORIZED, &"caller-8".parse().unwrap())
    );
    let mut made = Vec::new();
    for path in ["/health", "/nowhere"] {
        let answer = front.anonymous(Method::GET, path).send().await.unwrap();
        made.push(uuid::Uuid::parse_str(answer.headers()["x-request-id"].to_str().unwrap()).unwrap());
    }
    assert_ne!(made[0], made[1]);
}

#[tokio::test]
async fn what_there_is_not_is_said_in_json() {
    let front = Front::open_with(|http| http.page = false).await;
    for path in ["/", "/nowhere", "/job", "/jobs/a/b", "/generate/"] {
        let (status, body) = front.get(path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        assert_problem(&body, "not_found", None, "GET /openapi.json");
    }
    for (method, path, allowed) in [
        (Method::GET, "/generate", "POST"),
        (Method::PUT, "/tryon", "POST"),
        (Method::POST, "/health", "GET,HEAD"),
        (Method::PATCH, "/jobs/job-1", "GET,HEAD,DELETE"),
        (Method::OPTIONS, "/infer", "POST"),
    ] {
        let response = front.anonymous(method.clone(), path).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert_eq!(response.headers()["allow"], allowed, "{method} {path}");
        assert_problem(&json_of(response).await, "method_not_allowed", None, "Allow");
    }
    for (path, field) in [("/jobs/%20", "job_id"), ("/jobs/.hidden", "job_id"), ("/jobs/%ff", "job_id")] {
        let (status, body) = front.get(path).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
        assert_problem(&body, "invalid_request", Some(field), "");
    }
}

#[tokio::test]
async fn a_body_of_another_kind_or_size_is_refused() {
    let front = Front::open_with(|http| {
        http.settings.max_job_bytes = 1_000;
        http.settings.max_upload_bytes = 100_000;
    })
    .await;
    let types = [
        ("/generate", "multipart/form-data; boundary=x"),
        ("/generate", ""),
        ("/tryon", "text/plain"),
        ("/edit", "text/plain"),
        ("/infer", "image/png"),
    ];
    for (path, kind) in types {
        let (status, body) = read(front.request(Method::POST, path).header("content-type", kind).body("{}")).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{path} {kind}");
        assert_problem(&body, "unsupported_media_type", None, "content-type must be application/json");
    }
    for body in ["", "not JSON", "[1]", "{\"job_id\": \"a\"", "\u{0}"] {
        for path in ["/generate", "/tryon", "/edit", "/infer"] {
            let request = front.request(Method::POST, path).header("content-type", "application/json; charset=utf-8");
            let (status, answer) = read(request.body(body)).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {body:?}");
            assert_problem(&answer, "invalid_request", Some("body"), "must be a JSON object");
        }
    }
    let mut long = generate("job-1");
    long["callback"] = json!({ "metadata": { "text": "x".repeat(1_000) } });
    let (status, body) = front.post("/generate", &long).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_problem(&body, "too_large", None, "at most 1000 bytes");
    let (status, body) = front.post("/infer", &long).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "/infer takes larger bodies, but no larger job: {body}");
    // A caller who is still sending when it is refused hears why.
    let (status, body) = front.post("/generate", &Value::from("x".repeat(20 << 20))).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{body}");
    let anonymous = front.anonymous(Method::POST, "/tryon").body(vec![0; 20 << 20]);
    assert_eq!(read(anonymous).await.0, StatusCode::UNAUTHORIZED);
    assert!(front.shelf.taken().is_empty());
}

#[tokio::test]
async fn a_body_without_a_length_is_bounded_too() {
    let front = Front::open_with(|http| http.settings.max_job_bytes = 1_000).await;
    let chunks = futures::stream::iter((0..3).map(|_| Ok::<_, std::io::Error>(vec![b' '; 500])));
    let request = front.request(Method::POST, "/generate").header("content-type", "application/json");
    let (status, body) = read(request.body(reqwest::Body::wrap_stream(chunks))).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_problem(&body, "too_large", None, "at most 1000 bytes");
}

#[tokio::test]
async fn a_body_that_never_ends_is_cut_off() {
    let front = Front::open_with(|http| http.settings.body_timeout_ms = 50).await;
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    let head = format!(
        "POST /generate HTTP/1.1\r\nhost: x\r\nx-internal-auth: {TOKEN}\r\ncontent-type: application/json\r\n\
         content-length: 100\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let reading = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer));
    reading.await.expect("the connection is closed").unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("not complete after 50 ms"), "{answer}");
}

/// A connection with half a request's head on it.
async fn half_a_request(front: &Front) -> TcpStream {
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    stream.write_all(b"POST /generate HTTP/1.1\r\nhost: x\r\nx-a: ").await.unwrap();
    stream
}

async fn is_closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let reading = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut rest));
    // A reset says the same.
    let _ = reading.await.expect("the connection is closed");
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    // Long before a connection would be closed that is merely idle.
    let front = Front::open_with(|http| http.settings.head_timeout_ms = 50).await;
    is_closed(&mut half_a_request(&front).await).await;
    let mut second = TcpStream::connect(front.address).await.unwrap();
    second.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 15];
    second.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    second.write_all(b"GET /hea").await.unwrap();
    is_closed(&mut second).await;
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed() {
    let front = Front::open_with(|http| http.settings.idle_timeout_ms = 50).await;
    is_closed(&mut TcpStream::connect(front.address).await.unwrap()).await;
}

#[tokio::test]
async fn half_requests_never_keep_a_whole_one_out() {
    let front = Front::open_with(|http| http.settings.max_connections = 4).await;
    let mut halves = Vec::new();
    for _ in 0..20 {
        halves.push(half_a_request(&front).await);
    }
    let probe = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
    for _ in 0..5 {
        let answer = probe.get(format!("http://{}/health", front.address)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }
    // The oldest made room.
    is_closed(&mut halves[0]).await;
}

#[tokio::test]
async fn a_caller_who_takes_nothing_of_an_answer_is_cut_off() {
    let front = Front::open_with(|http| http.settings.write_timeout_ms = 100).await;
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    let request = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(10_000);
    let sending = async {
        // It ends in an error, for no one reads the answers.
        while stream.write_all(&request).await.is_ok() {}
    };
    tokio::time::timeout(Duration::from_mins(1), sending).await.expect("the connection is closed");
}

#[tokio::test]
async fn a_compressed_body_is_refused_as_what_it_is() {
    let front = Front::open().await;
    for encoding in ["gzip", "br", "deflate", "gzip, identity"] {
        let request = front.request(Method::POST, "/generate").header("content-encoding", encoding);
        let (status, body) = read(request.json(&generate("job-1"))).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{encoding}: {body}");
        assert_problem(&body, "unsupported_media_type", None, "content-encoding");
    }
    let identity = front.request(Method::POST, "/generate").header("content-encoding", "identity");
    assert_eq!(read(identity.json(&generate("job-1"))).await.0, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_field_that_comes_twice_is_named_whichever_path_it_comes_to() {
    let front = Front::open().await;
    let body = r#"{"job_id": "job-1", "prompt": "x", "seed": 1, "seed": 2}"#;
    for path in ["/generate", "/tryon", "/edit", "/infer"] {
        let request = front.request(Method::POST, path).header("content-type", "application/json");
        let (status, answer) = read(request.body(body)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
        assert_problem(&answer, "invalid_request", Some("seed"), "comes twice");
    }
}
