//! The form of `/v1/images/edits`: an image, and a mask whose transparent part is generated anew; or the images that a model is shown.

use std::io::Cursor;

use axum::extract::Multipart;
use bytes::Bytes;
use image::{GrayImage, ImageFormat, Luma};
use serde_json::{Map, Value};

use super::super::draft::Place;
use super::super::edit_form;
use super::super::form;
use super::super::problem::Problem;
use super::super::{Settings, inputs};
use super::parameters::ImageUse;
use crate::image_file;
use crate::shown;

/// Parameters whose text is a text; any other is read as JSON where it is some.
const TEXTS: [&str; 9] =
    ["prompt", "negative_prompt", "model", "size", "quality", "response_format", "output_format", "user", "scheduler"];

/// The form as it came.
#[derive(Default)]
pub(super) struct Form {
    given: Map<String, Value>,
    images: Vec<Bytes>,
    mask: Option<Bytes>,
}

/// A form whose images were looked at.
pub(super) struct Edit {
    pub(super) given: Map<String, Value>,
    /// What the job starts from, and its mask where it has one; or what it is shown.
    pub(super) images: Vec<(Place, Bytes)>,
    /// Width and height of the image that it starts from, upright.
    pub(super) size_px: Option<(u32, u32)>,
}

/// Reads the form to its end, also when it is to be refused: a caller who is cut off while sending does not read why.
///
/// # Errors
/// Names the field that is wrong, or says that the form is too long or broken.
pub(super) async fn read(mut multipart: Multipart, settings: &Settings) -> Result<Form, Problem> {
    let form = read_fields(&mut multipart, settings).await;
    while form.is_err() && matches!(multipart.next_field().await, Ok(Some(_))) {}
    form
}

async fn read_fields(multipart: &mut Multipart, settings: &Settings) -> Result<Form, Problem> {
    let mut form = Form::default();
    while let Some(field) = multipart.next_field().await.map_err(|error| form::broken(&error, settings))? {
        let name = field.name().unwrap_or_default().to_owned();
        if form.given.contains_key(&name) || (name == "mask" && form.mask.is_some()) {
            return Err(Problem::invalid(&name, "comes twice"));
        }
        match name.as_str() {
            "image" | "image[]" => form.images.push(form::image(field, &name, settings).await?),
            "mask" => form.mask = Some(form::image(field, &name, settings).await?),
            _ => {
                let value = value(&name, form::text(field, &name, settings).await?);
                form.given.insert(name, value);
            }
        }
    }
    Ok(form)
}

fn value(name: &str, text: String) -> Value {
    if TEXTS.contains(&name) {
        return Value::String(text);
    }
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

impl Form {
    /// The parameters beside the images.
    pub(super) fn given(&self) -> &Map<String, Value> {
        &self.given
    }

    /// # Errors
    /// What is wrong with the images, or their number. Those that are shown are not looked at yet.
    pub(super) async fn checked(self, image_use: ImageUse, settings: &Settings) -> Result<Edit, Problem> {
        if image_use == ImageUse::Shown {
            return self.shown();
        }
        let Self { given, mut images, mask } = self;
        if images.len() > 1 {
            let problem = format!("must be one image for this model, got {}", images.len());
            return Err(Problem::invalid("image", problem));
        }
        let file = images.pop().ok_or_else(|| Problem::invalid("image", "is required: the image to edit, as a file"))?;
        let max_pixels = settings.max_image_pixels;
        let looking = inputs::aside(move || {
            let opened = image_file::open(&file, max_pixels).map_err(|problem| Problem::invalid("image", problem))?;
            let size_px = (opened.image.width(), opened.image.height());
            let mut images = vec![(Place::InitImage, file)];
            if let Some(mask) = mask {
                images.push((Place::InitMask, white_where_transparent(&mask, size_px, max_pixels)?));
            }
            Ok(Edit { given, images, size_px: Some(size_px) })
        });
        looking.await
    }

    fn shown(self) -> Result<Edit, Problem> {
        let Self { given, images, mask } = self;
        if mask.is_some() {
            let problem = "is not read by this model: say in the prompt what is to be changed, and leave it out";
            return Err(Problem::invalid("mask", problem));
        }
        let count = images.len();
        if !(1..=edit_form::MAX_IMAGES).contains(&count) {
            let problem = format!("must be 1 to {} images for this model, got {count}", edit_form::MAX_IMAGES);
            return Err(Problem::invalid("image", problem));
        }
        let images = images.into_iter().enumerate().map(|(n, file)| (Place::Image(n), file)).collect();
        Ok(Edit { given, images, size_px: None })
    }
}

/// OpenAI's mask as a job's: there what is transparent is generated, here what is white.
fn white_where_transparent(file: &[u8], size_px: (u32, u32), max_pixels: u64) -> Result<Bytes, Problem> {
    let invalid = |problem: String| Problem::invalid("mask", problem);
    let mask = image_file::open(file, max_pixels).map_err(invalid)?.image;
    if !mask.color().has_alpha() {
        let problem = "must have an alpha channel: what is transparent is generated anew, what is opaque is kept";
        return Err(invalid(problem.to_owned()));
    }
    if (mask.width(), mask.height()) != size_px {
        let (width, height) = size_px;
        let problem = format!("must be as large as the image, {width}x{height}, got {}x{}", mask.width(), mask.height());
        return Err(invalid(problem));
    }
    let alpha = mask.to_rgba8();
    let white = GrayImage::from_fn(mask.width(), mask.height(), |x, y| Luma([u8::MAX - alpha.get_pixel(x, y).0[3]]));
    if white.pixels().all(|pixel| pixel.0[0] == 0) {
        return Err(invalid("must be transparent somewhere: what is transparent is generated anew".to_owned()));
    }
    let mut png = Vec::new();
    let written = white.write_to(&mut Cursor::new(&mut png), ImageFormat::Png);
    written.map_err(|error| invalid(format!("could not be rewritten ({})", shown::clipped(error.to_string(), 200))))?;
    Ok(png.into())
}
