//! One campaign: jobs handed in over HTTP, a fault among them, and the books afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use super::Row;
use crate::host::HostProcess;

/// Longer than any campaign on a loaded machine.
const WAIT_LIMIT: Duration = Duration::from_mins(8);

/// Short times, so that a fault is met several times; attempts enough that no one abandons it because of ours.
pub(crate) const DEFAULT_VALUE: [(&str, &str); 9] = [
    ("ATELIER__RUNTIME__MAX_ATTEMPTS", "100"),
    ("ATELIER__HOST__INITIAL_BACKOFF_MS", "20"),
    ("ATELIER__HOST__MAX_BACKOFF_MS", "200"),
    ("ATELIER__HOST__MAX_WAITING", "100000"),
    ("ATELIER__HOST__HANDLER__MAX_BACKOFF_MS", "200"),
    ("ATELIER__NOTIFY__ATTEMPT_TIMEOUT_MS", "300"),
    ("ATELIER__NOTIFY__MAX_ATTEMPTS", "2"),
    ("ATELIER__NOTIFY__INITIAL_BACKOFF_MS", "10"),
    ("ATELIER__STORE__MAX_ATTEMPTS", "2"),
];

pub(crate) struct Campaign {
    pub(crate) host: HostProcess,
    what: &'static str,
    client: Client,
    accepted: BTreeSet<String>,
    random: u64,
}

impl Campaign {
    pub(crate) async fn start(what: &'static str, changes: &[(&str, &str)], arguments: &[&str]) -> Self {
        let mut host = HostProcess::start(&[DEFAULT_VALUE.as_slice(), changes].concat(), arguments).await;
        host.wait_for("a handler is ready", 1).await;
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().unwrap();
        Self { host, what, client, accepted: BTreeSet::new(), random: 0x5DEE_CE66 }
    }

    /// Hands in one job, again and again until the host takes it.
    pub(crate) async fn hand_in(&mut self, id: &str) {
        self.hand_in_body(id, &body(id)).await;
    }

    /// The same with a job of one's own.
    pub(crate) async fn hand_in_body(&mut self, id: &str, body: &Value) {
        let deadline = Instant::now() + WAIT_LIMIT;
        while self.try_hand_in_body(id, body).await != Some(StatusCode::ACCEPTED) {
            assert!(Instant::now() < deadline, "{id} was never accepted\n{}", self.host.log());
            self.a_moment(20).await;
        }
    }

    /// What the host answered; none when there was no one to answer.
    pub(crate) async fn try_hand_in(&mut self, id: &str) -> Option<StatusCode> {
        self.try_hand_in_body(id, &body(id)).await
    }

    async fn try_hand_in_body(&mut self, id: &str, body: &Value) -> Option<StatusCode> {
        let address = self.host.logged("listening for HTTP").pop()?["address"].as_str()?.to_owned();
        let request = self.client.post(format!("http://{address}/generate")).json(body);
        let token = crate::stage::TOKEN;
        let status = request.header("x-internal-auth", token).send().await.ok()?.status();
        if status == StatusCode::ACCEPTED {
            self.accepted.insert(id.to_owned());
        }
        Some(status)
    }

    pub(crate) async fn hand_in_all(&mut self, jobs: usize) {
        for number in 0..jobs {
            self.hand_in(&format!("job-{number}")).await;
        }
    }

    /// A job that was put where the host finds it, behind its back.
    pub(crate) fn expect(&mut self, id: &str) {
        self.accepted.insert(id.to_owned());
    }

    /// Waits a random time, up to `most_ms`: campaigns are about faults at any moment.
    pub(crate) async fn a_moment(&mut self, most_ms: u64) {
        let dice = self.dice();
        tokio::time::sleep(Duration::from_millis(dice % most_ms.max(1))).await;
    }

    /// xorshift64: the same numbers in every run.
    pub(crate) fn dice(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// How many jobs have had their last word.
    pub(crate) fn notified(&self) -> usize {
        self.terminal_ids().len()
    }

    /// Waits until every job has had its last word and the host has nothing in flight any more.
    pub(crate) async fn acknowledge(&mut self) {
        self.all_reported().await;
        self.host.terminate();
        assert!(self.host.ended().await.success(), "{}", self.host.log());
    }

    /// Whether every job handed in so far is told its end in time.
    pub(crate) async fn are_reported_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.notified() < self.accepted.len() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.notified() >= self.accepted.len()
    }

