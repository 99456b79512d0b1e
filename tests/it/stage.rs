//! A whole function in this process with a scripted engine: real S3 protocol, real HTTP notifications, no model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use atelier::config::{self, Config, Environment};
use atelier::content_credentials::signing::Signing;
use atelier::demo::s3;
use atelier::events::auth::Auth;
use atelier::handler::{Handler, KeepRefused};
use atelier::job::capabilities::Capabilities;
use atelier::job::request::Defaults;
use atelier::job::task::ModelName;
use atelier::job::task::tryon::Mode;
use atelier::notify::Notifier;
use atelier::outbound::Outbound;
use atelier::safety::gate::Gate;
use atelier::setting::Secret;
use atelier::store::Store;
use atelier::store::held_results::{self, HeldResults};
use atelier::workflow::control::{Control, NotificationMode, Shutdown};
use atelier::workflow::infer::Observer;
use atelier::workflow::store::ModelOrigin;
use atelier::workflow::user_step::UserSteps;
use atelier::workflow::watermark::TextStyle;
use atelier::workflow::{Services, Workflow};
use atelier::{notify, outbound, safety, store};
use atelier_engine::steering::ImagePrompt;
use atelier_engine::{EditRequest, Engine, EngineError, Generated, Image, InitImage, LoraFile, QueuedRequest, Request};
use futures::future::join_all;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use tempfile::TempDir;

use crate::backend::Backend;
use crate::bucket::Bucket;
use crate::companions::{LoadedFixtures, classes, listed, started};
use crate::requests::contract;

pub(crate) const TOKEN: &str = "demo-token-demo-token-demo-token";

/// What the scripted engine does next.
pub(crate) type Script = fn() -> Result<(), EngineError>;

/// Generates the seed's last byte, or what it is to start from or held to, unless its script says otherwise, and counts.
#[derive(Clone, Default)]
struct ScriptedEngine {
    script: Arc<Mutex<Vec<Script>>>,
    generated: Arc<AtomicU32>,
    batches: Arc<Mutex<Vec<usize>>>,
    edits: Arc<Mutex<Vec<EditRequest>>>,
    loras: Arc<Mutex<Vec<LoraFile>>>,
    modes: Arc<Mutex<Vec<Option<String>>>>,
    image_prompts: Arc<Mutex<Vec<ImagePrompt>>>,
}

