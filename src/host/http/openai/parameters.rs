//! The parameters of OpenAI's images API as fields of a job.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::super::Http;
use super::super::draft::Draft;
use super::super::edit_form;
use super::super::idempotency::Key;
use super::super::problem::Problem;
use crate::job::request::Defaults;
use crate::job::task::{SidePx, StepCount};
use crate::shown;

/// Fields of a job that a client may send beside OpenAI's (`extra_body` of its Python client), under the job's own names.
const EXTENSIONS: [&str; 26] = [
    "callback",
    "clip_skip",
    "consent",
    "controlnets",
    "crops_coords_top_left",
    "embeddings",
    "eta",
    "guidance_rescale",
    "guidance_scale",
    "image_guidance_scale",
    "ip_adapters",
    "lora",
    "mode",
    "negative_prompt",
    "original_size",
    "output",
    "scheduler",
    "seed",
    "sigmas",
    "step_cache",
    "steps",
    "strength",
    "target_size",
    "timesteps",
    "upscale",
    "watermark",
];
const MAX_PARTIAL_IMAGES: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Generations,
    Edits,
}

impl Endpoint {
    /// The event that brings a finished image.
    pub(super) fn completed(self) -> &'static str {
        match self {
            Self::Generations => "image_generation.completed",
            Self::Edits => "image_edit.completed",
        }
    }

    /// The event that brings an image while it is being made.
    pub(super) fn partial_image(self) -> &'static str {
        match self {
            Self::Generations => "image_generation.partial_image",
            Self::Edits => "image_edit.partial_image",
        }
    }
}

/// How images come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ImageForm {
    B64Json,
    Url,
}

impl ImageForm {
    /// As the parameter says it, and the member of the answer.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::B64Json => "b64_json",
            Self::Url => "url",
        }
    }
}

/// How many steps are taken, for a caller who does not say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quality {
    Low,
    Medium,
    High,
}

impl Quality {
    fn read(given: Option<Value>) -> Result<Self, Problem> {
        match given.as_ref().map(|value| value.as_str().unwrap_or_default()) {
            Some("low") => Ok(Self::Low),
            None | Some("auto" | "medium" | "standard") => Ok(Self::Medium),
            Some("high" | "hd") => Ok(Self::High),
            Some(_) => {
                let got = shown::json(&given.unwrap_or_default());
                Err(Problem::invalid("quality", format!("must be auto, low, medium, high, standard or hd, got {got}")))
            }
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }

    /// Half of the model's own number, that number, or one and a half of it; none: the model's own.
    fn steps(self, default: StepCount) -> Option<u64> {
        let default = u64::from(default.get());
        match self {
            Self::Low => Some(default.div_ceil(2)),
            Self::Medium => None,
            Self::High => Some((default + default / 2).min(*StepCount::RANGE.end())),
        }
    }
}

/// What the answer is to look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) endpoint: Endpoint,
    pub(super) image: ImageForm,
    pub(super) stream: bool,
    /// Of a stream: previews that are sent at most.
    pub(super) partial_images: u32,
    pub(super) quality: Quality,
    pub(super) output_format: String,
}

/// Takes the job and the form of its answer out of what a client sent. A null counts as absent.
///
/// # Errors
/// Names the parameter that is wrong. What is wrong with a field of the job is found when that is read.
pub(super) fn read(
    endpoint: Endpoint,
    mut given: Map<String, Value>,
    key: Option<&Key>,
    http: &Http,
) -> Result<(Draft, Wanted), Problem> {
    given.retain(|_, value| !value.is_null());
    let wanted = wanted(endpoint, &mut given)?;
    let mut message = Map::from_iter([("job_id".to_owned(), json!(job_id(key)))]);
    let steps = defaults(&given, http).steps;
    if let Some(model) = given.remove("model").filter(|model| *model != "") {
        let name = model.as_str().map_or_else(|| shown::json(&model), str::to_owned);
        if !http.models.iter().any(|served| served.model_version == name) {
            return Err(super::unknown_model(&name, http));
        }
        message.insert("model".to_owned(), model);
    }
    for (parameter, field) in [("prompt", "prompt"), ("n", "num_images"), ("user", "tenant")] {
        if let Some(value) = given.remove(parameter) {
            message.insert(field.to_owned(), value);
        }
    }
    if !message.contains_key("prompt") {
        return Err(Problem::invalid("prompt", "is required"));
    }
    if let Some((width, height)) = size(given.remove("size"))? {
        message.insert("width".into(), width.into());
        message.insert("height".into(), height.into());
    }
    for name in EXTENSIONS {
        if let Some(value) = given.remove(name) {
            message.insert(name.to_owned(), value);
        }
    }
    // Another image every time, as clients of this API expect; the seed is in the record.
    message.entry("seed").or_insert_with(|| json!(-1));
    let has_steps = ["steps", "timesteps", "sigmas"].iter().any(|name| message.contains_key(*name));
    if let Some(steps) = wanted.quality.steps(steps).filter(|_| !has_steps) {
        message.insert("steps".into(), steps.into());
    }
    let output = message.entry("output").or_insert_with(|| json!({}));
    if let Some(output) = output.as_object_mut() {
        output.insert("format".into(), json!(wanted.output_format));
    }
    let names =
        [("width", "size"), ("height", "size"), ("num_images", "n"), ("output.format", "output_format"), ("tenant", "user")];
    let names = names.into_iter().map(|(field, parameter)| (field, parameter.to_owned()));
    let names = names.chain([("init_image", "image".to_owned()), ("mask_image", "mask".to_owned())]).collect();
    Ok((Draft { message, callback: None, images: Vec::new(), names }, wanted))
}

