//! The configuration: config.yaml and the environment, read and checked once at start.

mod handler_environment;
pub mod manifest;
pub mod nets;
mod places;
mod relative;
mod renamed;
pub mod segmenter;
mod source;
pub mod upscaler;

use std::path::{Path, PathBuf};

use serde::Deserialize;

use self::manifest::{Family, Kind, Manifest};
use self::places::Places;
pub use self::source::Environment;
use self::source::Source;
use crate::host::listed;
use crate::host::source::{rabbitmq, spool, sqs};
use crate::job::request::tryon::TryOnDefaults;
use crate::job::task::tryon::{Mode, Resolution};
use crate::job::task::{ModelName, StepCount};
use crate::models::hub;
use crate::notify::tryon::{AssetService, LoadBalancer};
use crate::setting::Secret;
use crate::workflow::encode::Encode;
use crate::workflow::postprocess::Postprocess;
use crate::workflow::preprocess::Preprocess;
use crate::workflow::watermark;
use crate::workflow::{StepName, upscale, user_step};
use crate::{content_credentials, host, notify, outbound, safety, store};

/// What is in force where the user's file says nothing; the same file a user starts from.
pub const BUILT_IN: &str = include_str!("../../config.yaml");

/// A reply has at most 6 MiB. What it says of one job is at most twice the 64 KiB of `callback.metadata`, escaped, for each of two
/// receivers, and some addresses.
const MAX_BATCH: u32 = 16;

/// Every key of config.yaml. What a user's file leaves out has the value of the built-in one.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub server: Server,
    pub security: Security,
    pub model: Model,
    pub hub: hub::Settings,
    pub engine: Engine,
    pub workflow: Workflow,
    pub runtime: Runtime,
    pub store: store::Settings,
    pub content_credentials: content_credentials::settings::Settings,
    pub safety: safety::settings::Settings,
    pub notify: notify::Settings,
    pub outbound: outbound::Settings,
    pub asset_service: AssetService,
    pub load_balancer: LoadBalancer,
    pub metrics: Metrics,
    pub host: host::Settings,
    pub sources: Sources,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// On Lambda: a line in CloudWatch's embedded metric format for every run of a job.
    pub emf: bool,
}

/// Where `atelier host` takes jobs from.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sources {
    pub spool: spool::Settings,
    pub sqs: sqs::Settings,
    pub rabbitmq: rabbitmq::settings::Settings,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Name of this node in answers and notifications.
    pub node_id: String,
    /// Address that `atelier host` listens on.
    pub address: std::net::IpAddr,
    /// TCP port of `atelier host`; 0: a free one, which the log names.
    pub port: u16,
    /// The page at `/`; none: where nobody but this machine reaches the host.
    pub page: Option<bool>,
}

