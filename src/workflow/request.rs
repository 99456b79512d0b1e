//! What the engine is asked for, out of a job and the files and images that the steps before have brought.

use image::{GrayImage, Rgb, RgbImage};

use super::context::{ControlImage, Decoded, EditInputs, GenerateInputs, TryOnInputs};
use crate::job::task::control::Control;
use crate::job::task::edit::Edit;
use crate::job::task::ip_adapter::ImagePrompt;
use crate::job::task::sampling::{
    ClipSkip, Eta, GuidanceRescale, HeightWidth, ImageGuidanceScale, Sampling, StepCache, TopLeft,
};
use crate::job::task::scheduler::{Sampler, Scheduler, SigmaSpacing};
use crate::job::task::tryon::TryOn;
use crate::job::task::{ImageCount, Prompt, Seed};
use atelier_engine::schedule::scheduler as engine;
use atelier_engine::{EditRequest, GenerateRequest, Request};

/// A job's inputs, as the engine takes them.
pub(super) fn request(inputs: &Decoded<'_>) -> Request {
    match inputs {
        Decoded::Generate(generate, GenerateInputs { loras, embeddings, start, controls: images, image_prompts }) => {
            Request::Generate(GenerateRequest {
                prompt: generate.prompt.as_str().to_owned(),
                negative_prompt: generate.negative_prompt.as_str().to_owned(),
                loras: loras.clone(),
                embeddings: embeddings.clone(),
                start: start.clone(),
                controls: controls(&generate.controls, images),
                image_prompts: prompts(&generate.image_prompts, image_prompts),
                strength: generate.start.as_ref().map_or(1.0, |start| start.strength.get()),
                steps: generate.steps.get(),
                guidance_scale: generate.guidance_scale.get(),
                scheduler: scheduler(generate.scheduler),
                sampling: sampling(&generate.sampling),
                mode: generate.mode.map(|mode| mode.as_str().to_owned()),
                width_px: generate.size.width_px(),
                height_px: generate.size.height_px(),
                seeds: seeds(generate.seed, generate.num_images),
            })
        }
        Decoded::TryOn(job, inputs) => Request::Edit(tryon(job, inputs)),
        Decoded::Edit(job, inputs) => Request::Edit(edit(job, inputs)),
    }
}

/// `images`: one a control.
fn controls(controls: &[Control], images: &[ControlImage]) -> Vec<atelier_engine::steering::Control> {
    let each =
        controls.iter().zip(images).map(|(control, ControlImage { sent, detected })| atelier_engine::steering::Control {
            net: control.name.as_str().to_owned(),
            image: detected.as_ref().unwrap_or(sent).clone(),
            scale: control.scale.get(),
            start: control.start.get(),
            end: control.end.get(),
        });
    each.collect()
}

/// `images`: those of each prompt.
fn prompts(prompts: &[ImagePrompt], images: &[Vec<RgbImage>]) -> Vec<atelier_engine::steering::ImagePrompt> {
    let each = prompts.iter().zip(images).map(|(prompt, images)| atelier_engine::steering::ImagePrompt {
        adapter: prompt.name.as_str().to_owned(),
        images: images.clone(),
        scale: prompt.scale.get(),
    });
    each.collect()
}

/// The engine has names of its own, so that it need not know how a job is written.
fn scheduler(scheduler: Scheduler) -> engine::Scheduler {
    let spacing = scheduler.spacing.map(|spacing| match spacing {
        SigmaSpacing::Karras => engine::SigmaSpacing::Karras,
        SigmaSpacing::Exponential => engine::SigmaSpacing::Exponential,
        SigmaSpacing::Beta => engine::SigmaSpacing::Beta,
    });
    let sampler = match scheduler.sampler {
        Sampler::DpmSolverPlusPlus => engine::Sampler::DpmSolverPlusPlus,
        Sampler::DpmSolverPlusPlusSde => engine::Sampler::DpmSolverPlusPlusSde,
        Sampler::DpmSolverPlusPlusSinglestep => engine::Sampler::DpmSolverPlusPlusSinglestep,
        Sampler::Deis => engine::Sampler::Deis,
        Sampler::UniPc => engine::Sampler::UniPc,
        Sampler::Euler => engine::Sampler::Euler,
        Sampler::EulerAncestral => engine::Sampler::EulerAncestral,
        Sampler::Heun => engine::Sampler::Heun,
        Sampler::Dpm2 => engine::Sampler::Dpm2,
        Sampler::Dpm2Ancestral => engine::Sampler::Dpm2Ancestral,
        Sampler::Lms => engine::Sampler::Lms,
        Sampler::Pndm => engine::Sampler::Pndm,
        Sampler::Ddim => engine::Sampler::Ddim,
        Sampler::Ddpm => engine::Sampler::Ddpm,
        Sampler::Lcm => engine::Sampler::Lcm,
        Sampler::Tcd => engine::Sampler::Tcd,
    };
    engine::Scheduler { sampler, spacing }
}

