//! A queue that only holds, and fails as a test says: for a host's parts alone, where the queue itself is not what is looked at.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use atelier::host::source::{Depth, Message, Shape, Source, SourceError};
use atelier::job::trace::Trace;
use atelier::protocol::deferral::DeferReason;
use serde_json::Value;
use tokio::sync::watch;

/// What it does when it is asked to do one thing.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Does {
    Panic,
    /// It is away for so many times.
    Away(usize),
    /// It does not let us, for so many times.
    Denied(usize),
    /// It never answers.
    Hang,
}

#[derive(Default)]
pub(crate) struct Shelf {
    /// What it was sent, in order.
    pub(crate) jobs: Mutex<Vec<(String, Value)>>,
    /// Whose they are.
    pub(crate) tenants: Mutex<Vec<Option<String>>>,
    /// It takes nothing, and does not say how much it has.
    pub(crate) away: AtomicBool,
    /// While true, a sender waits.
    pub(crate) hangs: watch::Sender<bool>,
    /// Other hosts may take its messages.
    pub(crate) is_shared: AtomicBool,
    /// What was asked of the messages that it has handed out, in order.
    asked: Mutex<Vec<&'static str>>,
    /// Why a message was dead-lettered.
    reasons: Mutex<Vec<String>>,
    does: Mutex<Option<(&'static str, Does)>>,
}

impl Shelf {
    /// One that does this whenever it is asked for `action`.
    pub(crate) fn that(action: &'static str, does: Does) -> Self {
        Self { does: Mutex::new(Some((action, does))), ..Self::default() }
    }

    pub(crate) fn taken(&self) -> Vec<(String, Value)> {
        self.jobs.lock().unwrap().clone()
    }

    pub(crate) fn asked(&self) -> Vec<&'static str> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn reasons(&self) -> Vec<String> {
        self.reasons.lock().unwrap().clone()
    }

    fn check(&self, action: &'static str) -> Result<(), SourceError> {
        if self.away.load(Ordering::SeqCst) { Err(is_away(action)) } else { Ok(()) }
    }

    async fn settle(&self, action: &'static str) -> Result<(), SourceError> {
        let times = {
            let mut asked = self.asked.lock().unwrap();
            asked.push(action);
            asked.iter().filter(|other| **other == action).count()
        };
        let does = self.does.lock().unwrap().filter(|(of, _)| *of == action).map(|(_, does)| does);
        match does {
            Some(Does::Panic) => panic!("a bug in the queue's client"),
            Some(Does::Away(most)) if times <= most => Err(is_away(action)),
            Some(Does::Denied(most)) if times <= most => {
                Err(SourceError::Refused { queue: "shelf".into(), action, problem: "it is not allowed".into() })
            }
            Some(Does::Hang) => std::future::pending().await,
            Some(Does::Away(_) | Does::Denied(_)) | None => Ok(()),
        }
    }
}

fn is_away(action: &'static str) -> SourceError {
    SourceError::Unavailable { queue: "shelf".into(), action, problem: "the broker is away".into() }
}

#[async_trait]
impl Source for Shelf {
    fn name(&self) -> &'static str {
        "shelf"
    }

    fn shape(&self) -> Shape {
        Shape::Sqs
    }

    fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::SeqCst)
    }

    async fn receive(&self, _most: usize) -> Result<Vec<Message>, SourceError> {
        std::future::pending().await
    }

    async fn ack(&self, _message: &Message) -> Result<(), SourceError> {
        self.settle("ack").await
    }

    async fn retry(&self, _message: &Message, _delay: Duration) -> Result<(), SourceError> {
        self.settle("retry").await
    }

    async fn defer(&self, _message: &Message, _delay: Duration, _reason: DeferReason) -> Result<(), SourceError> {
        self.settle("defer").await
    }

    async fn release(&self, _message: &Message) -> Result<(), SourceError> {
        self.settle("release").await
    }

    async fn dead_letter(&self, _message: &Message, reason: &str) -> Result<(), SourceError> {
        self.settle("dead_letter").await?;
        self.reasons.lock().unwrap().push(reason.to_owned());
        Ok(())
    }

    async fn send(&self, job_id: &str, body: &[u8], _trace: Option<Trace>) -> Result<(), SourceError> {
        // The queue itself never ends before the test.
        let _ = self.hangs.subscribe().wait_for(|hangs| !hangs).await;
        self.check("send")?;
        self.jobs.lock().unwrap().push((job_id.to_owned(), serde_json::from_slice(body).unwrap()));
        Ok(())
    }

    async fn send_for(&self, tenant: Option<&str>, job_id: &str, body: &[u8], trace: Option<Trace>) -> Result<(), SourceError> {
        self.tenants.lock().unwrap().push(tenant.map(str::to_owned));
        self.send(job_id, body, trace).await
    }

    async fn depth(&self) -> Result<Depth, SourceError> {
        self.check("depth")?;
        Ok(Depth { waiting: self.jobs.lock().unwrap().len() as u64, oldest: None })
    }

    async fn close(&self) {
        // A queue that does not close says nothing of it.
        let _ = self.settle("close").await;
    }
}
