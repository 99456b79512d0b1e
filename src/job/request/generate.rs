//! The body of task `generate`, and what it gets that leaves a field out.

use serde::{Deserialize, Deserializer, de};
use serde_json::{Value, json};

use super::{CallbackBody, Common, Defaults, OutputBody, Read, TaskName, WatermarkBody, field};
use crate::job::JobId;
use crate::job::outcome::JobError;
use crate::job::task::prompt::{Embedding, EmbeddingToken};
use crate::job::task::start::StartImage;
use crate::job::task::{
    Generate, GuidanceScale, ImageCount, Lora, LoraScale, ModelName, Prompt, Scheduler, Seed, SidePx, Size, StepCount,
    Strength, Task,
};
use crate::job::url::AssetUrl;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    #[serde(deserialize_with = "field::job_id")]
    job_id: JobId,
    #[serde(default)]
    task: TaskName,
    prompt: Prompt,
    #[serde(default)]
    negative_prompt: Prompt,
    model: Option<ModelName>,
    #[serde(default, deserialize_with = "loras")]
    lora: Vec<LoraBody>,
    #[serde(default, deserialize_with = "embeddings")]
    embeddings: Vec<EmbeddingBody>,
    init_image: Option<ImageBody>,
    strength: Option<Strength>,
    mask_image: Option<ImageBody>,
    steps: Option<StepCount>,
    guidance_scale: Option<GuidanceScale>,
    #[serde(default, deserialize_with = "field::scheduler")]
    scheduler: Option<Scheduler>,
    width: Option<SidePx>,
    height: Option<SidePx>,
    num_images: Option<ImageCount>,
    seed: Option<Seed>,
    watermark: Option<WatermarkBody>,
    #[serde(default)]
    output: OutputBody,
    callback: Option<CallbackBody>,
    #[serde(default, deserialize_with = "field::passed_through")]
    tenant: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LoraBody {
    url: AssetUrl,
    scale: Option<LoraScale>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EmbeddingBody {
    url: AssetUrl,
    token: EmbeddingToken,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageBody {
    url: AssetUrl,
}

impl Body {
    pub(super) fn read(self, defaults: &Defaults) -> Result<Read, JobError> {
        let steps = self.steps.unwrap_or(defaults.steps);
        let start = start(self.init_image, self.strength, self.mask_image, steps)?;
        let generate = Generate {
            model: self.model.unwrap_or_else(|| defaults.model.clone()),
            prompt: self.prompt,
            negative_prompt: self.negative_prompt,
            loras: self
                .lora
                .into_iter()
                .map(|lora| Lora { url: lora.url, scale: lora.scale.unwrap_or_else(LoraScale::one) })
                .collect(),
            embeddings: self.embeddings.into_iter().map(|body| Embedding { url: body.url, token: body.token }).collect(),
            start,
            steps,
            guidance_scale: self.guidance_scale.unwrap_or(defaults.guidance_scale),
            scheduler: self.scheduler.unwrap_or(defaults.scheduler),
            size: Size::new(self.width.unwrap_or(defaults.width), self.height.unwrap_or(defaults.height)),
            num_images: self.num_images.unwrap_or_else(ImageCount::one),
            seed: self.seed.unwrap_or(defaults.seed),
        };
        let canonical = canonical(self.task, &generate);
        let common = Common {
            job_id: self.job_id,
            watermark: self.watermark,
            output: self.output,
            callback: self.callback,
            tenant: self.tenant,
        };
        Ok(Read { common, task: Task::Generate(generate), canonical })
    }
}

/// What is started from, if anything: strength and mask say nothing by themselves.
fn start(
    image: Option<ImageBody>,
    strength: Option<Strength>,
    mask: Option<ImageBody>,
    steps: StepCount,
) -> Result<Option<StartImage>, JobError> {
    let invalid = |field: &str, problem: String| Err(JobError::Invalid { field: field.into(), problem });
    let Some(ImageBody { url }) = image else {
        let lonely = [("strength", strength.is_some()), ("mask_image", mask.is_some())];
        return match lonely.into_iter().find(|(_, given)| *given) {
            Some((field, _)) => invalid(field, "means something only with init_image: give that as well".into()),
            None => Ok(None),
        };
    };
    let mask = mask.map(|ImageBody { url }| url);
    let strength = strength.unwrap_or_else(|| Strength::default_value(mask.is_some()));
    let start = StartImage { url, strength, mask };
    if start.skipped(steps) < steps.get() {
        return Ok(Some(start));
    }
    let (strength, steps) = (strength.get(), steps.get());
    invalid("strength", format!("must be at least {:.3} for one of {steps} steps, got {strength}", 1.0 / f64::from(steps)))
}

/// Everything that decides the images before they are signed and stored.
fn canonical(task: TaskName, generate: &Generate) -> Value {
    let loras: Vec<Value> = generate.loras.iter().map(|lora| json!([lora.url.identity(), lora.scale.get()])).collect();
    let mut canonical = json!({
        "task": task,
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
    });
    // What came later is there only where it is used: the fingerprint of older jobs must stay what it was.
    if !generate.embeddings.is_empty() {
        let embeddings = generate.embeddings.iter().map(|embedding| json!([embedding.url.identity(), embedding.token]));
        canonical["embeddings"] = embeddings.collect();
    }
    if let Some(StartImage { url, strength, mask }) = &generate.start {
        canonical["start"] = json!([url.identity(), strength, mask.as_ref().map(AssetUrl::identity)]);
    }
    canonical
}

fn loras<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<LoraBody>, D::Error> {
    at_most_eight(Vec::deserialize(deserializer)?)
}

fn embeddings<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<EmbeddingBody>, D::Error> {
    at_most_eight(Vec::deserialize(deserializer)?)
}

fn at_most_eight<T, E: de::Error>(files: Vec<T>) -> Result<Vec<T>, E> {
    const MOST: usize = 8;
    if files.len() <= MOST { Ok(files) } else { Err(E::custom(format!("must be at most {MOST}, got {}", files.len()))) }
}
