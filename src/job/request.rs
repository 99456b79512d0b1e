//! The job body as callers send it (JSON, the same on every queue), read into a checked [`Job`].

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::outcome::JobError;
use super::task::{
    Anchor, Generate, GuidanceScale, ImageCount, Lora, LoraScale, ModelName, Opacity, Prompt, Scheduler, Seed, SidePx, Size,
    StepCount, Task, Watermark, shown,
};
use super::url::{AssetUrl, CallbackUrl};
use super::{Callback, Job, JobId, Output, PictureFormat};

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
    /// Object key prefix of the pictures.
    pub prefix: String,
}

/// A body that is not a job, with as much of the caller's own words as could be read, so that the caller can be told.
#[derive(Debug)]
pub struct Refusal {
    pub job_id: Option<JobId>,
    pub callback: Option<Callback>,
    pub error: JobError,
}

impl Job {
    /// Reads a job body.
    ///
    /// # Errors
    /// A [`Refusal`] that names the field and what is allowed.
    pub fn from_json(body: &[u8], defaults: &Defaults) -> Result<Self, Refusal> {
        let refuse = |error: JobError| Refusal { job_id: None, callback: None, error };
        let value: Value = serde_json::from_slice(body).map_err(|error| {
            refuse(JobError::Invalid { field: "body".into(), problem: format!("must be a JSON object ({error})") })
        })?;
        if !value.is_object() {
            let problem = format!("must be a JSON object, got {}", shown(&value));
            return Err(refuse(JobError::Invalid { field: "body".into(), problem }));
        }
        let body: Body = serde_path_to_error::deserialize(&value).map_err(|error| Refusal {
            job_id: value["job_id"].as_str().and_then(|id| JobId::new(id).ok()),
            callback: CallbackBody::deserialize(&value["callback"]).ok().map(CallbackBody::into_callback),
            error: invalid(&error),
        })?;
        Ok(body.into_job(defaults))
    }
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(deserialize_with = "job_id")]
    job_id: JobId,
    #[serde(default)]
    task: TaskName,
    prompt: Prompt,
    #[serde(default)]
    negative_prompt: Prompt,
    model: Option<ModelName>,
    #[serde(default, deserialize_with = "loras")]
    lora: Vec<LoraBody>,
    steps: Option<StepCount>,
    guidance_scale: Option<GuidanceScale>,
    #[serde(default, deserialize_with = "scheduler")]
    scheduler: Option<Scheduler>,
    width: Option<SidePx>,
    height: Option<SidePx>,
    num_images: Option<ImageCount>,
    seed: Option<Seed>,
    watermark: Option<WatermarkBody>,
    #[serde(default)]
    output: OutputBody,
    callback: Option<CallbackBody>,
}

