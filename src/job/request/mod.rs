//! The job body as callers send it (JSON, the same on every queue), read into a checked [`Job`].

pub mod catalogue;
mod controls;
pub mod duplicates;
mod edit;
pub mod envelope;
mod field;
mod generate;
mod ip_adapters;
mod loras;
mod seed;
pub mod tryon;
pub mod weight;

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use self::catalogue::DefaultsOf;
pub(crate) use self::field::tidy_prefix;
use self::seed::SeedChoice;
use self::tryon::TryOnDefaults;
use super::OWN_DIRECTORIES;
use super::consent::Consent;
use super::metadata::Metadata;
use super::outcome::JobError;
use super::task::scheduler::{Sampler, Scheduler};
use super::task::tryon::Requester;
use super::task::upscale::{Upscale, UpscaleFactor};
use super::task::{Anchor, GuidanceScale, ModelName, Opacity, Seed, SidePx, StepCount, Task, Watermark, WatermarkSize};
use super::trace::Trace;
use super::url::CallbackUrl;
use super::{Callback, ImageFormat, Job, JobId, MetadataLevel, Output};
use crate::shown;

/// Of what is said of a field: what callers read in an error is no echo of what they sent.
pub const PROBLEM_MAX_CHARS: usize = 1_000;

/// What a job gets that leaves a field out.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    pub model: ModelName,
    pub steps: StepCount,
    pub guidance_scale: GuidanceScale,
    pub scheduler: Scheduler,
    pub width: SidePx,
    pub height: SidePx,
    pub seed: SeedChoice,
    /// Object key prefix of the images.
    pub prefix: String,
    /// Not of one model: they come from config.yaml.
    #[serde(skip)]
    pub tryon: TryOnDefaults,
    /// Whether the model has modes: the defaults above are those of its mode `base`.
    #[serde(skip)]
    pub has_modes: bool,
    /// Whether edits get the defaults above: the model does them, and has no modes.
    #[serde(skip)]
    pub edits_without_modes: bool,
}

impl Default for Defaults {
    /// What the callers of the service that this replaces rely on.
    fn default() -> Self {
        Self {
            model: ModelName::default_value(),
            steps: StepCount::default_value(),
            guidance_scale: GuidanceScale::default_value(),
            scheduler: Scheduler::plain(Sampler::DpmSolverPlusPlus),
            width: SidePx::default_value(),
            height: SidePx::default_value(),
            seed: SeedChoice::Given(Seed::default_value()),
            prefix: "generations/".into(),
            tryon: TryOnDefaults::default(),
            has_modes: false,
            edits_without_modes: false,
        }
    }
}

/// A body that is not a job, with as much of the caller's own words as could be read, so that the caller can be notified.
#[derive(Debug)]
pub struct Refusal {
    pub job_id: Option<JobId>,
    pub callback: Option<Callback>,
    /// Of a body that asks for a try-on.
    pub requester: Option<Requester>,
    pub error: JobError,
    /// Whose defaults it was read with, where it could be read so far.
    pub model: Option<ModelName>,
    /// Of the message that it came in.
    pub trace: Option<Trace>,
}

impl Job {
    /// Reads the body of a message that has a trace; the job may lie in an envelope of SNS or `EventBridge`.
    ///
    /// # Errors
    /// As [`Self::from_json`]. An envelope without a job is named.
    pub fn from_message(body: &[u8], trace: Option<Trace>, defaults: &impl DefaultsOf) -> Result<Self, Refusal> {
        let opened = envelope::open(without_mark(body)).map_err(Refusal::without_id);
        match opened.and_then(|body| Self::from_json(&body, defaults)) {
            Ok(job) => Ok(Self { trace, ..job }),
            Err(refusal) => Err(Refusal { trace, ..refusal }),
        }
    }

    /// Reads a job body.
    ///
    /// # Errors
    /// A [`Refusal`] that names the field and what is allowed.
    pub fn from_json(body: &[u8], defaults: &impl DefaultsOf) -> Result<Self, Refusal> {
        let no_object = |problem: String| {
            Refusal::without_id(JobError::Invalid { field: "body".into(), problem: format!("must be a JSON object{problem}") })
        };
        weight::check(body).map_err(|problem| no_object(format!("; {problem}")))?;
        let (metadata, body) = Metadata::taken_out(without_mark(body));
        let value: Value = serde_json::from_slice(&body).map_err(|error| Refusal::without_id(envelope::not_json(&error)))?;
        if !value.is_object() {
            return Err(no_object(format!(", got {}", shown::json(&value))));
        }
        let defaults = defaults.of(&value);
        let checked = duplicates::check(&body).and_then(|()| metadata.as_ref().map_or(Ok(()), Metadata::check));
        // A refusal is no place for metadata that are too large.
        let kept = metadata.clone().filter(|_| checked.is_ok());
        let read = checked.and_then(|()| read(&value, defaults));
        let read = read.and_then(|read| read.checked_place(&defaults.prefix));
        read.map(|read| read.into_job(&defaults.prefix, metadata)).map_err(|error| Refusal {
            job_id: value["job_id"].as_str().and_then(|id| JobId::new(id).ok()),
            callback: callback(&value["callback"], kept),
            requester: (value["task"] == "tryon").then(|| tryon::requester(&value)),
            error,
            model: Some(defaults.model.clone()),
            trace: None,
        })
    }
}

