//! A service of the user's own, as an HTTP server that answers as it likes.

use atelier::protocol::reply::{self, JobOutcome};
use atelier::workflow::user_step::UserSteps;
use serde_json::{Value, json};

use super::{UNCHANGED, assert_nothing_left, listed, png, stage};
use crate::safety::{body, event, object, run};
use crate::servers::http::{Answer, HttpServer};

fn json_answer(body: &str) -> Answer {
    Answer::with(200, &[("content-type", "application/json")], body)
}

/// Waits for no one.
fn at(server: &HttpServer) -> Value {
    json!({ "url": server.url("/judge").as_str(), "token": "step-token", "timeout_ms": 300, "max_wait_ms": 0 })
}

#[tokio::test]
async fn it_is_asked_and_lets_through_changes_or_refuses() {
    let server = HttpServer::start(&[json_answer(UNCHANGED)]).await;
    let mut stage = stage(&[("http:rules", at(&server))]).await;
    assert_eq!(run(&mut stage, &body("through", "a mug")).await.outcome, JobOutcome::Complete);
    let request = server.requests().remove(0);
    assert_eq!((request.method.as_str(), request.header("authorization")), ("POST", Some("Bearer step-token")));
    let asked = request.json();
    assert_eq!((&asked["step"], &asked["job"]["prompt"]), (&json!("http:rules"), &json!("a mug")));
    assert_eq!(object(&stage, "through", "result.json").unwrap()["user_steps"], json!(["http:rules"]));

    server.script(&[json_answer(&json!({ "images": [{ "data": png(32, 48, [1, 2, 3]) }] }).to_string())]);
    assert_eq!(run(&mut stage, &body("changed", "a mug")).await.outcome, JobOutcome::Complete);
    let stored = image::open(stage.bucket.image("changed", 0)).unwrap().into_rgb8();
    assert_eq!((stored.dimensions(), stored.get_pixel(3, 3).0), ((32, 48), [1, 2, 3]));

    server.script(&[json_answer(r#"{"refused": "not ours"}"#)]);
    let report = run(&mut stage, &body("refused", "a mug")).await;
    let error = report.error.expect("an error");
    let told = (report.outcome, error.code.as_str(), error.message.as_str());
    assert_eq!(told, (JobOutcome::Failed, "step_refused", "http:rules: refused: not ours"));
    assert_eq!(object(&stage, "refused", "result.json"), None);
}

#[tokio::test]
async fn a_service_that_is_away_costs_no_attempt() {
    let server = HttpServer::start(&[Answer::HangUp]).await;
    let mut stage = stage(&[("http:rules", at(&server))]).await;
    let away = [
        Answer::HangUp,
        Answer::Never,
        Answer::Stall,
        Answer::status(408),
        Answer::status(425),
        Answer::status(429),
        Answer::status(500),
        Answer::status(503),
    ];
    for answer in away {
        server.script(std::slice::from_ref(&answer));
        let mut event = event(&body("waits", "a mug"));
        // Also not at the last attempt that there is.
        event["Records"][0]["attributes"]["ApproximateReceiveCount"] = json!("3");
        let report = reply::decode(&stage.handle_for_host(event).await).unwrap().pop().unwrap();
        let code = report.error.map(|error| error.code);
        assert_eq!((report.outcome, code.as_deref()), (JobOutcome::StepUnavailable, Some("step_unavailable")), "{answer:?}");
        assert_eq!(report.notifications.len(), 0, "{answer:?}");
        let measured = serde_json::to_value(report.measured.unwrap().user_steps).unwrap();
        assert_eq!(measured, json!([{ "step": "http:rules", "result": "unavailable" }]));
        assert_nothing_left(&stage, &format!("{answer:?}"));
    }
    server.script(&[json_answer(UNCHANGED)]);
    assert_eq!(run(&mut stage, &body("waits", "a mug")).await.outcome, JobOutcome::Complete);
}

#[tokio::test]
async fn an_answer_that_is_none_is_a_failed_attempt() {
    let server = HttpServer::start(&[Answer::HangUp]).await;
    let mut settings = at(&server);
    settings["max_bytes"] = json!(5_000);
    // Long enough to show that nobody asks a second time.
    settings["max_wait_ms"] = json!(60_000);
    let mut stage = stage(&[("http:rules", settings)]).await;
    let wrong = [
        (Answer::status(401), "http:rules answered 401 Unauthorized, and must answer 200"),
        (Answer::status(404), "answered 404"),
        (Answer::status(413), "answered 413"),
        (Answer::status(204), "answered 204"),
        (Answer::with(302, &[("location", "http://127.0.0.1:1/")], ""), "answered 302"),
        (Answer::Endless, "answered more than 5000 bytes"),
        (json_answer("<html>"), "must answer {\"images\": [...]}"),
        (json_answer(r#"{"images": []}"#), "as many images as it is given, 1, got 0"),
        (json_answer(r#"{"unchanged": true, "refuse": "no"}"#), "unknown field"),
    ];
    for (answer, words) in wrong {
        let asked = server.requests().len();
        server.script(std::slice::from_ref(&answer));
        let report = run(&mut stage, &body("wrong", "a mug")).await;
        let error = report.error.expect("an error");
        assert_eq!((report.outcome, error.code.as_str()), (JobOutcome::Retry, "step_failed"), "{answer:?}");
        assert!(error.message.contains(words), "{answer:?}: {}", error.message);
        assert_eq!(server.requests().len(), asked + 1, "{answer:?}");
        assert_nothing_left(&stage, words);
    }
}

#[tokio::test]
async fn a_moment_without_it_is_waited_out() {
    let server = HttpServer::start(&[Answer::HangUp, Answer::status(503), json_answer(UNCHANGED)]).await;
    let mut settings = at(&server);
    settings["max_wait_ms"] = json!(20_000);
    let mut stage = stage(&[("http:rules", settings)]).await;
    assert_eq!(run(&mut stage, &body("patient", "a mug")).await.outcome, JobOutcome::Complete);
    assert_eq!((server.requests().len(), stage.generated()), (3, 1));
}

#[test]
fn an_address_that_is_none_is_found_at_the_start() {
    for (settings, words) in [
        (json!({}), "http.own.url: must be the address of the service"),
        (json!({ "url": "rules.internal" }), "http.own.url: must be an address such as"),
        (json!({ "url": "http://127.0.0.1:1/", "timeout_ms": 0 }), "http.own.timeout_ms: must be at least 1"),
    ] {
        let (own, list) = listed(&[("http:own", settings)]);
        let made = UserSteps::new(&serde_json::from_value(own).unwrap(), &list, None);
        let error = made.map(|_| ()).expect_err(words).to_string();
        assert!(error.starts_with("workflow.user_steps.http.own") && error.contains(words), "{error}");
    }
}