impl Server {
    #[must_use]
    pub fn has_page(&self) -> bool {
        self.page.unwrap_or_else(|| self.address.is_loopback())
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Security {
    /// What HTTP callers present as `X-Internal-Auth` or as bearer token.
    pub internal_auth_token: Option<Secret>,
    /// false: HTTP jobs are taken without a token (the platform in front checks callers).
    pub require_auth: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Which manifest of `directory` this function serves.
    pub name: ModelName,
    /// Directory of the manifests, `NAME.yaml` each; none: `models` in the working directory, then in `ATELIER_HOME`, then the bundled ones.
    pub directory: Option<PathBuf>,
    /// Try-on: `fp8`, `lora` or `base`.
    pub default_mode: Mode,
    /// Try-on: denoising steps of a job in the default mode that names none.
    pub default_steps: StepCount,
    /// Try-on: `480p`, `720p` or `1080p`.
    pub default_resolution: Resolution,
    /// Try-on: the modes whose weights are loaded; none: the default mode alone.
    pub modes: Vec<Mode>,
}

impl Model {
    /// Try-on: the modes whose weights are loaded, each once.
    #[must_use]
    pub fn modes(&self) -> Vec<Mode> {
        let mut modes = vec![self.default_mode];
        for mode in &self.modes {
            if !modes.contains(mode) {
                modes.push(*mode);
            }
        }
        modes
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// What the model is kept and computed in.
    pub dtype: Dtype,
    /// MiB of the device's memory for the model's tensors and those of a generation; none: as much as there is.
    pub memory_budget_mib: Option<u64>,
    /// On a GPU: denoising steps of one kind are captured once and launched as one from then on.
    pub cuda_graphs: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// On a GPU f16, for try-ons bf16; f32 on a CPU.
    Auto,
    F32,
    F16,
    Bf16,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workflow {
    /// What happens to a job, in this order.
    pub steps: Vec<StepName>,
    pub preprocess: Preprocess,
    pub postprocess: Postprocess,
    pub upscale: upscale::Settings,
    /// What the steps are that `steps` names as `command:NAME` and `http:NAME`.
    pub user_steps: user_step::settings::Settings,
    pub watermark: watermark::Settings,
    pub encode: Encode,
    pub advanced: Advanced,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advanced {
    /// Generate once before the first event, so that the first job is as fast as the next.
    pub warmup_on_startup: bool,
    /// Try-on: forget one job's tensors before the next.
    pub clear_cache_between_jobs: bool,
}

/// How an invocation is bounded.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// A job is stopped and handed back this long before the invocation's deadline.
    pub deadline_margin_ms: u64,
    /// After SIGTERM the running job may go on this long before it is handed back.
    pub shutdown_grace_ms: u64,
    /// After this many deliveries of one message the caller is notified `failed`; set the queue's dead-letter limit to the same.
    pub max_attempts: u32,
    /// Jobs of one event that agree share a denoising batch as long as their images have so many pixels together.
    pub max_batch_px: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{file}: cannot be read: {error}")]
    Unreadable { file: String, error: std::io::Error },
    #[error("{file}: is not YAML: {problem}")]
    Syntax { file: String, problem: String },
    #[error("{file}: {key}: {problem}")]
    Value { file: String, key: String, problem: String },
    #[error(
        "there is no manifest of the model `{name}`; looked at: {places}; name another model (model.name, ATELIER_MODEL) or its directory (model.directory)"
    )]
    NoModel { name: String, places: String },
    #[error("the environment variable {name} is missing: {what}")]
    RuntimeVariable { name: &'static str, what: &'static str },
}

impl Config {
    /// Reads the configuration of this process: `path` if given, else `ATELIER_CONFIG`, else `config.yaml` in the working
    /// directory if there is one; over the built-in values and under the environment.
    ///
    /// # Errors
    /// Names the file, the key and what is wrong with it.
    pub fn load(path: Option<&Path>, environment: &Environment) -> Result<Self, ConfigError> {
        match Self::file(path, environment) {
            None => Self::parse("built-in config.yaml", "", environment),
            Some(path) => Self::parse(&path.display().to_string(), &read(&path)?, environment),
        }
    }

    /// The file that [`Config::load`] reads; none: the built-in values alone.
    #[must_use]
    pub fn file(path: Option<&Path>, environment: &Environment) -> Option<PathBuf> {
        let named = path.map(Path::to_owned).or_else(|| environment.get("ATELIER_CONFIG").map(PathBuf::from));
        named.or_else(|| Some(PathBuf::from("config.yaml")).filter(|file| file.exists()))
    }

    /// The same from the text of a file.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(file: &str, yaml: &str, environment: &Environment) -> Result<Self, ConfigError> {
        let built_in = Source::parse("built-in config.yaml", BUILT_IN)?;
        let user = Source::parse(file, yaml)?.with_present_names(renamed::CONFIG)?;
        user.over(built_in).expanded(environment)?.overridden(environment)?.read_checked(Self::check)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        crate::workflow::sequence::check(&self.workflow.steps).map_err(|problem| ("workflow.steps", problem))?;
        self.workflow.user_steps.check(&self.workflow.steps).map_err(|problem| ("workflow.steps", problem))?;
        if self.content_credentials.names_signer() && !self.workflow.steps.contains(&StepName::Credentials) {
            let problem =
                "lacks `credentials`, and content_credentials names a signer: add the step behind `encode`, or name no signer";
            return Err(("workflow.steps", problem.into()));
        }
        self.check_safety()?;
        if self.runtime.max_attempts == 0 {
            return Err(("runtime.max_attempts", "must be at least 1".into()));
        }
        if !(1..=MAX_BATCH).contains(&self.host.batch) {
            let problem = format!("must be 1 to {MAX_BATCH}: more jobs might not fit a reply, got {}", self.host.batch);
            return Err(("host.batch", problem));
        }
        listed::check(&self.host.models).map_err(|problem| ("host.models", problem))?;
        self.host.sharing.check(&self.host.models)?;
        if !self.host.models.is_empty() && self.host.handlers != 0 {
            return Err(("host.handlers", "must be 0 next to host.models, whose elements have `handlers` of their own".into()));
        }
        let token = self.security.internal_auth_token.as_ref();
        if token.is_some_and(|token| token.reveal().len() < 16) {
            return Err(("security.internal_auth_token", "must have at least 16 characters".into()));
        }
        Ok(())
    }

    /// A step that looks at images and is left out would let everything through in silence.
    fn check_safety(&self) -> Result<(), (&'static str, String)> {
        let steps = &self.workflow.steps;
        let lacking = [StepName::Screen, StepName::Check].into_iter().find(|step| !steps.contains(step));
        match lacking.filter(|_| self.safety.mode == safety::settings::Mode::On) {
            Some(step) => {
                let step = step.as_str();
                Err((
                    "workflow.steps",
                    format!("lacks `{step}`, and safety.mode is on: add the step, or write `safety.mode: off`"),
                ))
            }
            None => Ok(()),
        }
    }

    /// Reads the manifest of the model this function serves.
    ///
    /// # Errors
    /// Names the file, the key and what is wrong with it.
    pub fn manifest(&self, environment: &Environment) -> Result<Manifest, ConfigError> {
        let mut manifest = self.manifest_of(&self.model.name, environment)?;
        let file = manifest.file.display().to_string();
        let checked = manifest.check(&self.model.modes()).and_then(|()| self.check_dtype(manifest.family));
        checked.map_err(|(key, problem)| ConfigError::Value { file, key: key.to_owned(), problem })?;
        let Model { default_mode: mode, default_steps: steps, default_resolution: resolution, .. } = self.model;
        manifest.defaults.tryon = TryOnDefaults { mode, steps, resolution };
        manifest.defaults.has_modes = manifest.family == Family::QwenImage;
        manifest.defaults.edits_without_modes = manifest.family == Family::Flux2;
        // A job that names no model asks for the one that is served, also where a manifest was copied under another name.
        manifest.defaults.model = self.model.name.clone();
        Ok(manifest)
    }

    /// This configuration as the handlers of each of a host's models have it: of those that `host.models` lists, or of `model.name`.
    #[must_use]
    pub fn of_each_model(&self) -> Vec<Self> {
        if self.host.models.is_empty() {
            return vec![self.clone()];
        }
        let own = self.host.models.iter().map(|listed| Self {
            model: Model { name: listed.name.clone(), ..self.model.clone() },
            engine: Engine { memory_budget_mib: listed.memory_mib.or(self.engine.memory_budget_mib), ..self.engine.clone() },
            ..self.clone()
        });
        own.collect()
    }

    fn check_dtype(&self, family: Family) -> Result<(), (&'static str, String)> {
        if family.kind() != Kind::StableDiffusion && self.engine.dtype == Dtype::F16 {
            let family = family.as_str();
            let problem = format!(
                "{family}'s numbers grow larger than f16 has them; set engine.dtype to auto, to f32, or on a GPU to bf16"
            );
            return Err(("family", problem));
        }
        Ok(())
    }

    /// Reads the manifest of any model, in the first place that has it.
    ///
    /// # Errors
    /// As [`Config::manifest`].
    pub fn manifest_of(&self, name: &ModelName, environment: &Environment) -> Result<Manifest, ConfigError> {
        let path = Places::of(&self.model, environment).find(name)?;
        let file = path.display().to_string();
        let source = Source::parse(&file, &read(&path)?)?.with_present_names(renamed::MANIFEST)?;
        let mut manifest: Manifest = source.expanded(environment)?.read()?;
        manifest.place(path);
        Ok(manifest)
    }

    /// The names of all models that there are manifests of.
    ///
    /// # Errors
    /// When a directory of manifests cannot be read.
    pub fn model_names(&self, environment: &Environment) -> Result<Vec<ModelName>, ConfigError> {
        Places::of(&self.model, environment).names()
    }
}

/// The environment of this process.
#[must_use]
pub fn environment() -> Environment {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect()
}

/// The address of the Runtime API, where there is one, with all that `lambda_runtime` would panic without.
///
/// # Errors
/// Names the variable that is missing.
pub fn runtime_api(environment: &Environment) -> Result<Option<String>, ConfigError> {
    let Some(address) = environment.get("AWS_LAMBDA_RUNTIME_API") else { return Ok(None) };
    let needed = [
        ("AWS_LAMBDA_FUNCTION_NAME", "any name, for example `atelier`"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "any version, for example `$LATEST`"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "memory in MiB as a whole number, for example `4096`"),
    ];
    for (name, what) in needed {
        let value = environment.get(name).ok_or(ConfigError::RuntimeVariable { name, what })?;
        if name.ends_with("MEMORY_SIZE") && value.parse::<i32>().is_err() {
            return Err(ConfigError::RuntimeVariable { name, what });
        }
    }
    Ok(Some(address.clone()))
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable { file: path.display().to_string(), error })
}
