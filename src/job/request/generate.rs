//! The body of task `generate`, and what it gets that leaves a field out.

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::controls::{self, ControlBody, controls};
use super::field::ImageBody;
use super::ip_adapters::{self, IpAdapterBody, ip_adapters};
use super::loras::{self, LoraBody, at_most_eight, loras};
use super::seed::SeedChoice;
use super::{CallbackBody, Common, Defaults, OutputBody, Read, TaskName, UpscaleBody, WatermarkBody, field};
use crate::job::JobId;
use crate::job::consent::Consent;
use crate::job::outcome::JobError;
use crate::job::task::prompt::{Embedding, EmbeddingToken};
use crate::job::task::sampling::{
    ClipSkip, Eta, GuidanceRescale, HeightWidth, ImageGuidanceScale, Sampling, Sigmas, StepCache, Timesteps, TopLeft,
};
use crate::job::task::scheduler::Scheduler;
use crate::job::task::start::StartImage;
use crate::job::task::tryon::Mode;
use crate::job::task::{Generate, GuidanceScale, ImageCount, ModelName, Prompt, Seed, SidePx, Size, StepCount, Strength, Task};
use crate::job::url::AssetUrl;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    #[serde(deserialize_with = "field::job_id")]
    job_id: JobId,
    #[serde(default, deserialize_with = "field::or_default")]
    task: TaskName,
    prompt: Prompt,
    #[serde(default, deserialize_with = "field::or_default")]
    negative_prompt: Prompt,
    model: Option<ModelName>,
    #[serde(default, deserialize_with = "loras")]
    lora: Vec<LoraBody>,
    #[serde(default, deserialize_with = "embeddings")]
    embeddings: Vec<EmbeddingBody>,
    #[serde(default, deserialize_with = "controls")]
    controlnets: Vec<ControlBody>,
    #[serde(default, deserialize_with = "ip_adapters")]
    ip_adapters: Vec<IpAdapterBody>,
    init_image: Option<ImageBody>,
    strength: Option<Strength>,
    mask_image: Option<ImageBody>,
    #[serde(default, deserialize_with = "field::mode")]
    mode: Option<Mode>,
    steps: Option<StepCount>,
    guidance_scale: Option<GuidanceScale>,
    #[serde(default, deserialize_with = "field::scheduler")]
    scheduler: Option<Scheduler>,
    width: Option<SidePx>,
    height: Option<SidePx>,
    num_images: Option<ImageCount>,
    seed: Option<SeedChoice>,
    timesteps: Option<Timesteps>,
    sigmas: Option<Sigmas>,
    eta: Option<Eta>,
    guidance_rescale: Option<GuidanceRescale>,
    image_guidance_scale: Option<ImageGuidanceScale>,
    clip_skip: Option<ClipSkip>,
    original_size: Option<HeightWidth>,
    crops_coords_top_left: Option<TopLeft>,
    target_size: Option<HeightWidth>,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EmbeddingBody {
    url: AssetUrl,
    token: EmbeddingToken,
}

impl Body {
    pub(super) fn read(self, defaults: &Defaults) -> Result<Read, JobError> {
        let scheduler = self.scheduler.unwrap_or(defaults.scheduler);
        let sampling = Sampling {
            timesteps: self.timesteps,
            sigmas: self.sigmas,
            eta: self.eta,
            guidance_rescale: self.guidance_rescale,
            image_guidance_scale: self.image_guidance_scale,
            clip_skip: self.clip_skip,
            original_size: self.original_size,
            crops_coords_top_left: self.crops_coords_top_left,
            target_size: self.target_size,
            step_cache: self.step_cache,
        };
        let mode = self.mode.or_else(|| defaults.has_modes.then_some(defaults.tryon.mode));
        // What a distilled mode's weights were made for; the manifest speaks of the others.
        let distilled = mode.filter(|mode| *mode != Mode::Base);
        let default_steps = distilled.map_or(defaults.steps, |mode| defaults.tryon.steps_in(mode));
        let default_guidance_scale = distilled.map_or(defaults.guidance_scale, Mode::default_guidance_scale);
        let steps = steps(self.steps, default_steps, &sampling)?;
        check_sampling(&sampling, scheduler, self.init_image.is_some())?;
        let start = start(self.init_image, self.strength, self.mask_image, steps)?;
        let loras = loras::read(self.lora)?;
        let controls = self.controlnets.into_iter().enumerate().map(|(index, control)| control.read(index));
        let mut generate = Generate {
            model: self.model.unwrap_or_else(|| defaults.model.clone()),
            prompt: self.prompt,
            negative_prompt: self.negative_prompt,
            loras,
            embeddings: self.embeddings.into_iter().map(|body| Embedding { url: body.url, token: body.token }).collect(),
            start,
            controls: controls.collect::<Result<_, _>>()?,
            image_prompts: self.ip_adapters.into_iter().map(IpAdapterBody::read).collect(),
            steps,
            guidance_scale: self.guidance_scale.unwrap_or(default_guidance_scale),
            scheduler,
            sampling,
            mode,
            size: Size::new(self.width.unwrap_or(defaults.width), self.height.unwrap_or(defaults.height)),
            num_images: self.num_images.unwrap_or_else(ImageCount::one),
            seed: Seed::default_value(),
        };
        if generate.sampling.step_cache.is_some() && !generate.controls.is_empty() {
            let problem = "cannot be used together with controlnets: leave one of them out".into();
            return Err(JobError::Invalid { field: "step_cache".into(), problem });
        }
        let mut canonical = canonical(self.task, &generate);
        generate.seed = self.seed.unwrap_or(defaults.seed).acknowledge(&self.job_id, &mut canonical);
        let common = Common {
            job_id: self.job_id,
            upscale: self.upscale,
            watermark: self.watermark,
            output: self.output,
            consent: self.consent,
            callback: self.callback,
            tenant: self.tenant,
        };
        Ok(Read { common, task: Task::Generate(generate), canonical })
    }
}