    /// Waits for that, and ends the host: whether it was there to be ended, and ended in order. What was not told is in the books.
    pub(crate) async fn ends_well(&mut self, limit: Duration) -> bool {
        self.are_reported_within(limit).await;
        self.host.terminate();
        self.host.ended().await.success()
    }

    /// Waits until the end of every job handed in so far was reported.
    pub(crate) async fn all_reported(&self) {
        let deadline = Instant::now() + WAIT_LIMIT;
        while self.notified() < self.accepted.len() {
            assert!(
                Instant::now() < deadline,
                "{} of {} were reported\n{}",
                self.notified(),
                self.accepted.len(),
                self.host.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The books, to be called when everything is over.
    pub(crate) fn row(&self) -> Row {
        let ids = self.terminal_ids();
        let complete: BTreeSet<String> = self
            .host
            .backend
            .accepted()
            .into_iter()
            .filter(|notification| notification.path.ends_with("/complete"))
            .map(|notification| job_of(&notification.body))
            .collect();
        let unrecorded =
            complete.iter().filter(|id| !self.host.bucket.path(&format!("generations/{id}/result.json")).exists()).count();
        let untold = self.accepted.iter().filter(|id| !ids.contains_key(*id)).count();
        Row {
            what: self.what.to_owned(),
            jobs: self.accepted.len(),
            complete: complete.len(),
            lost: untold + unrecorded,
            regenerated: regenerated(&self.host.bucket.keys_put()),
            terminal_ids_off: ids.values().filter(|ids| ids.len() != 1).count(),
            hosts_down: 0,
            attempts_again: attempts_again(&self.host.bucket.keys_put()),
        }
    }

    /// The different `webhook-id`s of the terminal notifications that were taken, by job.
    fn terminal_ids(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut ids = BTreeMap::<String, BTreeSet<String>>::new();
        for notification in self.host.backend.accepted() {
            ids.entry(job_of(&notification.body)).or_default().insert(notification.webhook_id);
        }
        ids
    }
}

/// A real job, as small as the model generates.
pub(crate) fn body(id: &str) -> Value {
    json!({ "job_id": id, "prompt": "a red mug on the beach", "steps": 1, "width": 64, "height": 64, "guidance_scale": 1.0 })
}

fn job_of(body: &Value) -> String {
    body["job_id"].as_str().unwrap_or_default().to_owned()
}

/// How many attempts at a job stored images beside its first.
fn attempts_again(keys: &[String]) -> usize {
    let images = keys.iter().filter(|key| !key.ends_with("/result.json"));
    let attempts: BTreeSet<&str> = images.filter_map(|key| key.rsplit_once('/')).map(|(attempt, _)| attempt).collect();
    let jobs: BTreeSet<&str> = attempts.iter().filter_map(|attempt| attempt.rsplit_once('/')).map(|(job, _)| job).collect();
    attempts.len() - jobs.len()
}

/// How many images were stored after the record of their job was.
fn regenerated(keys: &[String]) -> usize {
    let mut recorded = BTreeSet::new();
    let mut regenerated = 0;
    for key in keys {
        match key.strip_suffix("/result.json") {
            Some(job) => drop(recorded.insert(job)),
            // An image lies in its attempt's directory, and that in the job's.
            None => regenerated += usize::from(key.rsplitn(3, '/').nth(2).is_some_and(|job| recorded.contains(job))),
        }
    }
    regenerated
}

#[test]
fn regeneration_is_seen() {
    let keys = |names: &[&str]| names.iter().map(|name| format!("/b/generations/{name}")).collect::<Vec<_>>();
    assert_eq!(
        regenerated(&keys(&["a/f-1/0.png", "a/f-2/0.png", "a/result.json", "b/f-1/0.png"])),
        0,
        "before the record it is a retry"
    );
    assert_eq!(regenerated(&keys(&["a/f-1/0.png", "a/result.json", "a/f-2/0.png", "a/f-2/1.png"])), 2);
}
