//! Puts the function together from its configuration: engine loaded and warm, store reached, workflow ready.

pub mod command;
mod engine;
pub mod family;
pub mod host;
mod listed;
pub mod models;
mod pack;
mod phases;
pub mod safety;
pub mod segmenter;
pub mod upscalers;

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use self::phases::{Phases, process_age_ms};
use crate::config::manifest::{Family, Manifest};
use crate::config::nets::ControlNet;
use crate::config::{Config, ConfigError, Environment};
use crate::content_credentials::ready;
use crate::content_credentials::signing::Signing;
use crate::events::auth::Auth;
use crate::handler::{Handler, KeepRefused};
use crate::job::capabilities::{self, Capabilities, Steering};
use crate::job::notification::Images;
use crate::job::outcome::JobError;
use crate::job::task::ModelName;
use crate::notify::Notifier;
use crate::notify::tryon::TryOnService;
use crate::outbound::Outbound;
use crate::setting::SettingError;
use crate::store::Store;
use crate::store::held_results::HeldResults;
use crate::workflow::infer::Observer;
use crate::workflow::preprocess::Preprocess;
use crate::workflow::store::ModelOrigin;
use crate::workflow::user_step::UserSteps;
use crate::workflow::watermark::TextStyle;
use crate::workflow::{Services, StepName, Workflow};
use atelier_engine::EngineError;

/// Why the function never got ready.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// Not its `source`: whoever prints all causes would print the engine's twice.
    #[error("the model could not be made ready: {0}")]
    Engine(EngineError),
    #[error(transparent)]
    Store(#[from] JobError),
}

impl From<EngineError> for StartError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl StartError {
    /// The error type that the Runtime API gets.
    #[must_use]
    pub fn error_type(&self) -> &'static str {
        match self {
            Self::Config(_) | Self::Setting(_) => "Atelier.Configuration",
            Self::Engine(_) => "Atelier.Model",
            Self::Store(_) => "Atelier.Storage",
        }
    }
}

/// Whether what the manifest names next to the model has its step: weights that no job can reach are a mistake.
fn check_steps(config: &Config, manifest: &Manifest) -> Result<(), SettingError> {
    let companions = [
        (!manifest.upscalers.is_empty(), StepName::Upscale, "upscalers", "behind", "upscalers"),
        (manifest.segmenter.is_some(), StepName::Mask, "a segmenter", "before", "segmenter"),
    ];
    for (is_named, step, what, place, key) in companions {
        if is_named && !config.workflow.steps.contains(&step) {
            let file = manifest.file.display();
            let step = step.as_str();
            let problem =
                format!("lacks `{step}`, and {file} names {what}: add the step {place} `infer`, or leave `{key}` out");
            return Err(SettingError::new("workflow.steps", problem));
        }
    }
    Ok(())
}

/// Loads and warms the model, checks the bucket, and sets up the steps.
///
/// # Errors
/// [`StartError`]: what is wrong, where, and what is allowed.
pub async fn handler(config: &Config, environment: &Environment, observer: Observer) -> Result<Handler, StartError> {
    arm_fault_point(environment);
    let manifest = config.manifest(environment)?;
    let signing = signing(config)?;
    let gate = safety::gate(config, &manifest)?;
    check_steps(config, &manifest)?;
    let text_style = text_style(config)?;
    let path = environment.get("PATH").map(String::as_str);
    let user_steps = UserSteps::new(&config.workflow.user_steps, &config.workflow.steps, path)?;
    let outbound = Outbound::new(&config.outbound)?;
    let store = Arc::new(Store::connect(&config.store, outbound.clone()).await?);
    let notifier = Arc::new(notifier((config, &config.model.name), outbound, store.clone())?);
    if !manifest.checkpoint.is_dir() {
        let problem = format!("is not there; bring it with `atelier models pull {}`", config.model.name.as_str());
        return Err(EngineError::Checkpoint { path: manifest.checkpoint, problem }.into());
    }
    let engine = tokio::task::spawn_blocking(engine::start(config, &manifest));
    store.probe().await?;
    let (engine, phases) = engine.await.unwrap_or(Err(EngineError::Gone))?;
    log_ready(config, store.bucket(), &phases);
    let model = config.model.name.clone();
    let capabilities = capabilities(config, &manifest);
    let upscalers = upscalers::known(config, &manifest);
    let segmenter = segmenter::known(&manifest);
    let services = Services {
        engine,
        model,
        origin: origin(&manifest)?,
        capabilities: capabilities.clone(),
        upscalers: upscalers.clone(),
        segmenter: segmenter.clone(),
        preprocess: preprocess(config, &manifest),
        postprocess: config.workflow.postprocess,
        user_steps,
        text_style,
        encode: config.workflow.encode,
        gate,
        signing,
        store,
        held_results: HeldResults::new(&config.store),
        notifier,
        observer,
    };
    let workflow = Workflow::new(&config.workflow.steps, services);
    Ok(Handler {
        workflow,
        defaults: manifest.defaults,
        capabilities,
        upscalers,
        segmenter,
        node_id: config.server.node_id.clone(),
        auth: Auth::new(config.security.require_auth, config.security.internal_auth_token.as_ref()),
        max_attempts: config.runtime.max_attempts,
        keep_refused: KeepRefused { sqs: config.sources.sqs.keep_refused, rabbitmq: config.sources.rabbitmq.keep_refused },
        max_batch_px: config.runtime.max_batch_px,
        emf_model: config.metrics.emf.then(|| config.model.name.as_str().to_owned()),
    })
}

