//! The job body as callers send it (JSON, the same on every queue), read into a checked [`Job`].

mod field;
mod generate;
pub mod tryon;

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use self::tryon::TryOnDefaults;
use super::outcome::JobError;
use super::shown::shown;
use super::task::tryon::Requester;
use super::task::{Anchor, GuidanceScale, ModelName, Opacity, Scheduler, Seed, SidePx, StepCount, Task, Watermark};
use super::trace::Trace;
use super::url::CallbackUrl;
use super::{Callback, ImageFormat, Job, JobId, Output};

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
    pub seed: Seed,
    /// Object key prefix of the images.
    pub prefix: String,
    /// Not of one model: they come from config.yaml.
    #[serde(skip)]
    pub tryon: TryOnDefaults,
}

impl Default for Defaults {
    /// What the callers of the service that this replaces rely on.
    fn default() -> Self {
        Self {
            model: ModelName::default_value(),
            steps: StepCount::default_value(),
            guidance_scale: GuidanceScale::default_value(),
            scheduler: Scheduler::DpmSolverPlusPlus,
            width: SidePx::default_value(),
            height: SidePx::default_value(),
            seed: Seed::default_value(),
            prefix: "generations/".into(),
            tryon: TryOnDefaults::default(),
        }
    }
}

/// A body that is not a job, with as much of the caller's own words as could be read, so that the caller can be told.
#[derive(Debug)]
pub struct Refusal {
    pub job_id: Option<JobId>,
    pub callback: Option<Callback>,
    /// Of a body that asks for a try-on.
    pub requester: Option<Requester>,
    pub error: JobError,
    /// Of the message that it came in.
    pub trace: Option<Trace>,
}

impl Job {
    /// Reads the body of a message that has a trace.
    ///
    /// # Errors
    /// As [`Self::from_json`].
    pub fn from_message(body: &[u8], trace: Option<Trace>, defaults: &Defaults) -> Result<Self, Refusal> {
        match Self::from_json(body, defaults) {
            Ok(job) => Ok(Self { trace, ..job }),
            Err(refusal) => Err(Refusal { trace, ..refusal }),
        }
    }

    /// Reads a job body.
    ///
    /// # Errors
    /// A [`Refusal`] that names the field and what is allowed.
    pub fn from_json(body: &[u8], defaults: &Defaults) -> Result<Self, Refusal> {
        let no_object = |problem: String| {
            let error = JobError::Invalid { field: "body".into(), problem: format!("must be a JSON object{problem}") };
            Refusal { job_id: None, callback: None, requester: None, error, trace: None }
        };
        let value: Value = serde_json::from_slice(body).map_err(|error| no_object(format!(" ({error})")))?;
        if !value.is_object() {
            return Err(no_object(format!(", got {}", shown(&value))));
        }
        read(&value, defaults).map(|read| read.into_job(&defaults.prefix)).map_err(|error| Refusal {
            job_id: value["job_id"].as_str().and_then(|id| JobId::new(id).ok()),
            callback: CallbackBody::deserialize(&value["callback"]).ok().map(CallbackBody::into_callback),
            requester: (value["task"] == "tryon").then(|| tryon::requester(&value)),
            error,
            trace: None,
        })
    }
}

/// Which fields are allowed depends on the task, so it is read first.
fn read(value: &Value, defaults: &Defaults) -> Result<Read, JobError> {
    let named = value.get("task").map_or(Ok(TaskName::Generate), TaskName::deserialize);
    let task =
        named.map_err(|error: serde_json::Error| JobError::Invalid { field: "task".into(), problem: error.to_string() })?;
    match task {
        TaskName::Generate => body::<generate::Body>(value)?.read(defaults),
        TaskName::TryOn => body::<tryon::Body>(value).map(|body| body.read(&defaults.tryon)),
    }
}

fn body<'de, T: Deserialize<'de>>(value: &'de Value) -> Result<T, JobError> {
    serde_path_to_error::deserialize(value).map_err(|error| invalid(&error))
}

fn invalid(error: &serde_path_to_error::Error<serde_json::Error>) -> JobError {
    let path = error.path().to_string();
    let message = error.inner().to_string();
    // serde names a missing or unknown field in its message only; callers get it as the field.
    for (start, problem) in [("missing field `", "is required"), ("unknown field `", "is not a field of this job")] {
        let Some((name, rest)) = message.strip_prefix(start).and_then(|rest| rest.split_once('`')) else { continue };
        let field = match path.rsplit_once('.') {
            _ if path == "." => name.to_owned(),
            Some((_, last)) if last == name => path.clone(),
            _ if path == name => path.clone(),
            _ => format!("{path}.{name}"),
        };
        let allowed =
            rest.strip_prefix(", expected ").map(|names| format!("; allowed are {}", names.trim_start_matches("one of ")));
        return JobError::Invalid { field, problem: format!("{problem}{}", allowed.unwrap_or_default()) };
    }
    let field = if path == "." { "body".to_owned() } else { path };
    JobError::Invalid { field, problem: message }
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "lowercase")]
enum TaskName {
    #[default]
    Generate,
    TryOn,
}

impl<'de> Deserialize<'de> for TaskName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(name) if name == "generate" => Ok(Self::Generate),
            Value::String(name) if name == "tryon" => Ok(Self::TryOn),
            other => Err(de::Error::custom(format!("must be \"generate\" or \"tryon\", got {}", shown(&other)))),
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
    watermark: Option<WatermarkBody>,
    output: OutputBody,
    callback: Option<CallbackBody>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WatermarkBody {
    #[serde(deserialize_with = "field::watermark_text")]
    text: String,
    #[serde(default, deserialize_with = "field::anchor")]
    position: Option<Anchor>,
    opacity: Option<Opacity>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputBody {
    #[serde(default, deserialize_with = "field::prefix")]
    prefix: Option<String>,
    #[serde(default, deserialize_with = "field::format")]
    format: Option<ImageFormat>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CallbackBody {
    #[serde(default, deserialize_with = "field::callback_url")]
    url: Option<CallbackUrl>,
    #[serde(default)]
    metadata: Map<String, Value>,
}

impl CallbackBody {
    fn into_callback(self) -> Callback {
        Callback { url: self.url, metadata: self.metadata }
    }
}

impl Read {
    fn into_job(self, default_prefix: &str) -> Job {
        let Self { common: Common { job_id, watermark, output, callback }, task, mut canonical } = self;
        let watermark = watermark.map(|watermark| Watermark {
            text: watermark.text,
            position: watermark.position.unwrap_or(Anchor::BottomRight),
            opacity: watermark.opacity.unwrap_or_else(Opacity::default_value),
        });
        let prefix = output.prefix.unwrap_or_else(|| default_prefix.to_owned());
        let output =
            Output { is_default_prefix: prefix == default_prefix, prefix, format: output.format.unwrap_or(ImageFormat::Png) };
        canonical["watermark"] = serde_json::json!(watermark);
        canonical["output"] = serde_json::json!(output);
        let fingerprint = base16ct::lower::encode_string(&Sha256::digest(canonical.to_string()));
        Job {
            id: job_id,
            task,
            watermark,
            output,
            callback: callback.map(CallbackBody::into_callback),
            fingerprint,
            trace: None,
        }
    }
}
