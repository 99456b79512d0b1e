//! What a step of the user's own is given, and what it answers: one JSON object each way, the images in it as PNG in base64.
//!
//! ```json
//! {"step": "command:border", "job": {"job_id": "t-1", "task": "generate", "prompt": "a red mug", "...": "..."},
//!  "images": [{"field": "image[0]", "content_type": "image/png", "width_px": 512, "height_px": 512, "seed": 42, "data": "<base64>"}]}
//! ```
//!
//! It answers one of three: `{"images": [{"data": "<base64>"}, ...]}`, as many as it was given and in their order,
//! `{"unchanged": true}`, or `{"refused": "why"}`. Anything else is no answer, and no image leaves without one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::image_file::{self, kind::Kind};
use crate::job::consent::Consent;
use crate::job::task::Task;
use crate::job::{ImageFormat, Job};
use crate::service::object;
use crate::shown;
use crate::workflow::encode::encode;
use crate::workflow::mark::{self, DigitalSource};
use crate::workflow::opening::on_white;
use crate::workflow::step_name::UserStepName;
use atelier_engine::Image;

/// Of one image that a step answers with.
pub const MAX_PIXELS: u64 = 40_000_000;
/// Of the reason of a refusal, which becomes part of webhooks.
const MAX_REASON_CHARS: usize = 300;

/// What a step said.
#[derive(Debug)]
pub(super) enum Decision {
    /// The job is to go on with these, which have the seeds of those that were sent.
    Images(Vec<Image>),
    /// The job is to go on as it is.
    Unchanged,
    /// The job is to end, for this reason.
    Refused(String),
}

#[derive(Serialize)]
struct Question<'a> {
    step: &'a str,
    job: ShownJob<'a>,
    images: Vec<SentImage>,
}

/// What a step hears of a job: nothing of its callback, and no address of an input, for either may hold a credential.
#[derive(Serialize)]
struct ShownJob<'a> {
    job_id: &'a str,
    task: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    prompt: &'a str,
    negative_prompt: &'a str,
    seed: u64,
    steps: u32,
    num_images: u32,
    format: ImageFormat,
    #[serde(skip_serializing_if = "Option::is_none")]
    watermark: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consent: Option<&'a Consent>,
}

#[derive(Serialize)]
struct SentImage {
    field: String,
    content_type: &'static str,
    width_px: u32,
    height_px: u32,
    seed: u64,
    data: String,
}

/// A misspelt refusal must not pass for anything else.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    #[serde(default)]
    images: Option<Vec<GivenImage>>,
    #[serde(default)]
    unchanged: Option<bool>,
    #[serde(default)]
    refused: Option<String>,
}

/// What was sent with it may come back as well.
#[derive(Deserialize)]
struct GivenImage {
    data: String,
}

/// What a step is asked.
///
/// # Errors
/// In words, when an image cannot be encoded.
pub(super) fn question(step: &UserStepName, job: &Job, images: &[Image]) -> Result<Vec<u8>, String> {
    // Whatever a step makes of its copy, the copy says that a model made it.
    let xmp = mark::xmp(DigitalSource::of(&job.task), None);
    let sent = images.iter().enumerate().map(|(number, image)| {
        let file = encode(image, ImageFormat::Png, &[], &xmp).map_err(|error| error.to_string())?;
        Ok(SentImage {
            field: field(number),
            content_type: ImageFormat::Png.content_type(),
            width_px: image.width_px,
            height_px: image.height_px,
            seed: image.seed,
            data: STANDARD.encode(file),
        })
    });
    let images = sent.collect::<Result<Vec<_>, String>>()?;
    let question = Question { step: step.as_str(), job: shown(job), images };
    serde_json::to_vec(&question).map_err(|error| error.to_string())
}

fn field(number: usize) -> String {
    format!("image[{number}]")
}

fn shown(job: &Job) -> ShownJob<'_> {
    let (negative_prompt, seed, steps, num_images) = match &job.task {
        Task::Generate(task) => (&task.negative_prompt, task.seed, task.steps, task.num_images),
        Task::TryOn(task) => (&task.negative_prompt, task.seed, task.steps, task.num_images),
        Task::Edit(task) => (&task.negative_prompt, task.seed, task.steps, task.num_images),
    };
    ShownJob {
        job_id: job.id.as_str(),
        task: job.task.name(),
        tenant: job.tenant.as_deref(),
        prompt: job.task.prompt(),
        negative_prompt: negative_prompt.as_str(),
        seed: seed.get(),
        steps: steps.get(),
        num_images: num_images.get(),
        format: job.output.format,
        watermark: job.watermark.as_ref().map(|watermark| watermark.text.as_str()),
        consent: job.consent.as_ref(),
    }
}

