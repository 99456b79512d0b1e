//! The steps of `examples/steps/`, as they stand.

use std::path::Path;

use atelier::protocol::reply::JobOutcome;
use serde_json::json;

use super::stage;
use crate::examples::Receiver;
use crate::safety::{body, run};
use crate::servers::http::{Answer, HttpServer};
use crate::servers::python_or_skip;

#[tokio::test]
async fn the_border_is_put_around_every_image() {
    let Some(venv) = python_or_skip("examples/steps/border.py") else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/steps/border.py");
    let program = json!({ "program": [venv.join("bin/python"), script, "8"] });
    let mut stage = stage(&[("command:border", program)]).await;
    let mut job = body("framed", "a mug");
    job["num_images"] = json!(2);
    job["seed"] = json!(40);
    let report = run(&mut stage, &job).await;
    assert_eq!(report.outcome, JobOutcome::Complete, "{:?}", report.error);
    for number in 0..2 {
        let image = image::open(stage.bucket.image("framed", number)).unwrap().into_rgb8();
        assert_eq!(image.dimensions(), (80, 80));
        let grey = 40 + number as u8;
        for (x, y, expected) in [(0, 0, 255), (79, 40, 255), (7, 7, 255), (8, 8, grey), (71, 71, grey), (72, 71, 255)] {
            assert_eq!(image.get_pixel(x, y).0, [expected; 3], "image {number} at {x}, {y}");
        }
    }
}

#[tokio::test]
async fn the_rules_are_those_of_the_moderator() {
    let Some(venv) = python_or_skip("examples/steps/rules.py") else { return };
    let moderator = HttpServer::start(&[Answer::with(200, &[], r#"{"allowed": true}"#)]).await;
    let url = moderator.url("/judge").to_string();
    let variables = [("MODERATOR_URL", url.as_str()), ("STEP_TOKEN", "step-token"), ("NO_PROXY", "127.0.0.1")];
    let rules = Receiver::start(&venv.join("bin/python"), "steps/rules.py", &variables);
    let settings = |token: &str| json!({ "url": rules.url, "token": token, "max_wait_ms": 0 });
    let mut allowed = stage(&[("http:rules", settings("step-token"))]).await;
    assert_eq!(run(&mut allowed, &body("allowed", "a mug")).await.outcome, JobOutcome::Complete);
    let asked = moderator.requests().remove(0).json();
    assert_eq!((&asked["stage"], &asked["images"][0]["field"]), (&json!("image"), &json!("image[0]")));
    moderator.script(&[Answer::with(200, &[], r#"{"allowed": false, "categories": ["weapons"]}"#)]);
    let report = run(&mut allowed, &body("refused", "a mug")).await;
    let message = report.error.expect("an error").message;
    assert_eq!((report.outcome, message.as_str()), (JobOutcome::Failed, "http:rules: refused: the moderator found weapons"));
    moderator.script(&[Answer::HangUp]);
    assert_eq!(run(&mut allowed, &body("waits", "a mug")).await.outcome, JobOutcome::StepUnavailable);
    let mut stranger = stage(&[("http:rules", settings("another"))]).await;
    let report = run(&mut stranger, &body("stranger", "a mug")).await;
    assert!(report.error.is_some_and(|error| error.code == "step_failed" && error.message.contains("answered 401")));
}