/// A body without the byte order mark that some editors and PowerShell put in front of UTF-8, and that JSON does not have (RFC 8259, 8.1).
#[must_use]
pub fn without_mark(body: &[u8]) -> &[u8] {
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)
}

/// Whom to report a refusal to: without the metadata, where those are at fault.
fn callback(value: &Value, metadata: Option<Metadata>) -> Option<Callback> {
    let bare = serde_json::json!({ "url": value["url"] });
    let body = CallbackBody::deserialize(value).or_else(|_| CallbackBody::deserialize(&bare));
    body.ok().map(|body| body.into_callback(metadata))
}

impl Refusal {
    /// Of a body that says nothing of its sender.
    fn without_id(error: JobError) -> Self {
        Self { job_id: None, callback: None, requester: None, error, model: None, trace: None }
    }
}

/// Which fields are allowed depends on the task, so it is read first.
fn read(value: &Value, defaults: &Defaults) -> Result<Read, JobError> {
    let given = value.get("task").filter(|task| !task.is_null());
    let named = given.map_or(Ok(TaskName::Generate), TaskName::deserialize);
    let task =
        named.map_err(|error: serde_json::Error| JobError::Invalid { field: "task".into(), problem: error.to_string() })?;
    check_objects(value)?;
    match task {
        TaskName::Generate => body::<generate::Body>(value)?.read(defaults),
        TaskName::TryOn => body::<tryon::Body>(value)?.read(&defaults.tryon),
        TaskName::Edit => body::<edit::Body>(value)?.read(defaults),
    }
}

/// serde takes an array for an object, its elements for the fields in their order. Nobody who sends one means that.
fn check_objects(value: &Value) -> Result<(), JobError> {
    const OBJECTS: [&str; 8] =
        ["auto_mask", "callback", "consent", "init_image", "mask_image", "output", "upscale", "watermark"];
    const LISTS: [&str; 4] = ["controlnets", "embeddings", "ip_adapters", "lora"];
    let alone = OBJECTS.iter().map(|field| ((*field).to_owned(), &value[*field]));
    let listed = LISTS.iter().flat_map(|field| {
        let elements = value[*field].as_array().into_iter().flatten();
        elements.enumerate().map(move |(index, element)| (format!("{field}[{index}]"), element))
    });
    let images = value["controlnets"].as_array().into_iter().flatten().enumerate();
    let images = images.map(|(index, control)| (format!("controlnets[{index}].image"), &control["image"]));
    match alone.chain(listed).chain(images).find(|(_, given)| given.is_array()) {
        Some((field, given)) => {
            Err(JobError::Invalid { field, problem: format!("must be an object, got {}", shown::json(given)) })
        }
        None => Ok(()),
    }
}

fn body<'de, T: Deserialize<'de>>(value: &'de Value) -> Result<T, JobError> {
    serde_path_to_error::deserialize(value).map_err(|error| invalid(&error))
}

fn invalid(error: &serde_path_to_error::Error<serde_json::Error>) -> JobError {
    let path = shown::name(&error.path().to_string());
    let message = shown::clipped(shown::mismatch::in_words(&error.inner().to_string()), PROBLEM_MAX_CHARS);
    // serde names a missing or unknown field in its message only; callers get it as the field.
    for (start, problem) in [("missing field `", "is required"), ("unknown field `", "is not a field of this job")] {
        let Some((name, rest)) = message.strip_prefix(start).and_then(|rest| rest.split_once('`')) else { continue };
        let name = shown::name(name);
        let field = match path.rsplit_once('.') {
            _ if path == "." => name,
            Some((_, last)) if last == name => path.clone(),
            _ if path == name => path.clone(),
            _ => format!("{path}.{name}"),
        };
        let allowed =
            rest.strip_prefix(", expected ").map(|names| format!("; allowed are {}", names.trim_start_matches("one of ")));
        return JobError::Invalid { field: named(field), problem: format!("{problem}{}", allowed.unwrap_or_default()) };
    }
    let field = if path == "." { "body".to_owned() } else { path };
    JobError::Invalid { field, problem: message }
}

/// A field whose own name is empty is shown as `""`.
fn named(field: String) -> String {
    if field.is_empty() || field.ends_with('.') { field + "\"\"" } else { field }
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "lowercase")]
enum TaskName {
    #[default]
    Generate,
    TryOn,
    Edit,
}