/// Reads an answer. `seeds`: of the images that were sent.
///
/// # Errors
/// In words, to follow the name of the step, when it is none.
pub(super) fn read(answer: &[u8], seeds: &[u64]) -> Result<Decision, String> {
    const ALLOWED: &str = "must answer {\"images\": [...]}, {\"unchanged\": true} or {\"refused\": \"why\"}";
    let answer: Answer = object(answer).map_err(|problem| format!("{ALLOWED}: {problem}"))?;
    match answer {
        Answer { refused: Some(reason), images: None, unchanged: None } => Ok(Decision::Refused(in_one_line(&reason))),
        Answer { unchanged: Some(true), images: None, refused: None } => Ok(Decision::Unchanged),
        Answer { images: Some(given), unchanged: None, refused: None } => images(&given, seeds).map(Decision::Images),
        _ => Err(format!("{ALLOWED}, and exactly one of them")),
    }
}

fn images(given: &[GivenImage], seeds: &[u64]) -> Result<Vec<Image>, String> {
    if given.len() != seeds.len() {
        return Err(format!("must answer as many images as it is given, {}, got {}", seeds.len(), given.len()));
    }
    let opened = given.iter().zip(seeds).enumerate().map(|(number, (given, seed))| {
        image(given, *seed).map_err(|problem| format!("answered with an {} that {problem}", field(number)))
    });
    opened.collect()
}

fn image(given: &GivenImage, seed: u64) -> Result<Image, String> {
    let file = STANDARD.decode(&given.data).map_err(|error| format!("is no base64 ({error})"))?;
    if Kind::of(&file) != Ok(Kind::Png) {
        return Err("must be a PNG".to_owned());
    }
    let rgb = on_white(&image_file::open(&file, MAX_PIXELS)?.image);
    Ok(Image { width_px: rgb.width(), height_px: rgb.height(), rgb: rgb.into_raw(), seed })
}

fn in_one_line(reason: &str) -> String {
    let plain: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    shown::clipped(plain.trim().to_owned(), MAX_REASON_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width_px: u32, height_px: u32) -> String {
        let image = Image { width_px, height_px, rgb: vec![9; (width_px * height_px * 3) as usize], seed: 0 };
        STANDARD.encode(encode(&image, ImageFormat::Png, &[], "").unwrap())
    }

    fn problem(answer: &str) -> String {
        read(answer.as_bytes(), &[7, 8]).expect_err(answer)
    }

    #[test]
    fn an_answer_is_one_of_three() {
        let images = format!(r#"{{"images": [{{"data": "{}", "seed": 1}}, {{"data": "{}"}}]}}"#, png(16, 20), png(40, 30));
        let Ok(Decision::Images(images)) = read(images.as_bytes(), &[7, 8]) else { panic!("images") };
        let seen: Vec<_> = images.iter().map(|image| (image.width_px, image.height_px, image.seed, image.rgb[0])).collect();
        assert_eq!(seen, [(16, 20, 7, 9), (40, 30, 8, 9)]);
        assert!(matches!(read(br#"{"unchanged": true}"#, &[7]), Ok(Decision::Unchanged)));
        let refused = format!(r#"{{"refused": " no\n{}"}}"#, "x".repeat(1_000));
        let Ok(Decision::Refused(reason)) = read(refused.as_bytes(), &[7]) else { panic!("a refusal") };
        assert!(reason.starts_with("no x") && reason.ends_with("...") && reason.len() == MAX_REASON_CHARS, "{reason}");
    }

    #[test]
    fn anything_else_is_no_answer() {
        let must = "must answer {\"images\": [...]}";
        for (answer, words) in [
            ("", must),
            ("ok", must),
            ("[null, null, true]", must),
            ("[true, null, null]", must),
            ("{}", "exactly one of them"),
            (r#"{"unchanged": false}"#, "exactly one of them"),
            (r#"{"unchanged": true, "refused": "no"}"#, "exactly one of them"),
            (r#"{"unchanged": true, "refuse": "no"}"#, "unknown field"),
            (r#"{"images": []}"#, "as many images as it is given, 2, got 0"),
            (r#"{"images": [{"data": "?"}, {"data": ""}]}"#, "image[0] that is no base64"),
            (r#"{"images": [{"data": ""}, {"data": ""}]}"#, "image[0] that must be a PNG"),
        ] {
            let problem = problem(answer);
            assert!(problem.contains(words), "{answer}: {problem}");
        }
        let jpeg = STANDARD.encode(b"\xFF\xD8\xFF\xE0");
        let answer = format!(r#"{{"images": [{{"data": "{}"}}, {{"data": "{jpeg}"}}]}}"#, png(16, 16));
        assert!(problem(&answer).contains("image[1] that must be a PNG"));
        let thin = format!(r#"{{"images": [{{"data": "{}"}}, {{"data": "{}"}}]}}"#, png(16, 16), png(8, 16));
        assert!(problem(&thin).contains("image[1] that must have sides of 16 pixels or more"));
    }
}
