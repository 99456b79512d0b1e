//! What the text chunks of a PNG say of how it was generated.

use serde_json::{Value, json};

use super::mark::CREATOR_TOOL;
use crate::job::task::control::{Control, Detector};
use crate::job::task::edit::Edit;
use crate::job::task::ip_adapter::ImagePrompt;
use crate::job::task::tryon::TryOn;
use crate::job::task::{Generate, Lora, LoraAlphaSource, Task};
use crate::job::{Job, MetadataLevel};
use atelier_engine::Image;

/// (keyword, text) of each chunk of `image`, which is one of the job's.
pub(super) fn of(job: &Job, image: &Image, level: MetadataLevel) -> Vec<(&'static str, String)> {
    // The PNG standard's keyword.
    let software = ("Software", CREATOR_TOOL.to_owned());
    match level {
        MetadataLevel::None => Vec::new(),
        MetadataLevel::Minimal => vec![software],
        MetadataLevel::Full => {
            let mut texts = match &job.task {
                Task::Generate(generate) => parameters(job, generate, image.seed),
                Task::TryOn(tryon) => tryon_parameters(job, tryon, image.seed),
                Task::Edit(edit) => edit_parameters(job, edit, image),
            };
            texts.push(software);
            texts
        }
    }
}

/// What a PNG says about how it was generated; `seed` is this image's own.
///
/// - `parameters`: the text that AUTOMATIC1111's web UI writes, which most viewers of generated images read.
/// - `atelier`: the same as JSON, in the words of the job body.
fn parameters(job: &Job, task: &Generate, seed: u64) -> Vec<(&'static str, String)> {
    let scheduler = json!(task.scheduler);
    let mut text = task.prompt.as_str().to_owned();
    if !task.negative_prompt.as_str().is_empty() {
        text = format!("{text}\nNegative prompt: {}", task.negative_prompt.as_str());
    }
    text = format!(
        "{text}\nSteps: {}, Sampler: {}, CFG scale: {}, Seed: {seed}, Size: {}, Model: {}, Version: atelier {}",
        task.steps.get(),
        scheduler.as_str().unwrap_or_default(),
        task.guidance_scale.get(),
        task.size,
        task.model.as_str(),
        env!("CARGO_PKG_VERSION"),
    );
    // Without the query, which may be a presigned address's signature.
    let loras: Vec<_> = task.loras.iter().map(described_lora).collect();
    let mut ours = json!({
        "job_id": job.id,
        "prompt": task.prompt,
        "negative_prompt": task.negative_prompt,
        "model": task.model,
        "lora": loras,
        "steps": task.steps,
        "guidance_scale": task.guidance_scale,
        "scheduler": scheduler,
        "width": task.size.width_px(),
        "height": task.size.height_px(),
        "seed": seed,
    });
    for (name, value) in task.sampling.fields() {
        ours[name] = value;
    }
    if let Some(mode) = task.mode {
        ours["mode"] = json!(mode);
    }
    if !task.embeddings.is_empty() {
        let embeddings = task.embeddings.iter().map(|word| json!({ "url": word.url.to_string(), "token": word.token }));
        ours["embeddings"] = embeddings.collect();
    }
    if let Some(start) = &task.start {
        ours["init_image"] = json!({ "url": start.url.to_string() });
        ours["strength"] = json!(start.strength);
        ours["mask_image"] = json!(start.mask.as_ref().map(|url| json!({ "url": url.to_string() })));
    }
    if !task.controls.is_empty() {
        ours["controlnets"] = task.controls.iter().map(described_control).collect();
    }
    if !task.image_prompts.is_empty() {
        ours["ip_adapters"] = task.image_prompts.iter().map(described_prompt).collect();
    }
    if let Some(upscale) = &job.upscale {
        ours["upscale"] = json!(upscale);
    }
    vec![("parameters", text), ("atelier", ours.to_string())]
}

fn described_control(control: &Control) -> Value {
    let mut described = json!({
        "name": control.name,
        "image": { "url": control.image.to_string() },
        "scale": control.scale,
        "start": control.start,
        "end": control.end,
    });
    if let Some(Detector::Canny { low, high }) = control.detect {
        described["detect"] = json!(Detector::CANNY);
        described["low_threshold"] = json!(low);
        described["high_threshold"] = json!(high);
    }
    described
}

fn described_prompt(prompt: &ImagePrompt) -> Value {
    let images: Vec<String> = prompt.images.get().iter().map(ToString::to_string).collect();
    json!({ "name": prompt.name, "images": images, "scale": prompt.scale })
}

