//! The body of task `tryon`, and what it gets that leaves a field out.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{CallbackBody, Common, OutputBody, Read, TaskName, UpscaleBody, WatermarkBody, field};
use crate::job::JobId;
use crate::job::consent::Consent;
use crate::job::task::sampling::StepCache;
use crate::job::task::tryon::{Garments, Mode, Requester, Resolution, TryOn};
use crate::job::task::{GuidanceScale, ImageCount, Prompt, Seed, StepCount, Task};
use crate::job::url::AssetUrl;

/// What a job of a model with modes gets that leaves a field out: a try-on, an edit.
#[derive(Debug, Clone, PartialEq)]
pub struct TryOnDefaults {
    pub mode: Mode,
    /// Steps of a job in this mode; a job that names another mode has that mode's own.
    pub steps: StepCount,
    pub resolution: Resolution,
}

impl TryOnDefaults {
    /// Steps of a job in `mode` that says nothing itself.
    pub(super) fn steps_in(&self, mode: Mode) -> StepCount {
        if mode == self.mode { self.steps } else { mode.default_steps() }
    }
}

impl Default for TryOnDefaults {
    fn default() -> Self {
        Self { mode: Mode::Fp8, steps: Mode::Fp8.default_steps(), resolution: Resolution::P720 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    #[serde(deserialize_with = "field::job_id")]
    job_id: JobId,
    task: TaskName,
    person: AssetUrl,
    #[serde(deserialize_with = "field::garments")]
    garments: Garments,
    mask: Option<AssetUrl>,
    prompt: Option<Prompt>,
    #[serde(default, deserialize_with = "field::or_default")]
    negative_prompt: Prompt,
    #[serde(default, deserialize_with = "field::mode")]
    mode: Option<Mode>,
    steps: Option<StepCount>,
    #[serde(default, deserialize_with = "field::tryon_guidance_scale")]
    guidance_scale: Option<GuidanceScale>,
    seed: Option<Seed>,
    #[serde(default, deserialize_with = "field::resolution")]
    resolution: Option<Resolution>,
    num_images: Option<ImageCount>,
    step_cache: Option<StepCache>,
    upscale: Option<UpscaleBody>,
    watermark: Option<WatermarkBody>,
    #[serde(default, deserialize_with = "field::or_default")]
    output: OutputBody,
    consent: Option<Consent>,
    callback: Option<CallbackBody>,
    #[serde(default, deserialize_with = "field::passed_through")]
    tenant: Option<String>,
    #[serde(default, deserialize_with = "field::passed_through")]
    user_id: Option<String>,
    #[serde(default, deserialize_with = "field::passed_through")]
    session_id: Option<String>,
    #[serde(default, deserialize_with = "field::passed_through")]
    provider: Option<String>,
}

impl Body {
    pub(super) fn read(self, defaults: &TryOnDefaults) -> Read {
        let mode = self.mode.unwrap_or(defaults.mode);
        let tryon = TryOn {
            person: self.person,
            garments: self.garments,
            mask: self.mask,
            prompt: self.prompt,
            negative_prompt: self.negative_prompt,
            mode,
            steps: self.steps.unwrap_or_else(|| defaults.steps_in(mode)),
            guidance_scale: self.guidance_scale.unwrap_or_else(|| mode.default_guidance_scale()),
            seed: self.seed.unwrap_or_else(Seed::default_value),
            resolution: self.resolution.unwrap_or(defaults.resolution),
            num_images: self.num_images.unwrap_or_else(ImageCount::one),
            step_cache: self.step_cache,
            requester: Requester { user_id: self.user_id, session_id: self.session_id, provider: self.provider },
        };
        let canonical = canonical(self.task, &tryon);
        let common = Common {
            job_id: self.job_id,
            upscale: self.upscale,
            watermark: self.watermark,
            output: self.output,
            consent: self.consent,
            callback: self.callback,
            tenant: self.tenant,
        };
        Read { common, task: Task::TryOn(tryon), canonical }
    }
}

/// Everything that decides the images before they are signed and stored.
fn canonical(task: TaskName, tryon: &TryOn) -> Value {
    let mut canonical = json!({
        "task": task,
        "person": tryon.person.identity(),
        "garments": tryon.garments.get().iter().map(AssetUrl::identity).collect::<Vec<_>>(),
        "mask": tryon.mask.as_ref().map(AssetUrl::identity),
        "prompt": tryon.prompt,
        "negative_prompt": tryon.negative_prompt,
        "mode": tryon.mode,
        "steps": tryon.steps,
        "guidance_scale": tryon.guidance_scale,
        "seed": tryon.seed,
        "resolution": tryon.resolution,
        "num_images": tryon.num_images,
    });
    // It came later: the fingerprint of older jobs must stay what it was.
    if let Some(step_cache) = tryon.step_cache {
        canonical["step_cache"] = json!(step_cache);
    }
    canonical
}

/// As much of who asked as can be read of a body that is no job.
pub(super) fn requester(body: &Value) -> Requester {
    let text = |name: &str| body[name].as_str().filter(|text| text.chars().count() <= Requester::MAX_CHARS).map(str::to_owned);
    Requester { user_id: text("user_id"), session_id: text("session_id"), provider: text("provider") }
}