/// Of the model that the request is for.
fn defaults<'a>(given: &Map<String, Value>, http: &'a Http) -> &'a Defaults {
    &http.job_service.catalogue.at(place(given, http)).defaults
}

fn wanted(endpoint: Endpoint, given: &mut Map<String, Value>) -> Result<Wanted, Problem> {
    let one_of =
        |name: &str, allowed: &str, got: &Value| Problem::invalid(name, format!("must be {allowed}, got {}", shown::json(got)));
    let image = match given.remove("response_format") {
        None => ImageForm::B64Json,
        Some(form) if form == "b64_json" => ImageForm::B64Json,
        Some(form) if form == "url" => ImageForm::Url,
        Some(other) => return Err(one_of("response_format", "b64_json or url", &other)),
    };
    // A job's own way to say it counts where theirs is absent.
    let format = given.get("output").and_then(|output| output.get("format")).cloned();
    let output_format = match given.remove("output_format").or(format) {
        None => "png".to_owned(),
        Some(Value::String(format)) if ["png", "jpeg", "webp"].contains(&format.as_str()) => format,
        Some(other) => return Err(one_of("output_format", "png, jpeg or webp", &other)),
    };
    let stream = match given.remove("stream") {
        None => false,
        Some(Value::Bool(stream)) => stream,
        Some(other) => return Err(one_of("stream", "true or false", &other)),
    };
    let partial_images = match given.remove("partial_images") {
        None => 0,
        Some(given) => {
            let count = given.as_u64().and_then(|count| u32::try_from(count).ok()).filter(|count| *count <= MAX_PARTIAL_IMAGES);
            count.ok_or_else(|| one_of("partial_images", "a number from 0 to 3", &given))?
        }
    };
    if let Some(background) = given.remove("background").filter(|background| *background == "transparent") {
        return Err(one_of("background", "auto or opaque: this model makes opaque images", &background));
    }
    let quality = Quality::read(given.remove("quality"))?;
    Ok(Wanted { endpoint, image, stream, partial_images, quality, output_format })
}

/// A repetition with the same `Idempotency-Key` is the same job, at every host of the bucket.
fn job_id(key: Option<&Key>) -> String {
    match key {
        Some(key) => format!("openai-{}", &base16ct::lower::encode_string(&Sha256::digest(key.as_str()))[..32]),
        None => format!("openai-{}", Uuid::now_v7().simple()),
    }
}

/// None: the model's own size.
fn size(given: Option<Value>) -> Result<Option<(u32, u32)>, Problem> {
    let Some(given) = given.filter(|size| *size != "auto") else { return Ok(None) };
    let sides = given.as_str().and_then(|size| size.split_once('x'));
    let sides = sides.and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    sides.map(Some).ok_or_else(|| {
        let got = shown::json(&given);
        Problem::invalid("size", format!("must be auto, or width and height in pixels such as 512x512, got {got}"))
    })
}

/// What becomes of the images of an edit, by the model that the request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ImageUse {
    /// It starts from one, perhaps under a mask: a job of task `generate`.
    Start,
    /// They are shown to it next to the prompt: a job of task `edit`.
    Shown,
}

pub(super) fn image_use(given: &Map<String, Value>, http: &Http) -> ImageUse {
    let function = http.functions.at(place(given, http));
    if function.is_some_and(|function| function.capabilities.is_shown_images()) { ImageUse::Shown } else { ImageUse::Start }
}

/// Makes `draft` a job of task `edit` over so many images, for the model that [`image_use`] has looked at.
pub(super) fn as_edit(draft: &mut Draft, images: usize, http: &Http) {
    let model = &http.job_service.catalogue.at(place(&draft.message, http)).name;
    draft.message.insert("model".into(), json!(model));
    draft.message.insert("task".into(), "edit".into());
    draft.message.insert("images".into(), vec![Value::Null; images].into());
    draft.names.extend(edit_form::names(images));
}

/// The place in the catalogue of the model that the request is for.
fn place(given: &Map<String, Value>, http: &Http) -> usize {
    http.job_service.catalogue.place_of("generate", given.get("model").and_then(Value::as_str))
}

/// An edit of size `auto` has its image's shape, with as many pixels as the model's own size has, in sides that the model can have.
pub(super) fn size_of_image(given: &mut Map<String, Value>, (width, height): (u32, u32), http: &Http) {
    if given.get("size").is_some_and(|size| *size != "auto") {
        return;
    }
    let place = place(given, http);
    let defaults = &http.job_service.catalogue.at(place).defaults;
    let function = http.functions.at(place);
    let multiple = function.map_or(SidePx::MULTIPLE_OF, |function| function.capabilities.side_multiple_px().into());
    let pixels = f64::from(defaults.width.get()) * f64::from(defaults.height.get());
    let ratio = f64::from(width) / f64::from(height);
    let side = |length: f64| {
        let multiples = (length / multiple as f64).round() as u64;
        (multiples * multiple).clamp(*SidePx::RANGE.start(), *SidePx::RANGE.end())
    };
    let size = format!("{}x{}", side((pixels * ratio).sqrt()), side((pixels / ratio).sqrt()));
    given.insert("size".into(), size.into());
}
