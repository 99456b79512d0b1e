//! `/infer`: the caller waits for the image, or goes away.

use atelier::host::job_service::{Direct, Ending, Model, StatusSnapshot};
use atelier::job::task::Task;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::tryon::form;
use super::{Front, assert_problem, at, generate, idle, json_of, png, read};
use crate::servers::DEADLINE;
use crate::stage::TOKEN;

async fn next(front: &mut Front) -> Direct {
    tokio::time::timeout(DEADLINE, front.directs.recv()).await.expect("a job comes").unwrap()
}

#[tokio::test]
async fn the_answer_is_the_image_itself() {
    let mut front = Front::open().await;
    let waiting = tokio::spawn(front.request(Method::POST, "/infer").json(&generate("job-1")).send());
    let direct = next(&mut front).await;
    assert_eq!(direct.job.id.as_str(), "job-1");
    assert_eq!(serde_json::from_slice::<Value>(&direct.body).unwrap(), generate("job-1"));
    let reply = front.reply_of(&direct).await;
    direct.answer.send(Ending::Answer(reply)).unwrap();
    let response = waiting.await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let headers = response.headers().clone();
    let header = |name: &str| headers[name].to_str().unwrap();
    assert_eq!((header("content-type"), header("x-job-id"), header("x-inference-time-ms")), ("image/png", "job-1", "1200"));
    assert_eq!(header("content-length"), png().len().to_string());
    assert!(headers.contains_key("x-request-id"));
    assert_eq!(response.bytes().await.unwrap(), png());
    assert!(front.shelf.taken().is_empty(), "it does not go through the queue");
}

#[tokio::test]
async fn a_try_on_comes_as_a_form_whose_own_fields_count_first() {
    let mut front = Front::open().await;
    let form = form("job-1", &png(), &png())
        .text("config", r#"{"seed": 1, "steps": 5, "cfg": 2}"#)
        .text("seed", "7")
        .text("cfg", "1.5")
        .text("prompt", "a coat");
    let waiting = tokio::spawn(form.send(front.request(Method::POST, "/infer")));
    let direct = next(&mut front).await;
    let Task::TryOn(tryon) = &direct.job.task else { panic!("no try-on") };
    assert_eq!((tryon.seed.get(), tryon.steps.get()), (7, 5));
    assert!((tryon.guidance_scale.get() - 1.5).abs() < f64::EPSILON);
    assert_eq!(tryon.prompt.as_ref().map(atelier::job::task::Prompt::as_str), Some("a coat"));
    let reply = front.reply_of(&direct).await;
    direct.answer.send(Ending::Answer(reply)).unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::OK);
    for (name, value, says) in [("steps", "many", "got \"many\""), ("cfg", "0", "from 1 to 50")] {
        let form = super::tryon::form("job-2", &png(), &png()).text(name, value);
        let response = form.send(front.request(Method::POST, "/infer")).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_problem(&json_of(response).await, "invalid_request", Some(name), says);
    }
}

