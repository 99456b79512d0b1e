//! A program of the user's own.

use std::fs;
use std::path::Path;

use atelier::image_file::notes;
use atelier::protocol::reply::{self, JobOutcome, JobReport};
use atelier::workflow::StepName;
use atelier::workflow::control::{Cancels, Control, NotificationMode, Shutdown};
use atelier::workflow::user_step::UserSteps;
use serde_json::{Value, json};

use super::{UNCHANGED, assert_nothing_left, listed, opened, png, shell, stage};
use crate::host::{eventually, is_alive};
use crate::safety::{body, event, object, run};
use crate::stage::raw;

/// As the last attempt that there is.
async fn run_last(stage: &mut crate::stage::Stage, job: &Value) -> JobReport {
    let mut event = event(job);
    event["Records"][0]["attributes"]["ApproximateReceiveCount"] = json!("3");
    let reply = stage.handle_for_host(event).await;
    reply::decode(&reply).expect("our own reply").pop().expect("one job")
}

fn pids(file: &Path) -> Vec<u32> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

#[tokio::test]
async fn the_images_and_the_job_go_in_and_other_images_come_out() {
    let place = tempfile::tempdir().unwrap();
    let at = place.path();
    let red = json!({ "images": [{ "data": png(80, 72, [200, 0, 0]) }, { "data": png(40, 30, [0, 200, 0]) }] });
    fs::write(at.join("answer"), red.to_string()).unwrap();
    let first = shell(at, "cat > first; cat answer");
    let second = shell(at, &format!("cat > second; echo '{UNCHANGED}'"));
    let mut stage = stage(&[("command:first", first), ("command:second", second)]).await;
    let mut job = body("changed", "a red mug");
    job["num_images"] = json!(2);
    job["seed"] = json!(11);
    job["tenant"] = json!("shop-7");
    job["callback"] = json!({ "url": "https://example.com/?token=s3cret", "metadata": { "order": "s3cret" } });
    let report = run(&mut stage, &job).await;
    assert_eq!(report.outcome, JobOutcome::Complete, "{:?}", report.error);

    let asked = fs::read_to_string(at.join("first")).unwrap();
    assert!(!asked.contains("s3cret") && !asked.contains("example.com"), "nothing of the callback: {asked}");
    let asked: Value = serde_json::from_str(&asked).unwrap();
    assert_eq!(asked["step"], "command:first");
    let shown = json!({ "job_id": "changed", "task": "generate", "tenant": "shop-7", "prompt": "a red mug", "negative_prompt": "",
        "seed": 11, "steps": 8, "num_images": 2, "format": "png" });
    assert_eq!(asked["job"], shown);
    let (file, image) = opened(&asked["images"][1]["data"]);
    assert_eq!((image.dimensions(), image.get_pixel(5, 5).0), ((64, 64), [12; 3]), "the image of seed 12, as it was generated");
    let mark = notes::read(&file).unwrap().xmp.expect("a copy says that a model made it");
    assert!(mark.contains("trainedAlgorithmicMedia"), "{mark}");
    let named = &asked["images"][1];
    let about = [&named["field"], &named["content_type"], &named["seed"], &named["width_px"], &named["height_px"]];
    assert_eq!(json!(about), json!(["image[1]", "image/png", 12, 64, 64]));
    // The second one sees what the first one made.
    let asked: Value = serde_json::from_slice(&fs::read(at.join("second")).unwrap()).unwrap();
    assert_eq!(opened(&asked["images"][0]["data"]).1.dimensions(), (80, 72));

    let record = object(&stage, "changed", "result.json").expect("a record");
    assert_eq!(record["user_steps"], json!(["command:first", "command:second"]));
    assert!(record["timings_ms"]["command:first"].is_u64(), "{record}");
    let sizes: Vec<_> = [0, 1].map(|n| [&record["images"][n]["width_px"], &record["images"][n]["seed"]]).to_vec();
    assert_eq!(json!(sizes), json!([[80, 11], [40, 12]]));
    let stored = image::open(stage.bucket.image("changed", 0)).unwrap().into_rgb8();
    assert_eq!((stored.dimensions(), stored.get_pixel(7, 7).0), ((80, 72), [200, 0, 0]));
    let measured = serde_json::to_value(report.measured.unwrap().user_steps).unwrap();
    let ok = |step: &str| json!({ "step": step, "result": "ok" });
    assert_eq!(measured, json!([ok("command:first"), ok("command:second")]));
}

