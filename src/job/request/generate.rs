//! The body of task `generate`, and what it gets that leaves a field out.

use serde::{Deserialize, Deserializer, de};
use serde_json::{Value, json};

use super::{CallbackBody, Common, Defaults, OutputBody, Read, TaskName, WatermarkBody, field};
use crate::job::JobId;
use crate::job::task::{
    Generate, GuidanceScale, ImageCount, Lora, LoraScale, ModelName, Prompt, Scheduler, Seed, SidePx, Size, StepCount, Task,
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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LoraBody {
    url: AssetUrl,
    scale: Option<LoraScale>,
}

impl Body {
    pub(super) fn read(self, defaults: &Defaults) -> Read {
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
        let canonical = canonical(self.task, &generate);
        let common = Common { job_id: self.job_id, watermark: self.watermark, output: self.output, callback: self.callback };
        Read { common, task: Task::Generate(generate), canonical }
    }
}

/// Everything that decides the pictures before they are signed and stored.
fn canonical(task: TaskName, generate: &Generate) -> Value {
    let loras: Vec<Value> = generate.loras.iter().map(|lora| json!([lora.url.identity(), lora.scale.get()])).collect();
    json!({
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
    })
}

fn loras<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<LoraBody>, D::Error> {
    const MOST: usize = 8;
    let loras = Vec::<LoraBody>::deserialize(deserializer)?;
    if loras.len() <= MOST { Ok(loras) } else { Err(de::Error::custom(format!("must be at most {MOST}, got {}", loras.len()))) }
}
