//! Jobs followed as server-sent events.

use std::collections::BTreeSet;
use std::time::Duration;

use atelier::host::job_service::StatusSnapshot;
use atelier::host::jobs::State;
use atelier::protocol::control::ControlCommand;
use atelier::protocol::report::Preview;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Front, assert_problem, generate, idle, job_of};
use crate::host::eventually;
use crate::servers::DEADLINE;

const PATH: &str = "/jobs/job-1/events";

/// A stream of events that a client reads.
struct Events {
    response: Response,
    text: String,
}

impl Events {
    async fn open(front: &Front, last: Option<&str>) -> Self {
        Self::open_at(front, PATH, last).await
    }

    async fn open_at(front: &Front, path: &str, last: Option<&str>) -> Self {
        let request = front.request(Method::GET, path);
        let request = match last {
            Some(last) => request.header("last-event-id", last),
            None => request,
        };
        let response = request.send().await.unwrap();
        assert_eq!(
            (response.status(), &response.headers()["content-type"]),
            (StatusCode::OK, &"text/event-stream".parse().unwrap())
        );
        Self { response, text: String::new() }
    }

    /// Id, name and document; none at the end of the stream.
    async fn next(&mut self) -> Option<(String, String, Value)> {
        timeout(DEADLINE, async {
            loop {
                if let Some((event, rest)) = self.text.split_once("\n\n") {
                    let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
                    let event = (field("id:").to_owned(), field("event:").to_owned(), field("data:").to_owned());
                    self.text = String::from(rest);
                    if event.2.is_empty() {
                        continue;
                    }
                    return Some((event.0, event.1, serde_json::from_str(&event.2).unwrap()));
                }
                let chunk = self.response.chunk().await.unwrap()?;
                self.text.push_str(str::from_utf8(&chunk).unwrap());
            }
        })
        .await
        .expect("an event in time")
    }

    async fn expect(&mut self, name: &str, member: &str, value: Value) -> String {
        let (id, got, document) = self.next().await.unwrap_or_else(|| panic!("the stream ended before {name}"));
        assert_eq!((got.as_str(), &document[member]), (name, &value), "{document}");
        id
    }
}

#[tokio::test]
async fn a_job_tells_its_way_to_whoever_follows_it() {
    let front = Front::open().await;
    let job = job_of(&generate("job-1"));
    front.post("/generate", &generate("job-1")).await;
    let mut events = Events::open(&front, None).await;
    events.expect("accepted", "state", json!("queued")).await;
    front.jobs.start(&job, 1);
    events.expect("started", "attempt", json!(1)).await;
    front.jobs.progress("job-1", 3, 20);
    let third = events.expect("step", "step", json!(3)).await;
    // Late words of steps that were passed say nothing new.
    front.jobs.progress("job-1", 2, 20);
    front.jobs.requeue("job-1", Some(json!({ "code": "inference_failed", "message": "once" })));
    events.expect("waiting", "error", json!({ "code": "inference_failed", "message": "once" })).await;
    front.jobs.start(&job, 2);
    events.expect("started", "step", Value::Null).await;
    front.jobs.progress("job-1", 20, 20);
    let last = events.expect("step", "steps", json!(20)).await;
    assert_ne!(third, last);
    // Another connection goes on where the first was.
    let mut again = Events::open(&front, Some(&last)).await;
    front.generate(&job).await;
    front.jobs.end("job-1", State::Complete, None);
    for events in [&mut events, &mut again] {
        let (id, name, document) = events.next().await.expect("its end");
        assert_eq!((name.as_str(), &document["progress"], id.as_str()), ("complete", &json!(100), "complete"));
        assert_eq!(document["result"]["images"][0]["seed"], 42);
        let of_the_job = unsigned(front.get("/jobs/job-1").await.1);
        assert_eq!(unsigned(document), of_the_job, "it is the document of the job");
        assert!(events.next().await.is_none(), "nothing comes after the end");
    }
    // Who knows the end already is told not to come back.
    let known = front.request(Method::GET, PATH).header("last-event-id", "complete").send().await.unwrap();
    assert_eq!(known.status(), StatusCode::NO_CONTENT);
}

/// The addresses in it without what they are signed with, which depends on the second.
fn unsigned(document: Value) -> Value {
    match document {
        Value::String(text) if text.starts_with("http") => Value::String(text.split('?').next().unwrap_or_default().to_owned()),
        Value::Array(all) => all.into_iter().map(unsigned).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, unsigned(value))).collect(),
        other => other,
    }
}

#[tokio::test]
async fn a_job_that_fails_says_why_and_ends_the_stream() {
    let front = Front::open().await;
    front.post("/generate", &generate("job-1")).await;
    front.jobs.start(&job_of(&generate("job-1")), 1);
    let mut events = Events::open(&front, None).await;
    events.expect("started", "attempt", json!(1)).await;
    front.jobs.end("job-1", State::Failed, Some(json!({ "code": "inference_failed", "message": "no" })));
    events.expect("failed", "error", json!({ "code": "inference_failed", "message": "no" })).await;
    assert!(events.next().await.is_none());
}

