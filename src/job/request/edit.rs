//! The body of task `edit`, and what it gets that leaves a field out.

use serde::Deserialize;
use serde_json::{Value, json};

use super::loras::{self, LoraBody, loras};
use super::seed::SeedChoice;
use super::{CallbackBody, Common, Defaults, OutputBody, Read, TaskName, UpscaleBody, WatermarkBody, field};
use crate::job::JobId;
use crate::job::consent::Consent;
use crate::job::outcome::JobError;
use crate::job::task::edit::{Edit, EditImages};
use crate::job::task::sampling::StepCache;
use crate::job::task::tryon::Mode;
use crate::job::task::{EditSidePx, GuidanceScale, ImageCount, ModelName, Prompt, Seed, StepCount, Task};
use crate::job::url::AssetUrl;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    #[serde(deserialize_with = "field::job_id")]
    job_id: JobId,
    task: TaskName,
    prompt: Prompt,
    #[serde(deserialize_with = "field::edit_images")]
    images: EditImages,
    #[serde(default, deserialize_with = "field::or_default")]
    negative_prompt: Prompt,
    model: Option<ModelName>,
    #[serde(default, deserialize_with = "loras")]
    lora: Vec<LoraBody>,
    #[serde(default, deserialize_with = "field::mode")]
    mode: Option<Mode>,
    steps: Option<StepCount>,
    guidance_scale: Option<GuidanceScale>,
    width: Option<EditSidePx>,
    height: Option<EditSidePx>,
    num_images: Option<ImageCount>,
    seed: Option<SeedChoice>,
    step_cache: Option<StepCache>,
    upscale: Option<UpscaleBody>,
    watermark: Option<WatermarkBody>,
    #[serde(default, deserialize_with = "field::or_default")]
    output: OutputBody,
    consent: Option<Consent>,
    callback: Option<CallbackBody>,
    #[serde(default, deserialize_with = "field::passed_through")]
    tenant: Option<String>,
}

impl Body {
    /// # Errors
    /// [`JobError::Invalid`] of a LoRA that says its alpha twice.
    pub(super) fn read(self, defaults: &Defaults) -> Result<Read, JobError> {
        let mode = self.mode.or_else(|| (!defaults.edits_without_modes).then_some(defaults.tryon.mode));
        let mut edit = Edit {
            model: self.model.unwrap_or_else(|| defaults.model.clone()),
            images: self.images,
            prompt: self.prompt,
            negative_prompt: self.negative_prompt,
            loras: loras::read(self.lora)?,
            mode,
            steps: self.steps.unwrap_or_else(|| mode.map_or(defaults.steps, |mode| defaults.tryon.steps_in(mode))),
            guidance_scale: self
                .guidance_scale
                .unwrap_or_else(|| mode.map_or(defaults.guidance_scale, Mode::default_guidance_scale)),
            width: self.width,
            height: self.height,
            num_images: self.num_images.unwrap_or_else(ImageCount::one),
            step_cache: self.step_cache,
            seed: Seed::default_value(),
        };
        let mut canonical = canonical(self.task, &edit);
        edit.seed = self.seed.unwrap_or(defaults.seed).acknowledge(&self.job_id, &mut canonical);
        let common = Common {
            job_id: self.job_id,
            upscale: self.upscale,
            watermark: self.watermark,
            output: self.output,
            consent: self.consent,
            callback: self.callback,
            tenant: self.tenant,
        };
        Ok(Read { common, task: Task::Edit(edit), canonical })
    }
}

/// Everything that decides the images before they are signed and stored.
fn canonical(task: TaskName, edit: &Edit) -> Value {
    let mut canonical = json!({
        "task": task,
        "model": edit.model,
        "images": edit.images.get().iter().map(AssetUrl::identity).collect::<Vec<_>>(),
        "prompt": edit.prompt,
        "negative_prompt": edit.negative_prompt,
        "mode": edit.mode,
        "steps": edit.steps,
        "guidance_scale": edit.guidance_scale,
        "width": edit.width,
        "height": edit.height,
        "num_images": edit.num_images,
        "seed": edit.seed,
    });
    // These came later: the fingerprint of older jobs must stay what it was.
    if !edit.loras.is_empty() {
        canonical["lora"] = edit.loras.iter().map(loras::canonical).collect();
    }
    if let Some(step_cache) = edit.step_cache {
        canonical["step_cache"] = json!(step_cache);
    }
    canonical
}