fn sampling(sampling: &Sampling) -> atelier_engine::Sampling {
    atelier_engine::Sampling {
        timesteps: sampling.timesteps.as_ref().map(|timesteps| timesteps.get().to_vec()),
        sigmas: sampling.sigmas.as_ref().map(|sigmas| sigmas.get().to_vec()),
        eta: sampling.eta.map_or(0.0, Eta::get),
        guidance_rescale: sampling.guidance_rescale.map_or(0.0, GuidanceRescale::get),
        image_guidance_scale: sampling.image_guidance_scale.map(ImageGuidanceScale::get),
        clip_skip: sampling.clip_skip.map_or(0, ClipSkip::get),
        original_size: sampling.original_size.map(HeightWidth::get),
        crops_coords_top_left: sampling.crops_coords_top_left.map(TopLeft::get),
        target_size: sampling.target_size.map(HeightWidth::get),
        step_cache: sampling.step_cache.map(step_cache),
    }
}

fn step_cache(step_cache: StepCache) -> atelier_engine::step_cache::StepCache {
    match step_cache {
        StepCache::Interval(interval) => atelier_engine::step_cache::StepCache::Interval(interval.get()),
        StepCache::Threshold(threshold) => atelier_engine::step_cache::StepCache::Threshold(threshold.get()),
    }
}

/// Image `n` has the noise of `seed + n`, so that it can be generated again alone.
fn seeds(first: Seed, count: ImageCount) -> Vec<u64> {
    (0..u64::from(count.get())).map(|image| first.get() + image).collect()
}

fn edit(edit: &Edit, EditInputs { loras, images, width_px, height_px }: &EditInputs) -> EditRequest {
    EditRequest {
        images: images.clone(),
        prompt: edit.prompt.as_str().to_owned(),
        negative_prompt: edit.negative_prompt.as_str().to_owned(),
        loras: loras.clone(),
        steps: edit.steps.get(),
        guidance_scale: edit.guidance_scale.get(),
        mode: edit.mode.map(|mode| mode.as_str().to_owned()),
        seeds: seeds(edit.seed, edit.num_images),
        width_px: *width_px,
        height_px: *height_px,
        step_cache: edit.step_cache.map(step_cache),
    }
}

fn tryon(tryon: &TryOn, TryOnInputs { person, garments, mask }: &TryOnInputs) -> EditRequest {
    let mut images = vec![mask.as_ref().map_or_else(|| person.clone(), |mask| filled_green(person, mask))];
    images.extend(garments.iter().cloned());
    // Letter by letter: a blank at the end is a token of its own.
    let own = tryon.prompt.as_ref().map(Prompt::as_str).filter(|prompt| !prompt.trim().is_empty());
    EditRequest {
        images,
        prompt: own.map_or_else(|| default_instruction(garments.len()), str::to_owned),
        negative_prompt: tryon.negative_prompt.as_str().to_owned(),
        loras: Vec::new(),
        steps: tryon.steps.get(),
        guidance_scale: tryon.guidance_scale.get(),
        mode: Some(tryon.mode.as_str().to_owned()),
        seeds: seeds(tryon.seed, tryon.num_images),
        width_px: person.width(),
        height_px: person.height(),
        step_cache: tryon.step_cache.map(step_cache),
    }
}

/// The callers of the service that this replaces send a person with the part that is to be dressed filled green; the instruction
/// speaks of that, so a mask is generated the same way.
fn filled_green(person: &RgbImage, mask: &GrayImage) -> RgbImage {
    let mut masked = person.clone();
    for (pixel, mask) in masked.pixels_mut().zip(mask.pixels()) {
        if mask.0[0] >= 128 {
            *pixel = Rgb([0, 255, 0]);
        }
    }
    masked
}

/// What a job is generated by that says nothing itself.
fn default_instruction(garments: usize) -> String {
    let worn = match garments {
        1 => "the garment of image 2".to_owned(),
        more => format!("the garments of images 2 to {}", more + 1),
    };
    format!(
        "Dress the person in image 1 in {worn}. If a part of image 1 is green, it only tells which part of the body is meant. Keep the \
         garment's colour, pattern, texture and cut. Keep the person's face, hair, skin, body, pose and the background as they are."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_and_the_engine_mean_the_same_by_a_schedulers_name() {
        for sampler in engine::Sampler::ALL {
            let named = Scheduler::named(sampler.as_str()).expect("a job can ask for it");
            assert_eq!(scheduler(named), engine::Scheduler::plain(sampler));
            assert_eq!(named.sampler.takes_spacings(), sampler.takes_spacings(), "{named}");
        }
        assert_eq!(scheduler(Scheduler::karras(Sampler::Heun)), engine::Scheduler::karras(engine::Sampler::Heun));
    }
}
