//! What a node says of itself, and how fast it says so.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use atelier::host::job_service::{Model, StatusSnapshot};
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::{Front, assert_problem, at, generate};

#[tokio::test]
async fn the_probes_need_no_token_and_follow_the_model() {
    let front = Front::open().await;
    for (model, status, word, reason) in [
        (Model::Loading, StatusCode::SERVICE_UNAVAILABLE, "loading", Some("no handler is ready yet")),
        (Model::Failed("no weights".to_owned()), StatusCode::SERVICE_UNAVAILABLE, "failed", Some("no weights")),
        (Model::Hot, StatusCode::OK, "hot", None),
    ] {
        let hot = model == Model::Hot;
        let models = json!([{ "name": "tiny-sd", "status": word, "model_loaded": hot }]);
        front.snapshot.send_modify(|snapshot| snapshot.models[0].model = model);
        let health = super::read(front.anonymous(Method::GET, "/health")).await;
        assert_eq!(
            health,
            (StatusCode::OK, json!({ "status": "ok", "model_loaded": hot, "node_id": "node-1", "models": models }))
        );
        let test = super::read(front.anonymous(Method::GET, "/test")).await;
        let mut body = json!({
            "status": word, "model_loaded": hot, "node_id": "node-1", "model_type": "stable-diffusion-1", "models": models,
        });
        if let Some(reason) = reason {
            body["reason"] = reason.into();
        }
        assert_eq!(test, (status, body));
    }
    front.store_trouble.send_replace(Some("storage: access was denied".to_owned()));
    let (status, test) = super::read(front.anonymous(Method::GET, "/test")).await;
    assert_eq!((status, &test["status"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("failed")));
    assert_eq!(test["reason"], "storage: access was denied");
    front.snapshot.send_modify(|snapshot| snapshot.draining = true);
    let (status, test) = super::read(front.anonymous(Method::GET, "/test")).await;
    assert_eq!((status, &test["status"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("failed")));
    assert!(test["reason"].as_str().is_some_and(|reason| reason.contains("shuts down")), "{test}");
    let (_, version) = super::read(front.anonymous(Method::GET, "/version")).await;
    let expected = json!({
        "model_type": "stable-diffusion-1", "model_version": "tiny-sd", "backend": "candle",
        "git_commit": version["git_commit"], "node_id": "node-1",
        "models": [{ "name": "tiny-sd", "model_type": "stable-diffusion-1", "backend": "candle" }],
    });
    assert_eq!(version, expected);
    assert!(version["git_commit"].as_str().is_some_and(|commit| !commit.is_empty()), "{version}");
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let front = Front::open().await;
    for path in ["/jobs/nobody", "/jobs/nothing", "/nowhere"] {
        assert_eq!(front.get(path).await.0, StatusCode::NOT_FOUND);
    }
    let response = front.anonymous(Method::GET, "/metrics").send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = response.text().await.unwrap();
    for line in [
        "vton_inference_count 0",
        "atelier_http_requests_total{route=\"/jobs/{id}\",status=\"404\"} 2",
        "atelier_http_requests_total{route=\"other\",status=\"404\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn the_gpu_status_reports_what_runs_and_what_waits() {
    let front = Front::open().await;
    let status = |busy: bool, job: Option<&str>, waits: u64| {
        let body = json!({ "node_id": "node-1", "busy": busy, "current_job_id": job, "queue_length": waits });
        (StatusCode::OK, body)
    };
    assert_eq!(front.get("/gpu/status").await, status(false, None, 0));
    front.snapshot.send_replace(StatusSnapshot { running: vec!["job-7".to_owned()], in_flight: 1, ..at(Model::Hot, 0) });
    front.post("/generate", &generate("job-8")).await;
    assert_eq!(front.get("/gpu/status").await, status(true, Some("job-7"), 2));
    front.snapshot.send_replace(at(Model::Loading, 0));
    assert_eq!(front.get("/gpu/status").await, status(false, None, 1));
    front.shelf.away.store(true, Ordering::SeqCst);
    let (code, body) = front.get("/gpu/status").await;
    assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
    assert_problem(&body, "queue_unavailable", None, "the broker is away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_answered_at_once_while_jobs_and_large_images_come_in() {
    const MAX: Duration = Duration::from_millis(50);
    let front = Front::open_with(|http| http.job_service.max_waiting = 10_000).await;
    let large = super::image(image::ImageFormat::Png, 3_000);
    let load = async {
        for n in 0..10 {
            let form = super::tryon::form(&format!("job-{n}"), &large, &large);
            let generates =
                (0..10).map(|m| front.request(Method::POST, "/generate").json(&generate(&format!("{n}-{m}"))).send());
            let (tryon, _) =
                tokio::join!(form.send(front.request(Method::POST, "/tryon")), futures::future::join_all(generates));
            assert_eq!(tryon.unwrap().status(), StatusCode::ACCEPTED);
        }
    };
    let mut took = Vec::new();
    let probes = async {
        loop {
            let started = Instant::now();
            let answer = front.anonymous(Method::GET, "/health").send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            took.push(started.elapsed());
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = load => {}
        () = probes => unreachable!("it never ends"),
    }
    took.sort();
    let p99 = took[(took.len() * 99).div_ceil(100) - 1];
    assert!(took.len() >= 100 && p99 < MAX, "p99 of {} probes: {p99:?}, worst {:?}", took.len(), took.last());
}

#[tokio::test]
async fn the_server_ends_when_it_is_asked_to() {
    let mut front = Front::open().await;
    assert_eq!(front.get("/health").await.0, StatusCode::OK);
    front.close.take().unwrap().send(()).unwrap();
    let deadline = Instant::now() + crate::servers::DEADLINE;
    while tokio::net::TcpStream::connect(front.address).await.is_ok() {
        assert!(Instant::now() < deadline, "still listening");
        tokio::task::yield_now().await;
    }
}