impl Engine for ScriptedEngine {
    fn warm_up(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn generate_together(&mut self, orders: &[QueuedRequest]) -> Result<Vec<Generated>, EngineError> {
        self.batches.lock().unwrap().push(orders.len());
        Ok(orders.iter().map(|order| self.generate_one(order)).collect())
    }
}

impl ScriptedEngine {
    fn generate_one(&self, QueuedRequest { request, watch }: &QueuedRequest) -> Generated {
        let next = self.script.lock().unwrap().pop();
        next.map_or(Ok(()), |act| act())?;
        let mut shown = None;
        let (steps, size, seeds) = match request {
            Request::Generate(generate) => {
                self.loras.lock().unwrap().extend(generate.loras.iter().cloned());
                self.modes.lock().unwrap().push(generate.mode.clone());
                self.image_prompts.lock().unwrap().extend(generate.image_prompts.iter().cloned());
                let control = generate.controls.first().map(|control| control.image.to_vec());
                shown = generate.start.as_ref().map(shown_of).or(control);
                (generate.steps, (generate.width_px, generate.height_px), generate.seeds.clone())
            }
            Request::Edit(edit) => {
                self.edits.lock().unwrap().push(edit.clone());
                (edit.steps, (edit.width_px, edit.height_px), edit.seeds.clone())
            }
        };
        for step in 1..=steps {
            watch.step_done(step, steps)?;
        }
        self.generated.fetch_add(1, Ordering::SeqCst);
        let (width_px, height_px) = size;
        let images = seeds.into_iter().map(|seed| {
            let rgb = shown.clone().unwrap_or_else(|| vec![seed as u8; (width_px * height_px * 3) as usize]);
            Image { width_px, height_px, rgb, seed }
        });
        Ok(images.collect())
    }
}

/// A mask where there is one, else the image.
fn shown_of(InitImage { rgb, mask }: &InitImage) -> Vec<u8> {
    mask.as_ref().map_or_else(|| rgb.to_vec(), |mask| mask.iter().flat_map(|grey| [*grey; 3]).collect())
}

pub(crate) struct Stage {
    pub(crate) handler: Handler,
    pub(crate) bucket: Bucket,
    pub(crate) backend: Backend,
    /// What the handler sends notifications with, as a host would have it too.
    pub(crate) notifier: Arc<Notifier>,
    generated: Arc<AtomicU32>,
    script: Arc<Mutex<Vec<Script>>>,
    batches: Arc<Mutex<Vec<usize>>>,
    edits: Arc<Mutex<Vec<EditRequest>>>,
    loras: Arc<Mutex<Vec<LoraFile>>>,
    modes: Arc<Mutex<Vec<Option<String>>>>,
    image_prompts: Arc<Mutex<Vec<ImagePrompt>>>,
    cache: TempDir,
}

fn configured(change: impl FnOnce(&mut config::Workflow)) -> config::Workflow {
    let mut configured = Config::parse("test", "", &Environment::new()).unwrap().workflow;
    change(&mut configured);
    configured
}

fn user_steps(configured: &config::Workflow) -> UserSteps {
    let path = crate::servers::environment("PATH").and_then(|path| path.into_string().ok());
    UserSteps::new(&configured.user_steps, &configured.steps, path.as_deref()).expect("steps that can be run")
}

fn store_settings(bucket: &Bucket, cache: &Path) -> store::Settings {
    store::Settings {
        bucket: atelier::demo::local::BUCKET.to_owned(),
        region: Some("us-east-1".to_owned()),
        endpoint_url: Some(format!("http://{}", bucket.address)),
        force_path_style: true,
        access_key_id: Some(s3::ACCESS_KEY_ID.to_owned()),
        secret_access_key: Some(Secret::new(s3::SECRET_ACCESS_KEY)),
        max_attempts: 1,
        cache: store::cache::Settings { directory: cache.to_owned(), ..store::cache::Settings::default() },
        held_results: held_results::Settings { directory: cache.join("held"), ..held_results::Settings::default() },
        ..store::Settings::default()
    }
}

fn notify_settings(backend: &Backend) -> notify::Settings {
    notify::Settings {
        backend_api_url: Some(format!("http://{}", backend.address)),
        internal_api_token: Some(Secret::new(TOKEN)),
        max_attempts: 2,
        initial_backoff_ms: 1,
        max_backoff_ms: 2,
        ..notify::Settings::default()
    }
}

impl Stage {
    pub(crate) async fn set() -> Self {
        Self::with(Capabilities::Generate, |_| ()).await
    }

    /// A function whose model can do this, with its configuration changed.
    pub(crate) async fn with(capabilities: Capabilities, change: impl FnOnce(&mut config::Workflow)) -> Self {
        Self::reaching(&outbound::Settings::default(), capabilities, change).await
    }

    /// A function whose images can be seen at this address.
    pub(crate) async fn public(base_url: Option<&str>) -> Self {
        Self::build(
            &outbound::Settings::default(),
            (None, base_url),
            |as_is| as_is,
            Capabilities::Generate,
            LoadedFixtures::default(),
            |_| (),
        )
        .await
    }

    /// The same, whose images are signed.
    pub(crate) async fn signing(
        signing: Signing,
        capabilities: Capabilities,
        change: impl FnOnce(&mut config::Workflow),
    ) -> Self {
        Self::build(
            &outbound::Settings::default(),
            (Some(signing), None),
            |as_is| as_is,
            capabilities,
            LoadedFixtures::default(),
            change,
        )
        .await
    }

