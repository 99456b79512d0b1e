//! `/jobs/{id}/events`: how a job goes on, as server-sent events.
//!
//! - An event is the document of `GET /jobs/{id}`, under the name of what has happened. Its id says which state it was: a caller
//!   who comes back with `Last-Event-ID` hears what is new, and nothing twice.
//! - What has passed between two looks is not sent later: the newest state counts.
//! - With `previews=true` the event `preview` has what its first image looks like so far. It has no id: who comes back gets the newest one.
//! - The steps of a job are known where it runs. At another host of the same queue it stays `accepted` until its record is there.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::{Stream, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;

use super::jobs::{self, JobPath};
use super::problem::Problem;
use super::{Http, KEEP_ALIVE};
use crate::host::job_service::StatusSnapshot;
use crate::host::jobs::JobStatus;
use crate::host::previews::Looking;
use crate::job::JobId;
use crate::protocol::report::Preview;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Between two looks of one caller, however much happens.
const PAUSE: Duration = Duration::from_millis(100);
/// How often the bucket is asked for a job that waits, since another host may have brought it to its end.
const ASK_BUCKET: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    previews: bool,
}

pub(super) async fn follow(
    State(http): State<Arc<Http>>,
    path: JobPath,
    asked: Result<Query<Asked>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = jobs::id_of(path)?;
    let Query(asked) = asked.map_err(|_| Problem::invalid("previews", "must be true or false"))?;
    // The other half of the connections is for everybody else: probes, and those who hand jobs in.
    if http.job_service.jobs.followers() >= http.settings.max_connections / 2 {
        return Err(Problem::busy("as many follow jobs here as may; ask GET /jobs/{id} instead"));
    }
    let last = headers.get(LAST_EVENT_ID).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut follower = Follower {
        changes: http.job_service.jobs.changes(),
        snapshot: http.job_service.snapshot.clone(),
        looking: if asked.previews { http.subscribe(&id) } else { None },
        http,
        id,
        sent: last,
        has_ended: false,
    };
    let first = follower.refresh().await?;
    if first.is_none() && follower.has_ended {
        // What an `EventSource` takes for the end: it does not come back.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(Sse::new(follower.events(first)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// One caller on the way along with a job.
struct Follower {
    http: Arc<Http>,
    id: JobId,
    changes: watch::Receiver<()>,
    snapshot: watch::Receiver<StatusSnapshot>,
    /// None: the caller does not want to see the job.
    looking: Option<Looking>,
    /// The id of the last event that the caller has.
    sent: Option<String>,
    has_ended: bool,
}

impl Follower {
    fn events(self, first: Option<Event>) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold((self, first), |(mut follower, first)| async move {
            let event = match first {
                Some(first) => first,
                None => follower.next().await?,
            };
            Some((Ok(event), (follower, None)))
        })
    }

    /// Waits for the next event; none once the job has ended, or nothing more will be known here.
    async fn next(&mut self) -> Option<Event> {
        while !self.has_ended {
            sleep(PAUSE).await;
            // Before the steps, of which there may be a new one at every look.
            if let Some(preview) = self.looking.as_mut().and_then(Looking::take) {
                return Some(shown(&self.id, &preview));
            }
            let mut asks_bucket = false;
            while !asks_bucket && self.sent == self.mark() {
                let can_end_elsewhere = self.sent.as_deref().is_none_or(|sent| sent.contains("queued"));
                tokio::select! {
                    changed = self.changes.changed() => changed.ok()?,
                    preview = next_preview(&mut self.looking) => return Some(shown(&self.id, &preview)),
                    () = sleep(ASK_BUCKET), if can_end_elsewhere => asks_bucket = true,
                    // A job that runs may end in time; one that waits goes to another host, where its caller is to ask.
                    draining = self.snapshot.wait_for(|snapshot| snapshot.draining), if can_end_elsewhere => {
                        draining.ok();
                        return None;
                    }
                }
            }
            match self.refresh().await {
                Ok(Some(event)) => return Some(event),
                Ok(None) => {}
                Err(problem) if problem.is_not_found() => return None,
                Err(problem) => {
                    tracing::debug!(job_id = %self.id, ?problem, "a caller who follows a job waits for the store");
                    sleep(ASK_BUCKET).await;
                }
            }
        }
        None
    }

    /// The event of what is known now, unless the caller has it.
    async fn refresh(&mut self) -> Result<Option<Event>, Problem> {
        self.changes.mark_unchanged();
        let document = jobs::current(&self.http, &self.id).await?;
        let id = id(&document);
        self.has_ended = has_ended(&document);
        if self.sent.as_ref() == Some(&id) {
            return Ok(None);
        }
        let event = Event::default().event(name(&document)).id(&id).data(document.to_string());
        self.sent = Some(id);
        Ok(Some(event))
    }

    /// The id of the event that would be sent now, as far as is known without the bucket.
    fn mark(&self) -> Option<String> {
        let jobs = &self.http.job_service.jobs;
        let known = jobs.job_status(self.id.as_str());
        if known.as_ref().is_none_or(JobStatus::has_failed) && jobs.under_way(self.id.as_str()).is_some() {
            return Some(jobs::sending(&self.id)).as_ref().map(id);
        }
        known
            .map(|known| jobs::status(self.id.as_str(), Some(known), &Value::Null))
            .map(|document| id(&jobs::placed(&self.http, &self.id, document)))
    }
}

/// Never resolves for a caller who does not want any.
async fn next_preview(looking: &mut Option<Looking>) -> Arc<Preview> {
    match looking {
        Some(looking) => looking.next().await,
        None => std::future::pending().await,
    }
}

fn shown(id: &JobId, preview: &Preview) -> Event {
    let Preview { step, steps, width_px, height_px, image } = preview;
    let body = json!({
        "job_id": id, "step": step, "steps": steps, "width": width_px, "height": height_px, "content_type": "image/jpeg", "image": image,
    });
    Event::default().event("preview").data(body.to_string())
}

/// Stays the same over restarts of the host for a job that is complete.
fn id(document: &Value) -> String {
    let state = document["state"].as_str().unwrap_or_default();
    if state == "complete" {
        return state.to_owned();
    }
    let number = document["step"].as_u64().or(document["position"].as_u64());
    format!("{}-{state}-{}", document["attempt"], number.unwrap_or_default())
}

fn has_ended(document: &Value) -> bool {
    matches!(document["state"].as_str(), Some("complete" | "failed" | "cancelled"))
}

fn name(document: &Value) -> &str {
    match document["state"].as_str().unwrap_or_default() {
        "queued" if document["attempt"] == 0 => "accepted",
        "queued" => "waiting",
        "running" if document["step"].is_null() => "started",
        "running" => "step",
        other => other,
    }
}