/// One line that says how long what took.
fn log_ready(config: &Config, bucket: &str, phases: &Phases) {
    let ms = |time: Duration| time.as_millis() as u64;
    tracing::info!(
        model = config.model.name.as_str(),
        bucket,
        device_ms = ms(phases.device),
        read_ms = ms(phases.loading.read),
        build_ms = ms(phases.loading.build),
        warm_up_ms = ms(phases.warm_up),
        ready_ms = process_age_ms(),
        "ready"
    );
}

/// What records say of the model.
fn origin(manifest: &Manifest) -> Result<ModelOrigin, SettingError> {
    let file = manifest.file.display().to_string();
    let bytes = std::fs::read(&manifest.file).map_err(|error| SettingError::new(&file, format!("cannot be read ({error})")))?;
    let sources = manifest.source.iter().chain(manifest.additional_sources.values());
    let pinned = sources
        .flat_map(|source| &source.files)
        .filter_map(|(path, sha256)| Some((path.to_string(), sha256.as_ref()?.to_string())));
    Ok(ModelOrigin {
        licence: manifest.licence.clone(),
        manifest_sha256: Some(base16ct::lower::encode_string(&Sha256::digest(bytes))),
        files: pinned.collect(),
    })
}

/// What watermarks are set with: fonts that cannot be read show here, and not at the first paid image.
fn text_style(config: &Config) -> Result<TextStyle, SettingError> {
    TextStyle::load(&config.workflow.watermark).map_err(|problem| SettingError::new("workflow.watermark.fonts", problem))
}

/// What signs images, of a configuration that says so; else the log says what they carry.
fn signing(config: &Config) -> Result<Option<Arc<Signing>>, SettingError> {
    let signing = ready::signing(&config.content_credentials)?;
    match &signing {
        Some(signing) if signing.is_development => tracing::warn!(
            signer = signing.subject,
            "images are signed by a development signer, which no one trusts; content_credentials.certificate names a real one"
        ),
        Some(signing) => tracing::info!(signer = signing.subject, "images are signed"),
        None => tracing::warn!(
            "content_credentials names no signer: images carry the machine-readable mark (XMP) and no content credentials"
        ),
    }
    Ok(signing.map(Arc::new))
}

/// How images are brought to the size that is generated, as far as the model decides it too.
fn preprocess(config: &Config, manifest: &Manifest) -> Preprocess {
    Preprocess {
        max_short_side_px: manifest.max_short_side_px,
        edit_px: manifest.edit_px,
        edit_keeps_size: manifest.family == Family::Flux2,
        ..config.workflow.preprocess
    }
}

/// What a handler of this configuration can be asked for, once it is ready.
fn capabilities(config: &Config, manifest: &Manifest) -> Capabilities {
    match manifest.family {
        Family::StableDiffusion1 | Family::StableDiffusionXl => {
            let nets = manifest.controlnets.iter();
            let nets = nets
                .map(|ControlNet { name, image, .. }| capabilities::ControlNet { name: name.clone(), image: image.clone() });
            let ip_adapters = manifest.ip_adapters.iter().map(|adapter| adapter.name.clone());
            let steering = Steering { controlnets: nets.collect(), ip_adapters: ip_adapters.collect() };
            if steering == Steering::default() { Capabilities::Generate } else { Capabilities::Steered(steering) }
        }
        Family::QwenImageEdit => Capabilities::Edit(config.model.modes()),
        Family::QwenImage => Capabilities::Text(config.model.modes()),
        Family::ZImage | Family::Flux => Capabilities::Flow,
        Family::Flux2 => Capabilities::EditFlow,
    }
}

/// Arms the point of the code that a fault campaign names; a release build has none.
fn arm_fault_point(environment: &Environment) {
    #[cfg(debug_assertions)]
    if let Some(point) = environment.get("ATELIER_FAULT_POINT") {
        crate::fault_point::arm(point);
    }
    #[cfg(not(debug_assertions))]
    let _ = environment;
}

/// What sends the notifications of this configuration's jobs. Handler and host each have their own, and either can send what the
/// other has written. `model`: the one that does try-ons.
///
/// # Errors
/// Names the setting that is missing or wrong.
pub fn notifier(
    (config, model): (&Config, &ModelName),
    outbound: Outbound,
    images: Arc<dyn Images>,
) -> Result<Notifier, SettingError> {
    let Config { notify, asset_service, load_balancer, server, .. } = config;
    let service = TryOnService::new(asset_service, load_balancer, &server.node_id, model, images)?;
    Ok(Notifier::new(notify, outbound)?.with_tryon(service))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engines_error_is_printed_once() {
        let error = StartError::from(EngineError::Panicked("no device".into()));
        let all_causes = format!("{:#}", anyhow::Error::from(error));
        assert_eq!(all_causes.matches("no device").count(), 1, "{all_causes}");
    }
}