    /// The same, with another section `safety`.
    pub(crate) async fn gated(
        capabilities: Capabilities,
        gated: impl FnOnce(safety::settings::Settings) -> safety::settings::Settings,
    ) -> Self {
        Self::build(&outbound::Settings::default(), (None, None), gated, capabilities, LoadedFixtures::default(), |_| ()).await
    }

    /// The same, with URLs from callers that may go where `reach` says.
    pub(crate) async fn reaching(
        reach: &outbound::Settings,
        capabilities: Capabilities,
        change: impl FnOnce(&mut config::Workflow),
    ) -> Self {
        Self::build(reach, (None, None), |as_is| as_is, capabilities, LoadedFixtures::default(), change).await
    }

    /// A function that has these of the fixtures' upscalers, by their factors.
    pub(crate) async fn upscaling(
        signing: Option<Signing>,
        capabilities: Capabilities,
        upscalers: &[(&str, u32)],
        change: impl FnOnce(&mut config::Workflow),
    ) -> Self {
        let fixtures = LoadedFixtures { upscalers, segmenter: None };
        Self::build(&outbound::Settings::default(), (signing, None), |as_is| as_is, capabilities, fixtures, change).await
    }

    /// A try-on function that has this one of the fixtures' segmenters.
    pub(crate) async fn segmenting(name: &str, change: impl FnOnce(&mut config::Workflow)) -> Self {
        let fixtures = LoadedFixtures { upscalers: &[], segmenter: Some(name) };
        let capabilities = Capabilities::Edit(vec![Mode::Fp8]);
        Self::build(&outbound::Settings::default(), (None, None), |as_is| as_is, capabilities, fixtures, change).await
    }

    async fn build(
        reach: &outbound::Settings,
        (signing, public_base_url): (Option<Signing>, Option<&str>),
        gated: impl FnOnce(safety::settings::Settings) -> safety::settings::Settings,
        capabilities: Capabilities,
        fixtures: LoadedFixtures<'_>,
        change: impl FnOnce(&mut config::Workflow),
    ) -> Self {
        let bucket = Bucket::start().await;
        let backend = Backend::start().await;
        let cache = tempfile::tempdir().unwrap();
        let outbound = Outbound::new(reach).unwrap();
        let public_base_url = public_base_url.map(str::to_owned);
        let settings = store::Settings { public_base_url, ..store_settings(&bucket, cache.path()) };
        let held_results = HeldResults::new(&settings);
        let store = Arc::new(Store::connect(&settings, outbound.clone()).await.unwrap());
        let notifier = Arc::new(Notifier::new(&notify_settings(&backend), outbound).unwrap());
        let scripted = ScriptedEngine::default();
        let engine = started(scripted.clone(), &fixtures);
        let gate = gate(&gated(Config::parse("test", "", &Environment::new()).unwrap().safety));
        let configured = configured(change);
        let upscalers = listed(fixtures.upscalers, configured.upscale.max_pixels);
        let segmenter = fixtures.segmenter.map(classes).unwrap_or_default();
        let services = Services {
            engine,
            model: ModelName::new("sd15").unwrap(),
            origin: ModelOrigin { licence: Some("Apache-2.0".to_owned()), ..ModelOrigin::default() },
            capabilities: capabilities.clone(),
            upscalers: upscalers.clone(),
            segmenter: segmenter.clone(),
            preprocess: configured.preprocess,
            postprocess: configured.postprocess,
            user_steps: user_steps(&configured),
            text_style: TextStyle::load(&configured.watermark).unwrap(),
            encode: configured.encode,
            gate,
            signing: signing.map(Arc::new),
            store,
            held_results,
            notifier: notifier.clone(),
            observer: Observer { step: Arc::new(|_, _| ()), previews: None },
        };
        let handler = Handler {
            workflow: Workflow::new(&configured.steps, services),
            defaults: Defaults { edits_without_modes: capabilities == Capabilities::EditFlow, ..contract() },
            capabilities,
            upscalers,
            segmenter,
            node_id: "test".to_owned(),
            auth: Auth::Token(Secret::new(TOKEN)),
            max_attempts: 3,
            keep_refused: KeepRefused::default(),
            max_batch_px: 4 * 512 * 512,
            emf_model: None,
        };
        let ScriptedEngine { script, generated, batches, edits, loras, modes, image_prompts } = scripted;
        Self { handler, bucket, backend, notifier, generated, script, batches, edits, loras, modes, image_prompts, cache }
    }