impl<'de> Deserialize<'de> for TaskName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(name) if name == "generate" => Ok(Self::Generate),
            Value::String(name) if name == "tryon" => Ok(Self::TryOn),
            Value::String(name) if name == "edit" => Ok(Self::Edit),
            other => {
                let shown = shown::json(&other);
                Err(de::Error::custom(format!("must be \"generate\", \"tryon\" or \"edit\", got {shown}")))
            }
        }
    }
}

/// A body that was read, whatever its task.
struct Read {
    common: Common,
    task: Task,
    /// Everything of the task that decides the images.
    canonical: Value,
}

/// What every task has.
struct Common {
    job_id: JobId,
    upscale: Option<UpscaleBody>,
    watermark: Option<WatermarkBody>,
    output: OutputBody,
    consent: Option<Consent>,
    callback: Option<CallbackBody>,
    tenant: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpscaleBody {
    factor: UpscaleFactor,
    name: Option<ModelName>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WatermarkBody {
    #[serde(deserialize_with = "field::watermark_text")]
    text: String,
    #[serde(default, deserialize_with = "field::anchor")]
    position: Option<Anchor>,
    opacity: Option<Opacity>,
    size: Option<WatermarkSize>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputBody {
    #[serde(default, deserialize_with = "field::prefix")]
    prefix: Option<String>,
    #[serde(default, deserialize_with = "field::format")]
    format: Option<ImageFormat>,
    #[serde(default, deserialize_with = "field::metadata_level")]
    metadata: Option<MetadataLevel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CallbackBody {
    url: Option<CallbackUrl>,
    #[serde(default, deserialize_with = "field::or_default")]
    metadata: Map<String, Value>,
}

impl CallbackBody {
    /// `metadata`: what was taken out of the body before it was parsed.
    fn into_callback(self, metadata: Option<Metadata>) -> Callback {
        Callback { url: self.url, metadata: metadata.unwrap_or_else(|| Metadata::of_parsed(self.metadata)) }
    }
}

impl Read {
    /// Refuses a job whose results would lie among what is the function's own.
    fn checked_place(self, default_prefix: &str) -> Result<Self, JobError> {
        let prefix = self.common.output.prefix.as_deref().unwrap_or(default_prefix);
        let first = prefix.split('/').next().filter(|first| !first.is_empty()).unwrap_or(self.common.job_id.as_str());
        if !OWN_DIRECTORIES.contains(&first) {
            return Ok(self);
        }
        let problem = format!("puts the images under {first}/ of the bucket, which is the function's own; choose another");
        Err(JobError::Invalid { field: "output.prefix".into(), problem })
    }

    fn into_job(self, default_prefix: &str, metadata: Option<Metadata>) -> Job {
        let Self { common: Common { job_id, upscale, watermark, output, consent, callback, tenant }, task, mut canonical } =
            self;
        let watermark = watermark.map(|watermark| Watermark {
            text: watermark.text,
            position: watermark.position.unwrap_or(Anchor::BottomRight),
            opacity: watermark.opacity.unwrap_or_else(Opacity::default_value),
            size: watermark.size,
        });
        let callback = callback.map(|callback| callback.into_callback(metadata));
        let tenant = tenant.or_else(|| user(&task, callback.as_ref())).filter(|tenant| !tenant.is_empty());
        let prefix = output.prefix.unwrap_or_else(|| default_prefix.to_owned());
        let output = Output {
            is_default_prefix: prefix == default_prefix,
            prefix,
            format: output.format.unwrap_or(ImageFormat::Png),
            metadata: output.metadata,
        };
        let upscale = upscale.map(|UpscaleBody { factor, name }| Upscale { factor, name });
        canonical["watermark"] = serde_json::json!(watermark);
        canonical["output"] = serde_json::json!(output);
        // It came later: the fingerprint of older jobs must stay what it was.
        if let Some(upscale) = &upscale {
            canonical["upscale"] = serde_json::json!(upscale);
        }
        // With it a job may be what it may not be without: it is another request.
        if let Some(consent) = &consent {
            canonical["consent"] = serde_json::json!(consent);
        }
        let fingerprint = base16ct::lower::encode_string(&Sha256::digest(canonical.to_string()));
        Job { id: job_id, task, upscale, watermark, output, consent, callback, tenant, fingerprint, trace: None }
    }
}

/// Whose job it is where it names no tenant.
fn user(task: &Task, callback: Option<&Callback>) -> Option<String> {
    let of_form = match task {
        Task::TryOn(tryon) => tryon.requester.user_id.clone(),
        Task::Generate(_) | Task::Edit(_) => None,
    };
    of_form.or_else(|| {
        let metadata: Value = serde_json::from_str(callback?.metadata.as_str()).ok()?;
        metadata["user_id"].as_str().map(str::to_owned)
    })
}