/// Its steps are not known here; that it is complete stands in the bucket.
#[tokio::test]
async fn a_job_that_another_host_ends_is_seen_by_its_record() {
    let front = Front::open().await;
    front.post("/generate", &generate("job-1")).await;
    let mut events = Events::open(&front, None).await;
    events.expect("accepted", "step", Value::Null).await;
    front.generate(&job_of(&generate("job-1"))).await;
    events.expect("complete", "progress", json!(100)).await;
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn what_is_not_there_cannot_be_followed() {
    let front = Front::open().await;
    let (status, body) = front.get(PATH).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_problem(&body, "unknown_job", None, "job-1");
    let (status, body) = front.get("/jobs/a%2Fb/events").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_problem(&body, "invalid_request", Some("job_id"), "A-Z");
    let anonymous = front.anonymous(Method::GET, PATH).send().await.unwrap();
    assert_eq!(anonymous.status(), StatusCode::UNAUTHORIZED);
}

/// A host that ends keeps nobody waiting for a job that is not its own any more.
#[tokio::test]
async fn a_host_that_ends_lets_go_of_those_whose_job_waits() {
    let front = Front::open().await;
    front.post("/generate", &generate("job-1")).await;
    let mut events = Events::open(&front, None).await;
    events.expect("accepted", "state", json!("queued")).await;
    front.snapshot.send_replace(StatusSnapshot { draining: true, ..idle() });
    assert!(events.next().await.is_none());
}

/// Half of the connections stay for everybody else.
#[tokio::test]
async fn no_more_follow_than_leave_room_for_others() {
    let front = Front::open_with(|http| http.settings.max_connections = 8).await;
    front.post("/generate", &generate("job-1")).await;
    let mut followers = Vec::new();
    for _ in 0..4 {
        followers.push(Events::open(&front, None).await);
    }
    let (status, body) = front.get(PATH).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_problem(&body, "busy", None, "GET /jobs/{id}");
    assert_eq!(front.get("/health").await.0, StatusCode::OK);
}

/// However much happens, one caller hears of it ten times a second at most; and callers who are gone leave nothing behind.
#[tokio::test]
async fn many_who_follow_cost_little_and_leave_nothing() {
    let front = Front::open().await;
    front.post("/generate", &generate("job-1")).await;
    front.jobs.start(&job_of(&generate("job-1")), 1);
    let mut followers = Vec::new();
    for _ in 0..50 {
        followers.push(Events::open(&front, None).await);
    }
    let most = followers.len();
    for step in 1..=1_000 {
        front.jobs.progress("job-1", step, 1_000);
    }
    let mut heard = 0;
    while followers[0].next().await.expect("an event").2["step"] != 1_000 {
        heard += 1;
    }
    assert!(heard < 20, "{heard} events of a thousand steps in no time");
    assert!(front.jobs.followers() >= most);
    drop(followers);
    // A write that finds nobody ends the stream: the job's next event.
    timeout(DEADLINE, async {
        let mut step = 0;
        while front.jobs.followers() > 0 {
            step += 1;
            front.jobs.requeue("job-1", Some(json!(step)));
            front.jobs.start(&job_of(&generate("job-1")), step);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("nobody follows any more");
}

fn preview(step: u32) -> Preview {
    Preview { step, steps: 20, width_px: 16, height_px: 16, image: "/9j/".to_owned() }
}

/// What its handler is told of the job, `asked` being what it was told before.
fn told(front: &Front, asked: &mut BTreeSet<String>) -> Vec<ControlCommand> {
    front.jobs.previews.commands(&["job-1".to_owned()], asked)
}

#[tokio::test]
async fn whoever_wants_previews_gets_them_next_to_the_steps_and_no_one_else_does() {
    const LOOKING: &str = "/jobs/job-1/events?previews=true";
    let command = |is_wanted| vec![ControlCommand::Preview { job_id: "job-1".to_owned(), is_wanted }];
    let front = Front::open().await;
    let mut asked = BTreeSet::new();
    front.post("/generate", &generate("job-1")).await;
    front.jobs.start(&job_of(&generate("job-1")), 1);
    let mut blind = Events::open(&front, None).await;
    blind.expect("started", "attempt", json!(1)).await;
    assert_eq!(told(&front, &mut asked), [], "nobody looks: its handler is asked for nothing");
    let mut events = Events::open_at(&front, LOOKING, None).await;
    events.expect("started", "attempt", json!(1)).await;
    assert_eq!(told(&front, &mut asked), command(true));
    front.jobs.previews.show("job-1", preview(3));
    let expected = json!({
        "job_id": "job-1", "step": 3, "steps": 20, "width": 16, "height": 16, "content_type": "image/jpeg", "image": "/9j/",
    });
    let (id, name, document) = events.next().await.expect("a preview");
    assert_eq!(
        (id.as_str(), name.as_str(), document),
        ("", "preview", expected),
        "an id would be what the caller comes back with"
    );
    front.jobs.progress("job-1", 4, 20);
    let fourth = events.expect("step", "step", json!(4)).await;
    blind.expect("step", "step", json!(4)).await;
    // Who comes late, or comes back, sees the newest one.
    let mut again = Events::open_at(&front, LOOKING, Some(&fourth)).await;
    again.expect("preview", "step", json!(3)).await;
    front.jobs.end("job-1", State::Failed, Some(json!({ "code": "cancelled", "message": "as asked" })));
    for events in [&mut events, &mut again, &mut blind] {
        events.expect("failed", "state", json!("failed")).await;
        assert!(events.next().await.is_none());
    }
    eventually("no one looks any more", || told(&front, &mut asked) == command(false)).await.unwrap();
    let (status, body) = front.get("/jobs/job-1/events?previews=perhaps").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_problem(&body, "invalid_request", Some("previews"), "true or false");
}

#[tokio::test]
async fn a_host_may_keep_previews_from_everyone() {
    let front = Front::open_with(|http| http.settings.previews = false).await;
    front.post("/generate", &generate("job-1")).await;
    front.jobs.start(&job_of(&generate("job-1")), 1);
    let mut events = Events::open_at(&front, "/jobs/job-1/events?previews=true", None).await;
    events.expect("started", "attempt", json!(1)).await;
    assert_eq!(told(&front, &mut BTreeSet::new()), []);
    front.jobs.previews.show("job-1", preview(3));
    front.jobs.progress("job-1", 4, 20);
    events.expect("step", "step", json!(4)).await;
}