#[derive(Default)]
struct TaskName;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LoraBody {
    #[serde(deserialize_with = "asset_url")]
    url: AssetUrl,
    scale: Option<LoraScale>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WatermarkBody {
    #[serde(deserialize_with = "watermark_text")]
    text: String,
    #[serde(default, deserialize_with = "anchor")]
    position: Option<Anchor>,
    opacity: Option<Opacity>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputBody {
    #[serde(default, deserialize_with = "prefix")]
    prefix: Option<String>,
    #[serde(default, deserialize_with = "format")]
    format: Option<PictureFormat>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CallbackBody {
    #[serde(default, deserialize_with = "callback_url")]
    url: Option<CallbackUrl>,
    #[serde(default)]
    metadata: Map<String, Value>,
}

impl CallbackBody {
    fn into_callback(self) -> Callback {
        Callback { url: self.url, metadata: self.metadata }
    }
}

impl Body {
    fn into_job(self, defaults: &Defaults) -> Job {
        let TaskName = self.task;
        let generate = Generate {
            model: self.model.unwrap_or_else(|| defaults.model.clone()),
            prompt: self.prompt,
            negative_prompt: self.negative_prompt,
            loras: self
                .lora
                .into_iter()
                .map(|lora| Lora { url: lora.url, scale: lora.scale.unwrap_or_else(LoraScale::one) })
                .collect(),
            steps: self.steps.unwrap_or(defaults.steps),
            guidance_scale: self.guidance_scale.unwrap_or(defaults.guidance_scale),
            scheduler: self.scheduler.unwrap_or(defaults.scheduler),
            size: Size::new(self.width.unwrap_or(defaults.width), self.height.unwrap_or(defaults.height)),
            num_images: self.num_images.unwrap_or_else(ImageCount::one),
            seed: self.seed.unwrap_or(defaults.seed),
        };
        let watermark = self.watermark.map(|watermark| Watermark {
            text: watermark.text,
            position: watermark.position.unwrap_or(Anchor::BottomRight),
            opacity: watermark.opacity.unwrap_or_else(Opacity::usual),
        });
        let output = Output {
            prefix: self.output.prefix.unwrap_or_else(|| defaults.prefix.clone()),
            format: self.output.format.unwrap_or(PictureFormat::Png),
        };
        let fingerprint = fingerprint(&generate, watermark.as_ref(), &output);
        Job {
            id: self.job_id,
            task: Task::Generate(generate),
            watermark,
            output,
            callback: self.callback.map(CallbackBody::into_callback),
            fingerprint,
        }
    }
}

fn fingerprint(generate: &Generate, watermark: Option<&Watermark>, output: &Output) -> String {
    let loras: Vec<Value> =
        generate.loras.iter().map(|lora| serde_json::json!([lora.url.identity(), lora.scale.get()])).collect();
    let canonical = serde_json::json!({
        "task": "generate",
        "model": generate.model,
        "prompt": generate.prompt,
        "negative_prompt": generate.negative_prompt,
        "lora": loras,
        "steps": generate.steps,
        "guidance_scale": generate.guidance_scale,
        "scheduler": generate.scheduler,
        "width": generate.size.width_px(),
        "height": generate.size.height_px(),
        "num_images": generate.num_images,
        "seed": generate.seed,
        "watermark": watermark,
        "output": output,
    });
    base16ct::lower::encode_string(&Sha256::digest(canonical.to_string()))
}

impl<'de> Deserialize<'de> for TaskName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(name) if name == "generate" => Ok(Self),
            other => Err(de::Error::custom(format!("must be \"generate\", got {}", shown(&other)))),
        }
    }
}

fn checked<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    what: &str,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => read(&text).map_err(de::Error::custom),
        other => Err(de::Error::custom(format!("must be {what}, got {}", shown(&other)))),
    }
}

fn job_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JobId, D::Error> {
    checked(deserializer, "a text", JobId::new)
}

fn asset_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<AssetUrl, D::Error> {
    checked(deserializer, "an address", AssetUrl::parse)
}

fn callback_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<CallbackUrl>, D::Error> {
    checked(deserializer, "an address", CallbackUrl::parse).map(Some)
}

fn loras<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<LoraBody>, D::Error> {
    const MOST: usize = 8;
    let loras = Vec::<LoraBody>::deserialize(deserializer)?;
    if loras.len() <= MOST { Ok(loras) } else { Err(de::Error::custom(format!("must be at most {MOST}, got {}", loras.len()))) }
}

fn named<'de, D: Deserializer<'de>, T: de::DeserializeOwned>(deserializer: D, names: &str) -> Result<Option<T>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let got = shown(&value);
    serde_json::from_value(value).map(Some).map_err(|_| de::Error::custom(format!("must be one of {names}, got {got}")))
}

fn scheduler<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Scheduler>, D::Error> {
    named(deserializer, Scheduler::NAMES)
}

fn anchor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Anchor>, D::Error> {
    named(deserializer, Anchor::NAMES)
}

fn format<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PictureFormat>, D::Error> {
    named(deserializer, "png, jpeg, webp")
}

fn watermark_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(deserializer, "a text", |text| match text.chars().count() {
        1..=120 if text.chars().all(|c| !c.is_control()) => Ok(text.to_owned()),
        chars => Err(format!("must be 1 to 120 characters without line breaks, got {chars}")),
    })
}

fn prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    checked(deserializer, "a text", |text| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '=');
        let tidy = text.is_empty() || (text.ends_with('/') && !text.starts_with('/'));
        let parts = text.split('/').all(|part| part != "." && part != "..") && !text.contains("//");
        if text.len() <= 512 && tidy && parts && text.chars().all(plain) {
            Ok(Some(text.to_owned()))
        } else {
            Err(format!(
                "must be at most 512 of the characters A-Z a-z 0-9 . _ - = / , end in a slash and hold no empty, . or .. part, \
                 got {}",
                shown(&Value::from(text))
            ))
        }
    })
}
