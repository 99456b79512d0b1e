//! Step `encode`: turns a generated image into the bytes of a file.

use std::io::Cursor;

use async_trait::async_trait;
use image::ExtendedColorType::Rgb8;
use image::ImageEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use serde_json::{Value, json};

use super::context::JobContext;
use super::{Step, StepName};
use crate::job::outcome::JobError;
use crate::job::task::edit::Edit;
use crate::job::task::tryon::TryOn;
use crate::job::task::{Generate, Lora, LoraAlphaSource, Task};
use crate::job::{ImageFormat, Job};
use atelier_engine::Image;

/// High enough that the blocks of 8x8 do not show on flat colours.
const JPEG_QUALITY: u8 = 92;

/// Step `encode`.
pub struct EncodeStep;

#[async_trait]
impl Step for EncodeStep {
    fn name(&self) -> StepName {
        StepName::Encode
    }

    async fn run(&self, context: &mut JobContext<'_>) -> Result<(), JobError> {
        for image in &context.images {
            let parameters = match &context.job.task {
                Task::Generate(generate) => parameters(context.job, generate, image.seed),
                Task::TryOn(tryon) => tryon_parameters(context.job, tryon, image.seed),
                Task::Edit(edit) => edit_parameters(context.job, edit, image),
            };
            context.files.push(encode(image, context.job.output.format, &parameters)?.into());
        }
        Ok(())
    }
}

/// What a PNG says about how it was generated; `seed` is this image's own.
///
/// - `parameters`: the text that AUTOMATIC1111's web UI writes, which most viewers of generated images read.
/// - `atelier`: the same as JSON, in the words of the job body.
/// - `Software`: the PNG standard's keyword.
#[must_use]
pub fn parameters(job: &Job, task: &Generate, seed: u64) -> Vec<(&'static str, String)> {
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
    vec![
        ("parameters", text),
        ("atelier", ours.to_string()),
        ("Software", concat!("atelier ", env!("CARGO_PKG_VERSION")).to_owned()),
    ]
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
    let ours = json!({
        "job_id": job.id,
        "prompt": task.prompt,
        "negative_prompt": task.negative_prompt,
        "mode": task.mode,
        "steps": task.steps,
        "guidance_scale": task.guidance_scale,
        "resolution": task.resolution,
        "seed": seed,
    });
    vec![("atelier", ours.to_string()), ("Software", concat!("atelier ", env!("CARGO_PKG_VERSION")).to_owned())]
}

/// The same for an edit; its size is the image's.
fn edit_parameters(job: &Job, task: &Edit, image: &Image) -> Vec<(&'static str, String)> {
    let ours = json!({
        "job_id": job.id,
        "prompt": task.prompt,
        "negative_prompt": task.negative_prompt,
        "model": task.model,
        // Without the query, which may be a presigned address's signature.
        "images": task.images.get().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "mode": task.mode,
        "steps": task.steps,
        "guidance_scale": task.guidance_scale,
        "width": image.width_px,
        "height": image.height_px,
        "seed": image.seed,
    });
    vec![("atelier", ours.to_string()), ("Software", concat!("atelier ", env!("CARGO_PKG_VERSION")).to_owned())]
}

/// Encodes `image`: PNG and WebP without loss, JPEG at quality 92 with full colour resolution (4:4:4).
/// Only PNG carries `parameters`, as text chunks of (keyword, text).
///
/// # Errors
/// [`JobError::Internal`] when the image's buffer does not match its size, or a keyword is none.
pub fn encode(image: &Image, format: ImageFormat, parameters: &[(&str, String)]) -> Result<Vec<u8>, JobError> {
    let Image { width_px, height_px, rgb, .. } = image;
    let failed = |problem: String| JobError::Internal { problem: format!("cannot encode an image: {problem}") };
    if rgb.len() as u64 != u64::from(*width_px) * u64::from(*height_px) * 3 {
        return Err(failed(format!("{width_px}x{height_px} px do not have {} bytes", rgb.len())));
    }
    let mut bytes = Vec::new();
    match format {
        ImageFormat::Png => return png(image, parameters).map_err(|error| failed(error.to_string())),
        // This encoder never subsamples colour, so that thin coloured lines and the watermark's edges stay sharp.
        ImageFormat::Jpeg => {
            JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).write_image(rgb, *width_px, *height_px, Rgb8)
        }
        ImageFormat::Webp => WebPEncoder::new_lossless(&mut bytes).write_image(rgb, *width_px, *height_px, Rgb8),
    }
    .map_err(|error| failed(error.to_string()))?;
    Ok(bytes)
}