#[tokio::test]
async fn every_other_ending_is_an_error_in_json() {
    let mut front = Front::open().await;
    let failed = |status: u16, code: &str| {
        let body = json!({ "job_id": "job-1", "status": "failed", "error": { "code": code, "message": "in words" } });
        Ending::Answer(json!({ "statusCode": status, "headers": { "retry-after": "5" }, "body": body.to_string() }))
    };
    for (ending, status, code) in [
        (failed(409, "conflict"), StatusCode::CONFLICT, "conflict"),
        (failed(410, "cancelled"), StatusCode::GONE, "cancelled"),
        (failed(422, "out_of_memory"), StatusCode::UNPROCESSABLE_ENTITY, "out_of_memory"),
        (failed(503, "inference_failed"), StatusCode::SERVICE_UNAVAILABLE, "inference_failed"),
        (Ending::Crashed("signal 9".into()), StatusCode::SERVICE_UNAVAILABLE, "handler_crashed"),
        (Ending::Drained, StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        (Ending::Answer(Value::Null), StatusCode::BAD_GATEWAY, "handler_answer"),
        (Ending::Answer(json!({ "statusCode": 200, "body": "{}" })), StatusCode::BAD_GATEWAY, "handler_answer"),
    ] {
        let waiting = tokio::spawn(front.request(Method::POST, "/infer").json(&generate("job-1")).send());
        next(&mut front).await.answer.send(ending).unwrap();
        let response = waiting.await.unwrap().unwrap();
        assert_eq!(response.status(), status, "{code}");
        assert_eq!(response.headers()["x-job-id"], "job-1", "by it the caller finds what became of the job");
        let comes_back = status == StatusCode::SERVICE_UNAVAILABLE;
        assert!(!comes_back || response.headers().contains_key("retry-after"), "{code}");
        assert_eq!(json_of(response).await["error"]["code"], code);
    }
}

/// They stand in the handler's answer, and are the caller's text: nothing here has to understand them.
#[tokio::test]
async fn metadata_that_no_parser_holds_keep_no_image_from_its_caller() {
    let mut front = Front::open().await;
    let deep = format!(r#"{{"a": {}1{}}}"#, "[".repeat(200), "]".repeat(200));
    for metadata in [r#"{"a": 1e999}"#, r#"{"a": "\ud800"}"#, &deep] {
        let waiting = tokio::spawn(front.request(Method::POST, "/infer").json(&generate("job-1")).send());
        let direct = next(&mut front).await;
        let mut reply = front.reply_of(&direct).await;
        let body = reply["body"].as_str().unwrap().replacen('{', &format!(r#"{{"metadata": {metadata},"#), 1);
        reply["body"] = body.into();
        direct.answer.send(Ending::Answer(reply)).unwrap();
        let response = waiting.await.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{metadata}");
        assert_eq!(response.bytes().await.unwrap(), super::png());
    }
}

#[tokio::test]
async fn nobody_waits_for_a_node_that_cannot() {
    let front = Front::open().await;
    let ask = async || front.post("/infer", &generate("job-1")).await;
    front.snapshot.send_modify(|snapshot| snapshot.models[0].free = 0);
    let (status, body) = ask().await;
    assert_eq!((status, &body["status"], &body["retry_after"]), (StatusCode::TOO_MANY_REQUESTS, &json!("busy"), &json!(5)));
    for model in [Model::Loading, Model::Failed("no weights".into())] {
        front.snapshot.send_replace(at(model, 0));
        let (status, body) = ask().await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_problem(&body, "model_not_ready", None, "");
    }
    front.snapshot.send_replace(StatusSnapshot { draining: true, ..idle() });
    assert_eq!(ask().await.0, StatusCode::SERVICE_UNAVAILABLE);
    let mut wrong = generate("job-1");
    wrong["steps"] = 0.into();
    let (status, body) = read(front.request(Method::POST, "/infer").json(&wrong)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_problem(&body, "invalid_request", Some("steps"), "from 1 to 200");
}

#[tokio::test]
async fn a_caller_who_goes_away_cancels_the_job() {
    let mut front = Front::open().await;
    let mut caller = TcpStream::connect(front.address).await.unwrap();
    let body = generate("job-1").to_string();
    let request = format!(
        "POST /infer HTTP/1.1\r\nhost: x\r\nx-internal-auth: {TOKEN}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    caller.write_all(request.as_bytes()).await.unwrap();
    let mut direct = next(&mut front).await;
    assert!(!direct.answer.is_closed(), "the caller is still there");
    drop(caller);
    tokio::time::timeout(DEADLINE, direct.answer.closed()).await.expect("the runner of the job sees that no one waits");
}

#[tokio::test]
async fn another_functions_answer_passes_through() {
    let mut front = Front::open_with(|http| http.passes_through = true).await;
    let html = json!({
        "statusCode": 418, "headers": { "content-type": "text/html", "x-own": "1", "Content-Length": "9999" },
        "cookies": ["a=b"], "body": "<p>tea</p>",
    });
    let binary = json!({ "statusCode": 200, "body": STANDARD.encode([0, 255]), "isBase64Encoded": true });
    let plain = json!({ "greeting": "hello" });
    for (reply, status, kind, body) in [
        (html, 418, "text/html", b"<p>tea</p>".to_vec()),
        (binary, 200, "", vec![0, 255]),
        (plain.clone(), 200, "application/json", plain.to_string().into_bytes()),
        (json!("text"), 200, "application/json", b"\"text\"".to_vec()),
    ] {
        let waiting = tokio::spawn(front.request(Method::POST, "/infer").json(&generate("job-1")).send());
        next(&mut front).await.answer.send(Ending::Answer(reply.clone())).unwrap();
        let response = waiting.await.unwrap().unwrap();
        assert_eq!(response.status().as_u16(), status, "{reply}");
        let header = |name: &str| response.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        assert_eq!((header("content-type").as_str(), header("x-job-id").as_str()), (kind, "job-1"), "{reply}");
        assert_eq!(header("set-cookie").is_empty(), status != 418);
        assert_eq!(response.bytes().await.unwrap(), body, "{reply}");
    }
    for wrong in
        [Value::Null, json!({ "statusCode": "ok" }), json!({ "statusCode": 200, "body": "?", "isBase64Encoded": true })]
    {
        let waiting = tokio::spawn(front.request(Method::POST, "/infer").json(&generate("job-1")).send());
        next(&mut front).await.answer.send(Ending::Answer(wrong.clone())).unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::BAD_GATEWAY, "{wrong}");
    }
}
