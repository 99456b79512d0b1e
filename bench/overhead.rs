//! Our side of `bench/overhead.py`: the handler with an engine that paints nothing, beside the servers that both sides use.

use std::io::{BufRead as _, Write as _, stdin, stdout};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use atelier::demo::local::{self, Local};
use atelier::engine::thread::EngineThread;
use atelier::engine::{Engine, EngineError, PaintRequest, Picture, Watch};
use atelier::events::auth::Auth;
use atelier::handler::Handler;
use atelier::notify::Notifier;
use atelier::outbound::Outbound;
use atelier::store::Store;
use atelier::workflow::control::{Control, Shutdown};
use atelier::workflow::{Services, Workflow};
use serde_json::json;

/// Hands out the same noise as if it had been painted: noise, because flat colours would make encoding free.
struct NullEngine {
    rgb: Vec<u8>,
}

impl Engine for NullEngine {
    fn warm_up(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn paint(&mut self, request: &PaintRequest, _watch: &Watch) -> Result<Vec<Picture>, EngineError> {
        let (width_px, height_px) = (request.task.size.width_px(), request.task.size.height_px());
        Ok(vec![Picture { width_px, height_px, rgb: self.rgb.clone(), seed: 0 }])
    }
}

/// Prints the servers' addresses, then for every job id on a line the seconds it took.
#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let Local { config, environment, s3, webhooks, mut notices } = local::start(folder.path(), None).await?;
    tokio::spawn(async move { while notices.recv().await.is_some() {} });
    let outbound = Outbound::new(&config.outbound)?;
    let noise = (0_u32..512 * 512 * 3).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let services = Services {
        engine: EngineThread::start(|| Ok(NullEngine { rgb: noise }))?,
        model: config.model.name.clone(),
        store: Arc::new(Store::connect(&config.store, outbound.clone()).await?),
        notifier: Arc::new(Notifier::new(&config.notify, outbound)?),
        observer: Arc::new(|_, _| ()),
    };
    let mut handler = Handler {
        workflow: Workflow::new(&config.workflow.steps, services),
        defaults: config.manifest(&environment)?.defaults,
        node_id: "bench".into(),
        auth: Auth::Off,
        max_attempts: 3,
        emf_model: None,
    };
    let mut out = stdout();
    writeln!(out, "{s3} {webhooks}")?;
    let (_switch, shutdown) = Shutdown::channel();
    let control = Control::unlimited(shutdown);
    for line in stdin().lock().lines() {
        let event: serde_json::Value = serde_json::from_str(include_str!("../events/sqs-plain.json"))?;
        let body = json!({ "job_id": line?, "prompt": "nothing", "width": 512, "height": 512 }).to_string();
        let mut event = event;
        event["Records"].get_mut(0).context("the sample has a record")?["body"] = body.into();
        let started = Instant::now();
        let reply = handler.handle(event, &control).await?;
        let seconds = started.elapsed().as_secs_f64();
        ensure!(reply == json!({ "batchItemFailures": [] }), "the job failed: {reply}");
        writeln!(out, "{seconds}")?;
    }
    Ok(())
}
