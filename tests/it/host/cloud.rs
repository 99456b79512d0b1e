//! The cloud's hooks against real HTTP servers on loopback: ECS task protection, EC2 interruption notices.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atelier::host::cloud::interruption::{self, Interruption, Notice};
use atelier::host::cloud::protection::{self, Protection};
use atelier::host::job_service::{Model, ModelStatus, StatusSnapshot};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::servers::DEADLINE;
use crate::servers::http::{Answer, HttpServer};

fn snapshot(running: usize) -> StatusSnapshot {
    let running = (0..running).map(|n| format!("job-{n}")).collect();
    StatusSnapshot { models: vec![ModelStatus { model: Model::Hot, free: 1 }], running, in_flight: 0, draining: false }
}

fn agreed() -> Answer {
    Answer::with(200, &[], &json!({ "protection": { "ProtectionEnabled": true, "TaskArn": "arn:aws:ecs:…" } }).to_string())
}

struct Task {
    agent: HttpServer,
    jobs: watch::Sender<StatusSnapshot>,
    watching: tokio::task::JoinHandle<()>,
}

/// A host of which nothing but its protection runs.
async fn task(script: &[Answer], changes: protection::Settings) -> Task {
    let agent = HttpServer::start(script).await;
    let ecs_agent_uri = Some(agent.url("/api/0a1b2c").to_string());
    let protection =
        Protection::new(&protection::Settings { ecs_agent_uri, ..changes }).expect("settings").expect("inside ECS");
    let (jobs, seen) = watch::channel(snapshot(0));
    Task { agent, jobs, watching: tokio::spawn(protection.watch(seen)) }
}

impl Task {
    async fn notified(&self, count: usize) -> Vec<Value> {
        self.agent.wait_for(count).await.iter().map(|request| request.json()["ProtectionEnabled"].clone()).collect()
    }

    /// Ends the host and waits for its last word.
    async fn end(self) -> Vec<Value> {
        drop(self.jobs);
        timeout(DEADLINE, self.watching).await.expect("in time").expect("no panic");
        self.agent.requests().iter().map(|request| request.json()["ProtectionEnabled"].clone()).collect()
    }
}

#[tokio::test]
async fn a_task_is_protected_while_a_job_runs() {
    let task = task(&[agreed()], protection::Settings::default()).await;
    task.jobs.send_replace(snapshot(1));
    assert_eq!(task.notified(1).await, [true]);
    task.jobs.send_replace(snapshot(2));
    task.jobs.send_replace(snapshot(0));
    let gap = timeout(Duration::from_millis(100), task.agent.wait_for(2)).await;
    assert!(gap.is_err(), "one job follows the other: the agent need not hear of the gap");
    task.jobs.send_replace(snapshot(1));
    task.jobs.send_replace(snapshot(0));
    assert_eq!(task.notified(2).await, [true, false]);
    task.jobs.send_replace(snapshot(1));
    assert_eq!(task.notified(3).await, [true, false, true]);

    let first = &task.agent.requests()[0];
    assert_eq!((first.method.as_str(), first.path.as_str()), ("PUT", "/api/0a1b2c/task-protection/v1/state"));
    assert_eq!(first.header("content-type"), Some("application/json"));
    assert_eq!(first.json(), json!({ "ProtectionEnabled": true, "ExpiresInMinutes": 60 }));
    assert_eq!(task.agent.requests()[1].json(), json!({ "ProtectionEnabled": false }));
    assert_eq!(task.end().await, [true, false, true, false], "nothing stays protected when the host has ended");
}

#[tokio::test]
async fn a_protection_is_renewed_before_it_expires() {
    let task = task(&[agreed()], protection::Settings { renew_ms: 20, ..Default::default() }).await;
    task.jobs.send_replace(snapshot(1));
    assert_eq!(task.notified(3).await[..3], [true, true, true]);
}

