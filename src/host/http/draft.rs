//! A job as its caller wrote it, before its images have URLs.

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

/// Which jobs an endpoint takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    Generate,
    TryOn,
    Edit,
    /// All of them.
    Any,
}

impl Takes {
    /// The one task, as the field `task` has it; none: any.
    pub(super) fn task(self) -> Option<&'static str> {
        match self {
            Self::Generate => Some("generate"),
            Self::TryOn => Some("tryon"),
            Self::Edit => Some("edit"),
            Self::Any => None,
        }
    }
}

/// A job in its wire form, but for the images that came along.
pub(super) struct Draft {
    pub(super) message: Map<String, Value>,
    /// As the caller wrote it: a parsed number of its metadata may be another one.
    pub(super) callback: Option<Box<RawValue>>,
    /// Wire field and bytes.
    pub(super) images: Vec<(Place, bytes::Bytes)>,
    /// What the caller calls the wire form's fields, where it is not the same.
    pub(super) names: Vec<(&'static str, String)>,
}

/// A field of the wire form that holds an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Person,
    /// Counted from 0.
    Garment(usize),
    Mask,
    /// Of an edit, counted from 0.
    Image(usize),
    /// Of a generation: what it starts from.
    InitImage,
    /// Of a generation: where it may change that.
    InitMask,
}

impl Place {
    pub(super) fn set(self, message: &mut Map<String, Value>, address: String) {
        match self {
            Self::Person => message["person"] = address.into(),
            Self::Garment(n) => message["garments"][n] = address.into(),
            Self::Mask => message["mask"] = address.into(),
            Self::Image(n) => message["images"][n] = address.into(),
            Self::InitImage => {
                message.insert("init_image".into(), json!({ "url": address }));
            }
            Self::InitMask => {
                message.insert("mask_image".into(), json!({ "url": address }));
            }
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Person => f.write_str("person"),
            Self::Garment(n) => write!(f, "garments[{n}]"),
            Self::Mask => f.write_str("mask"),
            Self::Image(n) => write!(f, "images[{n}]"),
            Self::InitImage => f.write_str("init_image"),
            Self::InitMask => f.write_str("mask_image"),
        }
    }
}

/// A form has an object as a text, and nothing as an empty one; what is neither is left as it is, to be refused by its own name.
pub(super) fn object(value: Value) -> Value {
    let Some(text) = value.as_str() else { return value };
    if text.trim().is_empty() {
        return Value::Null;
    }
    let parsed = serde_json::from_str(text).ok();
    parsed.filter(|parsed: &Value| parsed.is_object() || parsed.is_null()).unwrap_or(value)
}
