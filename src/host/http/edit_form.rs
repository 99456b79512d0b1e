//! The form of `/edit`: the wire form's fields, with the images in it.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::draft::{Draft, Place, object};
use super::problem::Problem;

/// Both come as often as there are images; some clients write a list's name with brackets.
pub(super) const IMAGE: [&str; 2] = ["image", "image[]"];
pub(super) const MAX_IMAGES: usize = 3;
const NUMBERS: [&str; 6] = ["steps", "guidance_scale", "width", "height", "num_images", "seed"];
const TEXTS: [&str; 7] = ["job_id", "prompt", "negative_prompt", "model", "mode", "tenant", CONSENT];
const CONSENT: &str = "consent";
/// What the images are called in the wire form.
const PLACES: [&str; MAX_IMAGES] = ["images[0]", "images[1]", "images[2]"];

pub(super) fn fields() -> impl Iterator<Item = &'static str> {
    TEXTS.into_iter().chain(NUMBERS).chain(IMAGE)
}

/// What a caller of a form calls its images, next to the fields of the wire form.
pub(super) fn names(count: usize) -> Vec<(&'static str, String)> {
    let places = PLACES.iter().enumerate().take(count);
    places.map(|(n, place)| (*place, if count == 1 { "image".to_owned() } else { format!("image[{n}]") })).collect()
}

/// # Errors
/// Names the field that is missing.
pub(super) fn into_draft(texts: Map<String, Value>, images: Vec<(&'static str, Bytes)>) -> Result<Draft, Problem> {
    if !texts.contains_key("job_id") {
        return Err(Problem::invalid("job_id", "is required"));
    }
    if images.is_empty() {
        return Err(Problem::invalid(IMAGE[0], "is required: 1 to 3 files of this name"));
    }
    let mut message = Map::from_iter([("task".to_owned(), json!("edit"))]);
    for (name, value) in texts {
        let value = match name.as_str() {
            CONSENT => object(value),
            name if NUMBERS.contains(&name) => number(value),
            _ => value,
        };
        message.insert(name, value);
    }
    message.insert("images".into(), vec![Value::Null; images.len()].into());
    let names = names(images.len());
    let images = images.into_iter().enumerate().map(|(n, (_, file))| (Place::Image(n), file)).collect();
    Ok(Draft { message, callback: None, images, names })
}

/// What is no number is left as it is, to be refused by its own name.
fn number(value: Value) -> Value {
    let parsed = value.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    parsed.filter(Value::is_number).unwrap_or(value)
}