#[tokio::test]
async fn a_job_that_is_done_is_not_shown_to_it_again() {
    let place = tempfile::tempdir().unwrap();
    let once = shell(place.path(), &format!("echo x >> runs; echo '{UNCHANGED}'"));
    let mut stage = stage(&[("command:once", once)]).await;
    for replayed in [false, true] {
        let report = run(&mut stage, &body("again", "a mug")).await;
        assert_eq!((report.outcome, report.replayed), (JobOutcome::Complete, replayed), "{:?}", report.error);
    }
    assert_eq!(fs::read_to_string(place.path().join("runs")).unwrap(), "x\n");
}

#[tokio::test]
async fn of_the_environment_it_has_the_path_alone() {
    let place = tempfile::tempdir().unwrap();
    let script = format!("cat /proc/$$/environ > environ; echo '{UNCHANGED}'");
    let mut stage = stage(&[("command:curious", shell(place.path(), &script))]).await;
    assert_eq!(run(&mut stage, &body("bare", "a mug")).await.outcome, JobOutcome::Complete);
    let environment = fs::read_to_string(place.path().join("environ")).unwrap();
    let path = crate::servers::environment("PATH").unwrap().into_string().unwrap();
    assert_eq!(environment, format!("PATH={path}\0"));
}

#[tokio::test]
async fn its_refusal_ends_the_job_with_its_reason() {
    let place = tempfile::tempdir().unwrap();
    // It need not read what it is given.
    fs::write(place.path().join("answer"), json!({ "refused": "no mugs\nhere" }).to_string()).unwrap();
    let no = shell(place.path(), "echo x >> runs; cat answer");
    let mut stage = stage(&[("command:rules", no)]).await;
    let report = run(&mut stage, &body("refused", "a mug")).await;
    assert_eq!(report.outcome, JobOutcome::Failed);
    let error = report.error.expect("an error");
    assert_eq!((error.code.as_str(), error.message.as_str()), ("step_refused", "command:rules: refused: no mugs here"));
    assert_eq!(report.notifications.len(), 1, "its caller hears of it");
    assert_nothing_left(&stage, "refused");
    assert_eq!((stage.generated(), fs::read_to_string(place.path().join("runs")).unwrap().as_str()), (1, "x\n"));
}

#[tokio::test]
async fn without_an_answer_that_counts_no_image_leaves() {
    let place = tempfile::tempdir().unwrap();
    let yes = format!("echo '{UNCHANGED}'");
    let small = json!({ "images": [{ "data": png(8, 8, [0; 3]) }] });
    let other = |script: &str, key: &str, value: u64| {
        let mut settings = shell(place.path(), script);
        settings[key] = json!(value);
        settings
    };
    let cases = [
        (shell(place.path(), "echo nonsense"), "must answer {\"images\": [...]}"),
        (shell(place.path(), "true"), "must answer"),
        (shell(place.path(), "echo '{\"images\": []}'"), "as many images as it is given, 1, got 0"),
        (shell(place.path(), &format!("echo '{small}'")), "image[0] that must have sides of 16 pixels or more"),
        (shell(place.path(), &format!("{yes}; echo why >&2; exit 3")), "ended with exit status: 3"),
        (shell(place.path(), &format!("{yes}; kill -9 $$")), "ended with signal: 9"),
        (other("yes", "max_bytes", 1_000), "answered more than 1000 bytes"),
        (other(&format!("{yes}; sleep 600"), "timeout_ms", 300), "did not end within 300 ms, and was killed"),
        (other("cat >/dev/null; sleep 600", "timeout_ms", 300), "did not end within 300 ms"),
    ];
    for (settings, words) in cases {
        let what = settings.to_string();
        let mut stage = stage(&[("command:odd", settings)]).await;
        let report = run(&mut stage, &body("odd", "a mug")).await;
        let error = report.error.expect("an error");
        assert_eq!((report.outcome, error.code.as_str()), (JobOutcome::Retry, "step_failed"), "{what}");
        let is_told =
            error.message.starts_with("command:odd ") && error.message.ends_with("; no image leaves without its answer");
        assert!(is_told && error.message.contains(words), "{what}: {}", error.message);
        let measured = serde_json::to_value(report.measured.unwrap().user_steps).unwrap();
        assert_eq!(measured, json!([{ "step": "command:odd", "result": "failed" }]));
        let last = run_last(&mut stage, &body("odd", "a mug")).await;
        assert_eq!((last.outcome, last.notifications.len()), (JobOutcome::DeadLetter, 1), "{what}");
        assert_nothing_left(&stage, &what);
    }
}

