//! A moderator outside, as an HTTP server that answers as it likes.

use atelier::job::capabilities::Capabilities;
use atelier::job::task::tryon::Mode;
use atelier::protocol::reply::JobOutcome;
use atelier::safety::moderator;
use atelier::safety::settings::{Settings, TryOnSettings};
use atelier::setting::Secret;
use serde_json::{Value, json};

use super::{body, images_put, object, run};
use crate::bucket::is_json;
use crate::host::HostProcess;
use crate::servers::http::{Answer, HttpServer};
use crate::stage::Stage;

const YES: &str = r#"{"allowed": true}"#;

fn json_answer(body: &str) -> Answer {
    Answer::with(200, &[("content-type", "application/json")], body)
}

/// Asks this server, and waits for no one.
fn asking(server: &HttpServer) -> impl FnOnce(Settings) -> Settings {
    let url = Some(server.url("/judge").to_string());
    |settings| {
        let token = Some(Secret::new("moderator-token"));
        Settings { moderator: moderator::Settings { url, token, timeout_ms: 300, max_wait_ms: 0 }, ..settings }
    }
}

#[tokio::test]
async fn it_gets_the_prompt_before_and_the_images_after() {
    let server = HttpServer::start(&[json_answer(YES)]).await;
    let mut stage = Stage::gated(Capabilities::Generate, asking(&server)).await;
    let mut job = body("asked", "a red mug");
    job["negative_prompt"] = json!("blue");
    job["tenant"] = json!("shop-7");
    job["num_images"] = json!(2);
    assert_eq!(run(&mut stage, &job).await.outcome, JobOutcome::Complete);
    let requests = server.requests();
    let asked: Vec<Value> = requests.iter().map(crate::servers::http::Request::json).collect();
    assert_eq!(asked.len(), 2);
    assert!(requests.iter().all(|request| request.header("authorization") == Some("Bearer moderator-token")));
    let before = json!({ "stage": "input", "job_id": "asked", "task": "generate", "tenant": "shop-7", "prompt": "a red mug",
        "negative_prompt": "blue", "images": [] });
    assert_eq!(asked[0], before);
    assert_eq!(asked[1]["stage"], "image");
    let fields: Vec<&Value> = asked[1]["images"].as_array().unwrap().iter().map(|image| &image["field"]).collect();
    assert_eq!(fields, ["image[0]", "image[1]"]);
    let record = object(&stage, "asked", "result.json").expect("a record");
    let backends: Vec<&Value> = record["safety"]["checks"].as_array().unwrap().iter().map(|check| &check["backend"]).collect();
    assert_eq!(backends, ["moderator", "moderator"]);
}