#[tokio::test]
async fn without_a_job_the_agent_is_left_alone() {
    let task = task(&[agreed()], protection::Settings::default()).await;
    assert!(task.end().await.is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn an_agent_that_fails_is_tried_again_and_the_log_says_so_once() {
    let log = Log::default();
    let written = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_writer(move || written.clone()).with_max_level(tracing::Level::INFO).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let denied = json!({ "error": { "Code": "AccessDeniedException", "Message": "not authorized" } }).to_string();
    let refused = json!({ "failure": { "Reason": "DEPLOYMENT_BLOCKED", "Detail": "blocked" } }).to_string();
    let script = [Answer::with(400, &[], &denied), Answer::with(200, &[], &refused), Answer::HangUp, agreed()];
    let task = task(&script, protection::Settings { pause_ms: 10, ..Default::default() }).await;
    task.jobs.send_replace(snapshot(1));
    assert_eq!(task.notified(4).await, [true, true, true, true]);
    task.end().await;
    let text = log.text();
    assert_eq!(text.matches("task protection was not set").count(), 1, "{text}");
    assert!(text.contains("the ECS agent answered 400 Bad Request AccessDeniedException: not authorized"), "{text}");
    assert_eq!(text.matches("works again").count(), 1, "{text}");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panic under the lock").clone()).expect("text")
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic under the lock").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn wrong_settings_are_named() {
    let outside = Protection::new(&protection::Settings::default()).expect("no ECS is fine");
    assert!(outside.is_none());
    let wrong = [
        (protection::Settings { expires_minutes: 2_881, ..Default::default() }, "host.protection.expires_minutes"),
        (protection::Settings { expires_minutes: 20, ..Default::default() }, "host.protection.renew_ms"),
        (
            protection::Settings { ecs_agent_uri: Some("169.254.170.2/api".into()), ..Default::default() },
            "host.protection.ecs_agent_uri",
        ),
    ];
    for (settings, setting) in wrong {
        assert_eq!(Protection::new(&settings).err().expect(setting).setting, setting);
    }
}

async fn metadata(script: &[Answer]) -> (HttpServer, Interruption) {
    let server = HttpServer::start(script).await;
    let endpoint = Some(server.url("").to_string());
    let settings = interruption::Settings { endpoint, poll_ms: 10, ..Default::default() };
    let found = Interruption::find(&settings).await.expect("settings").expect("an endpoint that was named is used");
    (server, found)
}

fn notice() -> Answer {
    Answer::with(200, &[], &json!({ "action": "terminate", "time": "2026-11-25T08:22:00Z" }).to_string())
}

async fn noticed(interruption: Interruption) -> Notice {
    timeout(DEADLINE, interruption.notice()).await.expect("a notice in time")
}

#[tokio::test]
async fn a_notice_is_seen_when_it_appears() {
    let script = [Answer::with(200, &[], "token-1"), Answer::status(404), Answer::status(404), notice()];
    let (server, interruption) = metadata(&script).await;
    let expected = Notice { action: "terminate".into(), time: Some("2026-11-25T08:22:00Z".into()) };
    assert_eq!(noticed(interruption).await, expected);
    let requests = server.requests();
    let lines: Vec<_> = requests.iter().map(|request| format!("{} {}", request.method, request.path)).collect();
    let look = "GET /latest/meta-data/spot/instance-action";
    assert_eq!(lines, ["PUT /latest/api/token", look, look, look]);
    assert_eq!(requests[0].header("x-aws-ec2-metadata-token-ttl-seconds"), Some("21600"));
    assert!(requests[1..].iter().all(|request| request.header("x-aws-ec2-metadata-token") == Some("token-1")));
}

#[tokio::test]
async fn tokens_that_run_out_and_answers_that_fail_do_not_hide_a_notice() {
    let script = [
        Answer::status(500),
        Answer::HangUp,
        Answer::with(200, &[], "token-1"),
        Answer::status(404),
        Answer::status(401),
        Answer::with(200, &[], "token-2"),
        Answer::status(503),
        Answer::with(200, &[], "token-3"),
        Answer::with(200, &[], "no JSON"),
        Answer::with(200, &[], "token-4"),
        Answer::with(200, &[], "{\"action\": \"hibernate\"}"),
    ];
    let (server, interruption) = metadata(&script).await;
    assert_eq!(noticed(interruption).await, Notice { action: "hibernate".into(), time: None });
    assert_eq!(server.requests().len(), script.len());
}

#[tokio::test]
async fn where_the_metadata_are_disabled_nothing_is_asked() {
    for word in ["true", "True"] {
        let settings = interruption::Settings { metadata_disabled: Some(word.into()), ..Default::default() };
        assert!(Interruption::find(&settings).await.expect("settings").is_none());
    }
    let settings = interruption::Settings { endpoint: Some("169.254.169.254".into()), ..Default::default() };
    let error = Interruption::find(&settings).await.expect_err("no address");
    assert_eq!(error.setting, "host.interruption.endpoint");
}
