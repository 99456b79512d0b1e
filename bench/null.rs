//! The function with an engine that generates nothing: what is left is everything else.

use std::sync::Arc;

use anyhow::Result;
use atelier::config::{Config, Environment};
use atelier::content_credentials::ready;
use atelier::events::auth::Auth;
use atelier::handler::Handler;
use atelier::job::capabilities::Capabilities;
use atelier::job::segmenter::Segmenter;
use atelier::job::upscalers::Upscalers;
use atelier::notify::Notifier;
use atelier::outbound::Outbound;
use atelier::safety::gate::Gate;
use atelier::store::Store;
use atelier::store::held_results::HeldResults;
use atelier::workflow::infer::Observer;
use atelier::workflow::store::ModelOrigin;
use atelier::workflow::user_step::UserSteps;
use atelier::workflow::watermark::TextStyle;
use atelier::workflow::{Services, Workflow};
use atelier_engine::thread::EngineThread;
use atelier_engine::{Engine, EngineError, Generated, Image, QueuedRequest, Request};

const MAX_PIXELS: u32 = 512 * 512;

/// Hands out the same noise as if it had been generated: noise, because flat colours would make encoding free.
struct NullEngine {
    rgb: Vec<u8>,
}

impl Engine for NullEngine {
    fn warm_up(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn generate_together(&mut self, orders: &[QueuedRequest]) -> Result<Vec<Generated>, EngineError> {
        let generated = orders.iter().map(|QueuedRequest { request, .. }| {
            let (width_px, height_px) = match request {
                Request::Generate(request) => (request.width_px, request.height_px),
                Request::Edit(request) => (request.width_px, request.height_px),
            };
            let rgb = self.rgb.iter().copied().take((width_px * height_px * 3) as usize).collect();
            Ok(vec![Image { width_px, height_px, rgb, seed: 0 }])
        });
        Ok(generated.collect())
    }
}

/// The function of this configuration, for images of 512x512 at most.
pub(crate) async fn handler(config: &Config, environment: &Environment) -> Result<Handler> {
    let outbound = Outbound::new(&config.outbound)?;
    let rgb = (0..MAX_PIXELS * 3).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let services = Services {
        engine: EngineThread::start(|| Ok(NullEngine { rgb }))?,
        model: config.model.name.clone(),
        origin: ModelOrigin::default(),
        upscalers: Upscalers::default(),
        segmenter: Segmenter::default(),
        capabilities: Capabilities::Generate,
        preprocess: config.workflow.preprocess,
        postprocess: config.workflow.postprocess,
        user_steps: UserSteps::default(),
        text_style: TextStyle::load(&config.workflow.watermark).map_err(anyhow::Error::msg)?,
        encode: config.workflow.encode,
        gate: Arc::new(Gate::new(&config.safety, None)?),
        signing: ready::signing(&config.content_credentials)?.map(Arc::new),
        store: Arc::new(Store::connect(&config.store, outbound.clone()).await?),
        held_results: HeldResults::new(&config.store),
        notifier: Arc::new(Notifier::new(&config.notify, outbound)?),
        observer: Observer { step: Arc::new(|_, _| ()), previews: None },
    };
    Ok(Handler {
        workflow: Workflow::new(&config.workflow.steps, services),
        defaults: config.manifest(environment)?.defaults,
        capabilities: Capabilities::Generate,
        upscalers: Upscalers::default(),
        segmenter: Segmenter::default(),
        node_id: "bench".into(),
        auth: Auth::Off,
        max_attempts: 3,
        keep_refused: atelier::handler::KeepRefused::default(),
        max_batch_px: 0,
        emf_model: None,
    })
}
