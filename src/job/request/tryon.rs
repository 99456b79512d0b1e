//! The body of task `tryon`, and what it gets that leaves a field out.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{CallbackBody, Common, OutputBody, Read, TaskName, UpscaleBody, WatermarkBody, field};
use crate::job::JobId;
use crate::job::consent::Consent;
use crate::job::outcome::JobError;
use crate::job::task::auto_mask::{AutoMask, Classes, DilatePx, Garment, Parts};
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
    auto_mask: Option<AutoMaskBody>,
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
    pub(super) fn read(self, defaults: &TryOnDefaults) -> Result<Read, JobError> {
        if self.auto_mask.is_some() && self.mask.is_some() {
            return Err(invalid("auto_mask", "cannot be given together with mask: leave out one of them"));
        }
        let auto_mask = self.auto_mask.map(AutoMaskBody::read).transpose()?;
        let mode = self.mode.unwrap_or(defaults.mode);
        let tryon = TryOn {
            person: self.person,
            garments: self.garments,
            mask: self.mask,
            auto_mask,
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
        Ok(Read { common, task: Task::TryOn(tryon), canonical })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AutoMaskBody {
    #[serde(default, deserialize_with = "field::garment")]
    garment: Option<Garment>,
    limbs: Option<bool>,
    classes: Option<Classes>,
    dilate_px: Option<DilatePx>,
}

impl AutoMaskBody {
    fn read(self) -> Result<AutoMask, JobError> {
        let parts = match (self.classes, self.garment, self.limbs) {
            (None, garment, limbs) => {
                Parts::Garment { garment: garment.unwrap_or(Garment::Full), limbs: limbs.unwrap_or_default() }
            }
            (Some(classes), None, None) => Parts::Classes { classes },
            (Some(_), ..) => {
                return Err(invalid("auto_mask.classes", "says all of it: leave garment and limbs out"));
            }
        };
        Ok(AutoMask { parts, dilate_px: self.dilate_px })
    }
}

fn invalid(field: &str, problem: &str) -> JobError {
    JobError::Invalid { field: field.into(), problem: problem.into() }
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
    // They came later: the fingerprint of older jobs must stay what it was.
    if let Some(step_cache) = tryon.step_cache {
        canonical["step_cache"] = json!(step_cache);
    }
    if let Some(auto_mask) = &tryon.auto_mask {
        canonical["auto_mask"] = json!(auto_mask);
    }
    canonical
}

/// As much of who asked as can be read of a body that is no job.
pub(super) fn requester(body: &Value) -> Requester {
    let text = |name: &str| body[name].as_str().filter(|text| text.chars().count() <= Requester::MAX_CHARS).map(str::to_owned);
    Requester { user_id: text("user_id"), session_id: text("session_id"), provider: text("provider") }
}