#[tokio::test]
async fn its_no_ends_a_job_before_or_after_and_no_image_leaves() {
    let no = r#"{"allowed": false, "categories": ["minors"], "scores": {"minors": 0.93456}}"#;
    let server = HttpServer::start(&[json_answer(no)]).await;
    let mut stage = Stage::gated(Capabilities::Generate, asking(&server)).await;
    let report = run(&mut stage, &body("before", "a mug")).await;
    assert_eq!((report.outcome, stage.generated()), (JobOutcome::Failed, 0));
    assert_eq!(report.error.and_then(|error| error.category).as_deref(), Some("minors"));
    assert_eq!(object(&stage, "before", "blocked.json").unwrap()["checks"][0]["scores"]["minors"], 0.935);

    server.script(&[json_answer(YES), json_answer(r#"{"allowed": false}"#)]);
    let report = run(&mut stage, &body("after", "a mug")).await;
    let error = report.error.expect("an error");
    assert_eq!((report.outcome, error.category.as_deref(), error.field), (JobOutcome::Failed, Some("not_allowed"), None));
    assert_eq!(stage.generated(), 1);
    assert_eq!(images_put(&stage), [""; 0]);
    let held = std::fs::read_dir(stage.held()).map_or(0, Iterator::count);
    assert_eq!(held, 0, "no image waits on the disk");
    // Told again out of the note: nobody is asked, and nothing is generated.
    let asked = server.requests().len();
    assert_eq!(run(&mut stage, &body("after", "a mug")).await.outcome, JobOutcome::Failed);
    assert_eq!((stage.generated(), server.requests().len()), (1, asked));
}

#[tokio::test]
async fn who_gives_no_answer_lets_nothing_through_and_costs_no_attempt() {
    let server = HttpServer::start(&[Answer::HangUp]).await;
    let mut stage = Stage::gated(Capabilities::Generate, asking(&server)).await;
    let wrong = [
        Answer::HangUp,
        Answer::Never,
        Answer::Stall,
        Answer::Endless,
        Answer::status(500),
        Answer::status(204),
        Answer::with(302, &[("location", "http://127.0.0.1:1/")], ""),
        json_answer("ok"),
        json_answer("{}"),
        json_answer(r#"{"allowed": "true"}"#),
        json_answer(r#"{"allowed": true, "categories": ["No word"]}"#),
    ];
    for answer in wrong {
        server.script(std::slice::from_ref(&answer));
        let mut job = super::event(&body("waits", "a mug"));
        // Also not at the last attempt that there is.
        job["Records"][0]["attributes"]["ApproximateReceiveCount"] = json!("3");
        let reply = stage.handle_for_host(job).await;
        let report = atelier::protocol::reply::decode(&reply).unwrap().pop().unwrap();
        assert_eq!(report.outcome, JobOutcome::ModerationUnavailable, "{answer:?}");
        assert_eq!(report.error.map(|error| error.code).as_deref(), Some("moderation_unavailable"));
        assert_eq!((report.notifications.len(), stage.generated()), (0, 0), "{answer:?}");
    }
    // After generating as well: nothing of it is stored, and the next run asks again.
    server.script(&[json_answer(YES), Answer::HangUp]);
    assert_eq!(run(&mut stage, &body("waits", "a mug")).await.outcome, JobOutcome::ModerationUnavailable);
    assert_eq!((images_put(&stage), object(&stage, "waits", "blocked.json")), (Vec::new(), None));
    server.script(&[json_answer(YES)]);
    assert_eq!(run(&mut stage, &body("waits", "a mug")).await.outcome, JobOutcome::Complete);
}

#[tokio::test]
async fn a_moment_without_it_is_waited_out() {
    let server = HttpServer::start(&[Answer::HangUp, Answer::status(503), json_answer(YES)]).await;
    let asking = asking(&server);
    let mut stage = Stage::gated(Capabilities::Generate, |settings| {
        let settings = asking(settings);
        Settings { moderator: moderator::Settings { max_wait_ms: 20_000, ..settings.moderator }, ..settings }
    })
    .await;
    assert_eq!(run(&mut stage, &body("patient", "a mug")).await.outcome, JobOutcome::Complete);
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn underwear_takes_an_operator_who_allows_it_and_a_person_who_agrees() {
    let seen = r#"{"allowed": true, "categories": ["underwear"]}"#;
    let server = HttpServer::start(&[json_answer(seen)]).await;
    for (allow_underwear, consent, allowed) in [(false, true, false), (true, false, false), (true, true, true)] {
        let asking = asking(&server);
        let mut stage = Stage::gated(Capabilities::Edit(vec![Mode::Fp8]), |settings| {
            let settings = asking(settings);
            Settings { tryon: TryOnSettings { allow_underwear, ..settings.tryon }, ..settings }
        })
        .await;
        std::fs::create_dir_all(stage.bucket.path("images")).unwrap();
        let square = image::RgbImage::from_pixel(64, 64, image::Rgb([200, 30, 30]));
        square.save(stage.bucket.path("images").join("square.png")).unwrap();
        let image = format!("s3://{}/images/square.png", atelier::demo::local::BUCKET);
        let mut job = json!({ "job_id": "swim", "task": "tryon", "person": image, "garments": [image], "resolution": "480p" });
        if consent {
            job["consent"] = json!({ "basis": "given", "reference": "form-17" });
        }
        let report = run(&mut stage, &job).await;
        let outcome = if allowed { JobOutcome::Complete } else { JobOutcome::Failed };
        assert_eq!(report.outcome, outcome, "{allow_underwear} {consent} {:?}", report.error);
        let asked = server.requests().last().unwrap().json();
        if allowed {
            assert_eq!(asked["consent"]["basis"], "given");
        }
    }
}

/// A whole host: jobs wait for a moderator that is away, as one attempt, and go on when it is back.
#[tokio::test]
async fn jobs_wait_in_their_queue_while_it_is_away() {
    let server = HttpServer::start(&[Answer::HangUp]).await;
    let url = server.url("/judge").to_string();
    let changes = [
        ("ATELIER__SAFETY__MODE", "on"),
        ("SAFETY_MODERATOR_URL", url.as_str()),
        ("ATELIER__SAFETY__MODERATOR__MAX_WAIT_MS", "0"),
        ("ATELIER__RUNTIME__MAX_ATTEMPTS", "1"),
        ("ATELIER__HOST__INITIAL_BACKOFF_MS", "100"),
    ];
    let mut host = HostProcess::start(&changes, &[]).await;
    host.wait_for("a handler is ready", 1).await;
    for id in ["one", "two"] {
        host.post("/generate", &crate::host::job(id)).await;
    }
    let waits = host.wait_for("a job waits; this is no attempt", 4).await;
    assert_eq!(waits["reason"], "moderation_unavailable");
    assert!(host.logged("the store cannot be used: nothing is received until it can").is_empty(), "the store is as it was");
    let metrics = host.get("/metrics").await;
    assert!(metrics.contains("atelier_deferred_total{reason=\"moderation_unavailable\",source=\"spool\"}"), "{metrics}");
    assert!(host.bucket.keys_put().iter().all(|key| is_json(key)));
    server.script(&[json_answer(YES)]);
    let ends = [host.backend.terminal().await, host.backend.terminal().await];
    assert!(ends.iter().all(|end| end.path.ends_with("/complete")), "{ends:?}");
    assert!(host.logged("job done").iter().all(|line| line["attempt"] == 1), "{}", host.log());
}