fn described_lora(lora: &Lora) -> Value {
    let mut described = json!({ "url": lora.url.to_string(), "scale": lora.scale.get() });
    match &lora.alpha {
        LoraAlphaSource::File => {}
        LoraAlphaSource::Given(alpha) => described["alpha"] = json!(alpha),
        LoraAlphaSource::Config(url) => described["config_url"] = json!(url.to_string()),
    }
    described
}

/// The same for a try-on, whose images the caller has.
fn tryon_parameters(job: &Job, task: &TryOn, seed: u64) -> Vec<(&'static str, String)> {
    let mut ours = json!({
        "job_id": job.id,
        "prompt": task.prompt,
        "negative_prompt": task.negative_prompt,
        "mode": task.mode,
        "steps": task.steps,
        "guidance_scale": task.guidance_scale,
        "resolution": task.resolution,
        "seed": seed,
    });
    if let Some(step_cache) = task.step_cache {
        ours["step_cache"] = json!(step_cache);
    }
    if let Some(auto_mask) = &task.auto_mask {
        ours["auto_mask"] = json!(auto_mask);
    }
    if let Some(upscale) = &job.upscale {
        ours["upscale"] = json!(upscale);
    }
    vec![("atelier", ours.to_string())]
}

/// The same for an edit; its size is the image's, before it was enlarged.
fn edit_parameters(job: &Job, task: &Edit, image: &Image) -> Vec<(&'static str, String)> {
    let factor = job.upscale.as_ref().map_or(1, |upscale| upscale.factor.get());
    let mut ours = json!({
        "job_id": job.id,
        "prompt": task.prompt,
        "negative_prompt": task.negative_prompt,
        "model": task.model,
        // Without the query, which may be a presigned address's signature.
        "images": task.images.get().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "mode": task.mode,
        "steps": task.steps,
        "guidance_scale": task.guidance_scale,
        "width": image.width_px / factor,
        "height": image.height_px / factor,
        "seed": image.seed,
    });
    if !task.loras.is_empty() {
        ours["lora"] = task.loras.iter().map(described_lora).collect();
    }
    if let Some(step_cache) = task.step_cache {
        ours["step_cache"] = json!(step_cache);
    }
    if let Some(upscale) = &job.upscale {
        ours["upscale"] = json!(upscale);
    }
    vec![("atelier", ours.to_string())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::request::Defaults;

    fn texts(level: MetadataLevel) -> (Value, Vec<(&'static str, String)>) {
        let body = json!({ "job_id": "j-1", "prompt": "a \"teal\" Füchschen 🦊\nat dusk\0", "negative_prompt": "rain",
            "clip_skip": 1, "lora": [{ "url": "https://loras.example/ink.safetensors?X-Amz-Signature=secret" }] });
        let defaults: Defaults = serde_json::from_value(json!({ "model": "tiny-sd", "steps": 20, "guidance_scale": 7.5,
            "scheduler": "dpmsolver++", "width": 128, "height": 128, "seed": 42, "prefix": "" }))
        .unwrap();
        let job = Job::from_json(body.to_string().as_bytes(), &defaults).unwrap();
        let image = Image { width_px: 128, height_px: 128, rgb: Vec::new(), seed: 43 };
        (body, of(&job, &image, level))
    }

    #[test]
    fn a_png_says_how_it_was_generated() {
        let (body, texts) = texts(MetadataLevel::Full);
        let keywords: Vec<&str> = texts.iter().map(|(keyword, _)| *keyword).collect();
        assert_eq!(keywords, ["parameters", "atelier", "Software"]);
        assert_eq!(
            texts[0].1,
            format!(
                "a \"teal\" Füchschen 🦊\nat dusk\0\nNegative prompt: rain\nSteps: 20, Sampler: dpmsolver++, CFG scale: 7.5, \
                 Seed: 43, Size: 128x128, Model: tiny-sd, Version: {CREATOR_TOOL}"
            )
        );
        let ours: Value = serde_json::from_str(&texts[1].1).unwrap();
        assert_eq!((&ours["seed"], &ours["job_id"], &ours["prompt"]), (&json!(43), &json!("j-1"), &body["prompt"]));
        assert_eq!((&ours["clip_skip"], ours.get("eta")), (&json!(1), None));
        assert_eq!(ours["lora"], json!([{ "url": "https://loras.example/ink.safetensors", "scale": 1.0 }]));
    }

    #[test]
    fn what_is_private_stays_out_below_the_full_level() {
        assert_eq!(texts(MetadataLevel::Minimal).1, [("Software", CREATOR_TOOL.to_owned())]);
        assert_eq!(texts(MetadataLevel::None).1, []);
    }
}