    /// What the engine does at its next generation instead of succeeding.
    pub(crate) fn next_generation(&self, script: Script) {
        self.script.lock().unwrap().push(script);
    }

    pub(crate) fn generated(&self) -> u32 {
        self.generated.load(Ordering::SeqCst)
    }

    /// Where results wait for the store.
    pub(crate) fn held(&self) -> PathBuf {
        self.cache.path().join("held")
    }

    /// Where copies of inputs are.
    pub(crate) fn inputs(&self) -> PathBuf {
        self.cache.path().join("0")
    }

    /// What the engine was asked to generate over.
    pub(crate) fn edits(&self) -> Vec<EditRequest> {
        self.edits.lock().unwrap().clone()
    }

    /// The LoRA files that the engine was given.
    pub(crate) fn loras(&self) -> Vec<LoraFile> {
        self.loras.lock().unwrap().clone()
    }

    /// The modes of the requests from text.
    pub(crate) fn modes(&self) -> Vec<Option<String>> {
        self.modes.lock().unwrap().clone()
    }

    /// Of all requests, one after the other.
    pub(crate) fn image_prompts(&self) -> Vec<ImagePrompt> {
        self.image_prompts.lock().unwrap().clone()
    }

    /// How many jobs the engine was given together, each time.
    pub(crate) fn batches(&self) -> Vec<usize> {
        self.batches.lock().unwrap().clone()
    }

    /// One event through the handler, without limits.
    pub(crate) async fn handle(&mut self, event: Value) -> Result<Value, String> {
        let (_switch, shutdown) = Shutdown::channel();
        self.handler.handle(&raw(&event), &Control::unlimited(shutdown)).await.map_err(|error| error.to_string())
    }

    /// As [`Self::handle`] for many at once: after each that fails, a record that may be on its way is waited for.
    pub(crate) async fn handle_all(&self, events: Vec<Value>) -> Vec<Result<Value, String>> {
        let handled = events.iter().map(|event| async move {
            let (_switch, shutdown) = Shutdown::channel();
            self.handler.handle(&raw(event), &Control::unlimited(shutdown)).await.map_err(|error| error.to_string())
        });
        join_all(handled).await
    }

    /// The same as `atelier host` asks for it.
    pub(crate) async fn handle_for_host(&mut self, event: Value) -> Value {
        let (_switch, shutdown) = Shutdown::channel();
        let control = Control::unlimited(shutdown).notification_mode_by(NotificationMode::Later);
        self.handler.handle(&raw(&event), &control).await.expect("the host is notified of failures in the reply")
    }
}

/// One gate for all stages of the same settings, since compiling its lists takes longer than most jobs here. A test that has a moderator, whose
/// connections are its own, or writes lists has its own gate.
fn gate(settings: &safety::settings::Settings) -> Arc<Gate> {
    static GATES: Mutex<BTreeMap<String, Arc<Gate>>> = Mutex::new(BTreeMap::new());
    let new = || Arc::new(Gate::new(settings, None).unwrap());
    if settings.moderator.url.is_some() || !settings.prompt_lists.is_empty() {
        return new();
    }
    GATES.lock().unwrap().entry(format!("{settings:?}")).or_insert_with(new).clone()
}

/// An event as the Runtime API hands it over.
pub(crate) fn raw(event: &Value) -> Box<RawValue> {
    to_raw_value(event).unwrap()
}