fn png(image: &Image, parameters: &[(&str, String)]) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Cursor::new(Vec::new());
    let mut encoder = png::Encoder::new(&mut bytes, image.width_px, image.height_px);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // Half of Fast's bytes on flat images for 1 ms more; High takes 10 times as long for 3 % less.
    encoder.set_compression(png::Compression::Balanced);
    for (keyword, text) in parameters {
        // The standard forbids NUL in text chunks, and what is not Latin-1 belongs in an iTXt chunk.
        let text = text.replace('\0', "\u{FFFD}");
        if text.is_ascii() {
            encoder.add_text_chunk((*keyword).to_owned(), text)?;
        } else {
            encoder.add_itxt_chunk((*keyword).to_owned(), text)?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&image.rgb)?;
    writer.finish()?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::job::request::Defaults;
    use crate::job::task::Task;

    fn image() -> Image {
        let pixels = (0..48_u32).flat_map(|y| (0..80_u32).map(move |x| (x, y)));
        let rgb = pixels.flat_map(|(x, y)| [(x * 3) as u8, (y * 5) as u8, ((x + y) * 2) as u8]).collect();
        Image { width_px: 80, height_px: 48, rgb, seed: 43 }
    }

    fn decoded(bytes: &[u8]) -> Vec<u8> {
        image::load_from_memory(bytes).unwrap().into_rgb8().into_raw()
    }

    #[test]
    fn png_and_webp_keep_every_pixel_and_jpeg_comes_close() {
        let image = image();
        for format in [ImageFormat::Png, ImageFormat::Webp] {
            assert_eq!(decoded(&encode(&image, format, &[]).unwrap()), image.rgb, "{format:?}");
        }
        let jpeg = decoded(&encode(&image, ImageFormat::Jpeg, &[]).unwrap());
        let furthest = jpeg.iter().zip(&image.rgb).map(|(after, before)| after.abs_diff(*before)).max();
        assert!(furthest.unwrap() <= 12, "{furthest:?}");
    }

    #[test]
    fn jpeg_keeps_the_full_colour_resolution() {
        let bytes = encode(&image(), ImageFormat::Jpeg, &[]).unwrap();
        let frame = bytes.windows(2).position(|marker| marker == [0xFF, 0xC0]).unwrap();
        // Marker, length, precision, height, width, count, then (id, sampling, table) a component.
        assert_eq!([11, 14, 17].map(|at| bytes[frame + at]), [0x11; 3]);
    }

    #[test]
    fn png_says_how_it_was_generated() {
        let body = json!({ "job_id": "j-1", "prompt": "a \"teal\" Füchschen 🦊\nat dusk\0", "negative_prompt": "rain",
            "clip_skip": 1, "lora": [{ "url": "https://loras.example/ink.safetensors?X-Amz-Signature=secret" }] });
        let defaults: Defaults = serde_json::from_value(json!({ "model": "tiny-sd", "steps": 20, "guidance_scale": 7.5,
            "scheduler": "dpmsolver++", "width": 128, "height": 128, "seed": 42, "prefix": "" }))
        .unwrap();
        let job = Job::from_json(body.to_string().as_bytes(), &defaults).unwrap();
        let Task::Generate(task) = &job.task else { panic!("not generated from text") };
        let bytes = encode(&image(), ImageFormat::Png, &parameters(&job, task, 43)).unwrap();

        let reader = png::Decoder::new(Cursor::new(&bytes)).read_info().unwrap();
        let latin: Vec<_> = reader.info().uncompressed_latin1_text.iter().map(|chunk| chunk.keyword.as_str()).collect();
        let utf8 = &reader.info().utf8_text;
        assert_eq!(latin, ["Software"]);
        let text = |keyword| utf8.iter().find(|chunk| chunk.keyword == keyword).unwrap().get_text().unwrap();
        assert_eq!(
            text("parameters"),
            format!(
                "a \"teal\" Füchschen 🦊\nat dusk\u{FFFD}\nNegative prompt: rain\nSteps: 20, Sampler: dpmsolver++, CFG scale: 7.5, \
                 Seed: 43, Size: 128x128, Model: tiny-sd, Version: atelier {}",
                env!("CARGO_PKG_VERSION")
            )
        );
        let ours: serde_json::Value = serde_json::from_str(&text("atelier")).unwrap();
        assert_eq!((&ours["seed"], &ours["job_id"], &ours["prompt"]), (&json!(43), &json!("j-1"), &body["prompt"]));
        assert_eq!((&ours["clip_skip"], ours.get("eta")), (&json!(1), None));
        assert_eq!(ours["lora"], json!([{ "url": "https://loras.example/ink.safetensors", "scale": 1.0 }]));
    }

    #[test]
    fn a_buffer_of_another_size_is_our_own_error() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Webp] {
            let short = Image { rgb: vec![0; 5], ..image() };
            let error = encode(&short, format, &[]).unwrap_err().to_string();
            assert_eq!(error, "internal error: cannot encode an image: 80x48 px do not have 5 bytes");
        }
    }
}