/// The number of steps, which a list of timesteps or noise levels fixes.
fn steps(given: Option<StepCount>, default_value: StepCount, sampling: &Sampling) -> Result<StepCount, JobError> {
    let Some((list, listed)) = sampling.listed_steps() else { return Ok(given.unwrap_or(default_value)) };
    match given {
        Some(steps) if steps != listed => {
            let problem = format!("must be {}, the number that {list} has, or absent; got {}", listed.get(), steps.get());
            Err(JobError::Invalid { field: "steps".into(), problem })
        }
        _ => Ok(listed),
    }
}

/// What means nothing with this scheduler or start is refused, and not left out in silence.
fn check_sampling(sampling: &Sampling, scheduler: Scheduler, from_image: bool) -> Result<(), JobError> {
    let sampler = scheduler.sampler;
    let takes = "means something only with scheduler";
    let listed = sampling.timesteps.is_some() && sampling.sigmas.is_some();
    let wrong = [
        (listed, "sigmas", "cannot be given next to timesteps: leave one of them out".to_owned()),
        (
            sampling.timesteps.is_some() && !(sampler.takes_timesteps() && scheduler.spacing.is_none()),
            "timesteps",
            format!(
                "{takes} dpmsolver++, dpmsolver++-sde, dpmsolver++-singlestep, euler, heun, ddpm, lcm or tcd, got {scheduler}"
            ),
        ),
        (
            sampling.sigmas.is_some() && !(sampler.takes_sigmas() && scheduler.spacing.is_none()),
            "sigmas",
            format!("{takes} euler, got {scheduler}"),
        ),
        (sampling.eta.is_some() && !sampler.takes_eta(), "eta", format!("{takes} ddim or tcd, got {scheduler}")),
        (
            sampling.guidance_rescale.is_some() && from_image,
            "guidance_rescale",
            "means something only without init_image: diffusers has it for images from text alone".to_owned(),
        ),
        (
            sampling.image_guidance_scale.is_some() && !from_image,
            "image_guidance_scale",
            "means something only with init_image: give that as well".to_owned(),
        ),
    ];
    match wrong.into_iter().find(|(is_wrong, ..)| *is_wrong) {
        None => Ok(()),
        Some((_, field, problem)) => Err(JobError::Invalid { field: field.into(), problem }),
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
    let given = strength.is_some();
    let strength = strength.unwrap_or_else(|| Strength::default_value(mask.is_some()));
    let start = StartImage { url, strength, mask };
    if start.skipped(steps) < steps.get() {
        return Ok(Some(start));
    }
    let strength = strength.get();
    let steps = steps.get();
    if given {
        let least = 1.0 / f64::from(steps);
        return invalid("strength", format!("must be at least {least:.3} for one of {steps} steps, got {strength}"));
    }
    let least = (1.0 / strength).ceil();
    invalid(
        "steps",
        format!("must be at least {least} with the default strength of {strength}, or give a strength; got {steps}"),
    )
}

/// Everything that decides the images before they are signed and stored.
fn canonical(task: TaskName, generate: &Generate) -> Value {
    let loras: Vec<Value> = generate.loras.iter().map(loras::canonical).collect();
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
    for (name, value) in generate.sampling.fields() {
        canonical[name] = value;
    }
    if let Some(mode) = generate.mode {
        canonical["mode"] = json!(mode);
    }
    if let Some(StartImage { url, strength, mask }) = &generate.start {
        canonical["start"] = json!([url.identity(), strength, mask.as_ref().map(AssetUrl::identity)]);
    }
    if !generate.controls.is_empty() {
        canonical["controlnets"] = generate.controls.iter().map(controls::canonical).collect();
    }
    if !generate.image_prompts.is_empty() {
        canonical["ip_adapters"] = generate.image_prompts.iter().map(ip_adapters::canonical).collect();
    }
    canonical
}

fn embeddings<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<EmbeddingBody>, D::Error> {
    at_most_eight(field::or_default(deserializer)?)
}
