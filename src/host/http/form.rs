//! Multipart forms: that of `/tryon` and `/infer` as the callers of the try-on service send it, with its twin in JSON, and that of `/edit`.

use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{Multipart, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use bytes::{Bytes, BytesMut};
use serde_json::{Map, Value, json};

use super::draft::{Draft, Place, Takes, object};
use super::problem::Problem;
use super::{Settings, body, edit_form, inputs};
use crate::shown;

const PERSON: &str = "masked_user_image";
const GARMENT: &str = "garment_image";
/// Objects as the wire form has them, each written out as a text in the multipart form.
const OBJECTS: [&str; 2] = ["consent", "auto_mask"];
const WHO: [&str; 3] = ["user_id", "session_id", "provider"];
/// Of `config`, and of the form itself on `/infer`; with the wire form's names.
const CONFIG: [(&str, &str); 4] = [("seed", "seed"), ("steps", "steps"), ("cfg", "guidance_scale"), ("prompt", "prompt")];
/// Bytes of a field that is no image, at most.
const MAX_TEXT_BYTES: usize = 64 << 10;

/// What came in the form, as it came.
#[derive(Default)]
pub(super) struct Form {
    texts: Map<String, Value>,
    images: Vec<(&'static str, Bytes)>,
}

/// Whether a JSON body is the form's twin.
pub(super) fn is_form(message: &Map<String, Value>) -> bool {
    message.contains_key(PERSON) || message.contains_key(GARMENT)
}

/// Reads a whole form and drops it.
///
/// # Errors
/// As [`read`] and [`Form::into_draft`], and when `content_type` names no boundary.
pub(super) async fn check(content_type: &str, bytes: Bytes, settings: &Settings) -> Result<(), Problem> {
    let request = Request::builder().header(CONTENT_TYPE, content_type).body(bytes.into());
    let request = request.map_err(|error| Problem::invalid("content-type", error.to_string()))?;
    let multipart = body::multipart(request, settings.max_upload_bytes).await?;
    read(multipart, settings, Takes::TryOn).await?.into_draft(Takes::TryOn).map(drop)
}

/// Reads the form to its end, also when it is to be refused: a caller who is cut off while sending does not read why.
///
/// # Errors
/// Names the field that is wrong, or says that the form is too long or broken.
pub(super) async fn read(mut multipart: Multipart, settings: &Settings, takes: Takes) -> Result<Form, Problem> {
    let form = read_fields(&mut multipart, settings, takes).await;
    while form.is_err() && matches!(multipart.next_field().await, Ok(Some(_))) {}
    form
}

async fn read_fields(multipart: &mut Multipart, settings: &Settings, takes: Takes) -> Result<Form, Problem> {
    let mut form = Form::default();
    while let Some(field) = multipart.next_field().await.map_err(|error| broken(&error, settings))? {
        let name = field.name().unwrap_or_default().to_owned();
        check_name(&name, takes)?;
        let image = [PERSON, GARMENT].into_iter().chain(edit_form::IMAGE).find(|image| **image == name);
        let again = form.texts.contains_key(&name) || form.images.iter().any(|(image, _)| *image == name);
        if again && !edit_form::IMAGE.contains(&name.as_str()) {
            return Err(Problem::invalid(&name, "comes twice"));
        }
        if form.images.len() == edit_form::MAX_IMAGES && image.is_some() {
            return Err(Problem::invalid(&name, format!("comes more than {} times", edit_form::MAX_IMAGES)));
        }
        if let Some(image) = image {
            form.images.push((image, self::image(field, &name, settings).await?));
            continue;
        }
        let text = text(field, &name, settings).await?;
        form.texts.insert(name, text.into());
    }
    Ok(form)
}

/// The file of a field that is an image, not yet looked at.
///
/// # Errors
/// Names the field when the file is too large.
pub(super) async fn image(field: Field<'_>, name: &str, settings: &Settings) -> Result<Bytes, Problem> {
    let bytes = bytes(field, settings.max_image_bytes, settings).await?;
    bytes.ok_or_else(|| inputs::too_large(name, settings))
}

/// The text of a field that is no image.
///
/// # Errors
/// Names the field when it is too long or no UTF-8.
pub(super) async fn text(field: Field<'_>, name: &str, settings: &Settings) -> Result<String, Problem> {
    let bytes = bytes(field, MAX_TEXT_BYTES, settings).await?;
    let bytes = bytes.ok_or_else(|| Problem::invalid(name, format!("must have at most {MAX_TEXT_BYTES} bytes")))?;
    String::from_utf8(bytes.into()).map_err(|_| Problem::invalid(name, "must be a text in UTF-8"))
}

/// None: there are more than `limit`.
async fn bytes(mut field: Field<'_>, limit: usize, settings: &Settings) -> Result<Option<Bytes>, Problem> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = field.chunk().await.map_err(|error| broken(&error, settings))? {
        if bytes.len() + chunk.len() > limit {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes.freeze()))
}

pub(super) fn broken(error: &MultipartError, settings: &Settings) -> Problem {
    match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => body::too_large(settings.max_upload_bytes),
        _ => Problem::invalid("body", format!("is no complete multipart form ({})", error.body_text())),
    }
}