#[tokio::test]
async fn what_it_says_to_its_standard_error_holds_up_nothing() {
    let place = tempfile::tempdir().unwrap();
    let script = format!("head -c 3000000 /dev/zero | tr '\\0' x >&2; echo '{UNCHANGED}'");
    let mut stage = stage(&[("command:chatty", shell(place.path(), &script))]).await;
    let report = run(&mut stage, &body("chatty", "a mug")).await;
    assert_eq!(report.outcome, JobOutcome::Complete, "{:?}", report.error);
}

#[tokio::test]
async fn all_that_it_has_started_ends_with_it() {
    let place = tempfile::tempdir().unwrap();
    let pids_file = place.path().join("pids");
    // Too late, with a child of its own.
    let mut late = shell(place.path(), "echo $$ >> pids; sleep 600 & echo $! >> pids; wait");
    late["timeout_ms"] = json!(500);
    let mut too_late = stage(&[("command:late", late)]).await;
    assert_eq!(run(&mut too_late, &body("late", "a mug")).await.outcome, JobOutcome::Retry);
    // In time, with a child that is left behind, and holds its output open.
    let script = format!("echo $$ >> pids; sleep 600 & echo $! >> pids; echo '{UNCHANGED}'");
    let mut left = stage(&[("command:left", shell(place.path(), &script))]).await;
    let report = run(&mut left, &body("left", "a mug")).await;
    assert_eq!(report.outcome, JobOutcome::Complete, "{:?}", report.error);
    let started = pids(&pids_file);
    assert_eq!(started.len(), 4);
    eventually("all are dead", || started.iter().all(|pid| !is_alive(*pid))).await.unwrap();
}

#[tokio::test]
async fn a_cancel_ends_it_and_the_job() {
    let place = tempfile::tempdir().unwrap();
    let pids_file = place.path().join("pids");
    let slow = shell(place.path(), "echo $$ >> pids; sleep 600 & echo $! >> pids; wait");
    let stage = stage(&[("command:slow", slow)]).await;
    let (cancels, cancelled) = Cancels::channel();
    let (_switch, shutdown) = Shutdown::channel();
    let control = Control::unlimited(shutdown).notification_mode_by(NotificationMode::Later).cancellable(cancelled);
    let event = raw(&event(&body("cancelled", "a mug")));
    let handled = stage.handler.handle(&event, &control);
    let cancel = async {
        eventually("it runs", || pids(&pids_file).len() == 2).await.unwrap();
        cancels.cancel("cancelled");
    };
    let (reply, ()) = tokio::join!(handled, cancel);
    let report = reply::decode(&reply.unwrap()).unwrap().pop().unwrap();
    assert_eq!(report.error.map(|error| error.code).as_deref(), Some("cancelled"));
    eventually("all are dead", || pids(&pids_file).iter().all(|pid| !is_alive(*pid))).await.unwrap();
    assert_nothing_left(&stage, "cancelled");
}

#[test]
fn a_program_that_cannot_be_run_is_found_at_the_start() {
    let place = tempfile::tempdir().unwrap();
    let text = place.path().join("text");
    fs::write(&text, "x").unwrap();
    for (settings, words) in [
        (json!({}), "command.own.program: must be a list"),
        (json!({ "program": [""] }), "command.own.program: must be a list"),
        (json!({ "program": ["no-such-program"] }), "\"no-such-program\" is not in PATH (/usr/bin:/bin)"),
        (json!({ "program": ["/no/such/program"] }), "\"/no/such/program\" is no file that can be run"),
        (json!({ "program": [text] }), "is no file that can be run"),
        (json!({ "program": ["sh"], "timeout_ms": 0 }), "command.own.timeout_ms: must be at least 1"),
    ] {
        let (own, list) = listed(&[("command:own", settings)]);
        let made = UserSteps::new(&serde_json::from_value(own).unwrap(), &list, Some("/usr/bin:/bin"));
        let error = made.map(|_| ()).expect_err(words).to_string();
        assert!(error.starts_with("workflow.user_steps.command.own") && error.contains(words), "{error}");
    }
    // What is not listed is nobody's business.
    let (own, _) = listed(&[("command:own", json!({}))]);
    let made = UserSteps::new(&serde_json::from_value(own).unwrap(), &StepName::BUILT_IN, None);
    assert!(made.is_ok());
}