fn check_name(name: &str, takes: Takes) -> Result<(), Problem> {
    let on_infer = CONFIG.iter().map(|(name, _)| *name).filter(|_| takes == Takes::Any);
    let allowed: Vec<&str> = match takes {
        Takes::Edit => edit_form::fields().collect(),
        _ => ["job_id", PERSON, GARMENT, "config"].into_iter().chain(WHO).chain(OBJECTS).chain(on_infer).collect(),
    };
    if allowed.contains(&name) {
        return Ok(());
    }
    Err(Problem::invalid(name, format!("is not a field of this form; allowed are {}", allowed.join(", "))))
}

impl Form {
    /// The twin: addresses of images stand where the images would be.
    ///
    /// # Errors
    /// Names a field that the form does not have.
    pub(super) fn from_json(texts: Map<String, Value>, takes: Takes) -> Result<Self, Problem> {
        texts.keys().try_for_each(|name| check_name(name, takes))?;
        Ok(Self { texts, images: Vec::new() })
    }

    /// # Errors
    /// Names the field that is missing or wrong.
    pub(super) fn into_draft(self, takes: Takes) -> Result<Draft, Problem> {
        let Self { mut texts, images } = self;
        if takes == Takes::Edit {
            return edit_form::into_draft(texts, images);
        }
        let mut message = Map::from_iter([("task".to_owned(), json!("tryon"))]);
        let mut names = vec![("person", PERSON.to_owned()), ("garments[0]", GARMENT.to_owned())];
        let id = texts.remove("job_id").ok_or_else(|| Problem::invalid("job_id", "is required"))?;
        message.insert("job_id".into(), id);
        let mut address = |name: &str| {
            let came_along = images.iter().any(|(image, _)| *image == name).then_some(Value::Null);
            came_along.or_else(|| texts.remove(name)).ok_or_else(|| Problem::invalid(name, "is required"))
        };
        message.insert("person".into(), address(PERSON)?);
        message.insert("garments".into(), json!([address(GARMENT)?]));
        for name in WHO {
            if let Some(value) = texts.remove(name) {
                message.insert(name.into(), value);
            }
        }
        for name in OBJECTS {
            if let Some(value) = texts.remove(name) {
                message.insert(name.into(), object(value));
            }
        }
        let mut config = config(texts.remove("config"))?;
        for (name, wire) in CONFIG {
            // The form's own fields, which only /infer has, count before those of `config`.
            let own = texts.remove(name).filter(|_| takes == Takes::Any).map(|value| (name.to_owned(), number(name, value)));
            let inside = config.remove(name).map(|value| (format!("config.{name}"), value));
            if let Some((given, value)) = own.or(inside).filter(|(_, value)| !value.is_null()) {
                message.insert(wire.into(), value);
                names.push((wire, given));
            }
        }
        if let Some(name) = config.keys().next() {
            let problem = "is not a key of config; allowed are seed, steps, cfg, prompt";
            return Err(Problem::invalid(&format!("config.{name}"), problem));
        }
        let images = images.into_iter().map(|(name, file)| {
            let place = if name == PERSON { Place::Person } else { Place::Garment(0) };
            (place, file)
        });
        let images = images.collect();
        Ok(Draft { message, callback: None, images, names })
    }
}

/// `config` is an object, written out as a text in the multipart form.
fn config(given: Option<Value>) -> Result<Map<String, Value>, Problem> {
    let value = match given {
        Some(Value::String(text)) if !text.trim().is_empty() => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        Some(Value::String(_)) | None => Value::Null,
        Some(other) => other,
    };
    match value {
        Value::Object(config) => Ok(config),
        Value::Null => Ok(Map::new()),
        other => {
            let shown = shown::json(&other);
            let problem = format!(
                "must be a JSON object such as {{\"seed\": 42, \"steps\": 4, \"cfg\": 1.0, \"prompt\": null}}, got {shown}"
            );
            Err(Problem::invalid("config", problem))
        }
    }
}

/// A form has texts only; what is no number is left as it is, to be refused by its own name. An empty prompt is none.
fn number(name: &str, value: Value) -> Value {
    match &value {
        Value::String(text) if name == "prompt" && text.is_empty() => Value::Null,
        Value::String(text) if name != "prompt" => serde_json::from_str(text).ok().filter(Value::is_number).unwrap_or(value),
        _ => value,
    }
}
