//! The manifest of an image: what was done, by what, from what (C2PA 2.x, sections "Actions" and "Ingredient").
//!
//! - Out of words alone: `c2pa.created`, whose digital source type says that a model made it.
//! - From images: the one that was changed is the parent, which is `c2pa.opened` and then `c2pa.edited`. Those that were put into it are
//!   components, each `c2pa.placed`. Where all outside of a mask stayed, the edit's `changes` say where it was changed (sections "Changes" and
//!   "Regions of interest"). A mask is an input of the edit, and what a ControlNet or an IP-Adapter looks at one of whatever was done.
//! - A text of `watermark` is `c2pa.addedText`. The invisible mark is `c2pa.watermarked.unbound`: it is the same in every image, and leads to no manifest.
//! - Manifests of the inputs go along, as far as they are not more than [`MAX_INPUT_MANIFESTS`] or [`MAX_INPUT_MANIFEST_BYTES`] each.

use std::io::Cursor;

use c2pa::{Builder, Ingredient};
use image::GrayImage;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::context::on_a_deep_stack;
use super::signing::Signing;

/// Of one input; it would be in every image that was made from it.
pub const MAX_INPUT_MANIFEST_BYTES: usize = 2 << 20;
/// Of one input, those of its own inputs among them: c2pa reads no image whose chain has more than 200, and each edit adds one.
pub const MAX_INPUT_MANIFESTS: usize = 100;
/// What the description box of a manifest starts with (C2PA 2.x, section "Manifest").
const MANIFEST_TYPE: &[u8; 16] = b"c2ma\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71";
const GENERATOR: &str = "atelier";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What an input is to the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It was changed.
    Parent,
    /// It was put into the image.
    Component,
    /// It decided what changed.
    Input,
}

/// An input image, as it was sent.
pub struct Original {
    pub role: Role,
    /// The job's field that names it.
    pub field: String,
    /// Its media type.
    pub format: &'static str,
    /// None: what it says of itself stays out.
    pub file: Option<Vec<u8>>,
}

/// The smallest rectangle around what a mask lets change, in percent of the image's sides, which stays right where the image is enlarged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Changed {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

impl Changed {
    /// `mask`: from 128 on a pixel was generated anew. None: no pixel was.
    #[must_use]
    pub fn within(mask: &GrayImage) -> Option<Self> {
        let changed = || mask.enumerate_pixels().filter(|(.., value)| value.0[0] >= 128);
        let left = changed().map(|(x, ..)| x).min()?;
        let right = changed().map(|(x, ..)| x + 1).max()?;
        let top = changed().map(|(_, y, _)| y).min()?;
        let bottom = changed().map(|(_, y, _)| y + 1).max()?;
        let percent = |px: u32, side_px: u32| f64::from(px) * 100.0 / f64::from(side_px);
        Some(Self {
            left: percent(left, mask.width()),
            top: percent(top, mask.height()),
            width: percent(right - left, mask.width()),
            height: percent(bottom - top, mask.height()),
        })
    }
}

/// What is to be said of the images of a job, ready to be signed for each of them.
#[derive(Clone)]
pub struct Manifest {
    ingredients: Vec<Ingredient>,
    actions: Vec<Value>,
}

/// A file with its manifest.
pub struct Signed {
    pub file: Vec<u8>,
    /// Whether it has a timestamp, or why not; none: there is no authority.
    pub timestamp: Option<Result<(), String>>,
}

impl Role {
    fn relationship(self) -> &'static str {
        match self {
            Self::Parent => "parentOf",
            Self::Component => "componentOf",
            Self::Input => "inputTo",
        }
    }
}

impl Manifest {
    /// `model`: none where it is not to be named. `digital_source`: the address of the IPTC term that says how much a model made.
    ///
    /// # Errors
    /// In words, when the inputs cannot be described.
    pub fn new(signing: &Signing, model: Option<&str>, digital_source: &str, originals: &[Original]) -> Result<Self, String> {
        let described = originals.iter().map(|original| ingredient(signing, original));
        let ingredients = described.collect::<Result<Vec<_>, _>>()?;
        let named = |role: Role| -> Vec<&str> {
            originals.iter().filter(|original| original.role == role).map(|original| original.field.as_str()).collect()
        };
        let when = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let when = when.format(&Rfc3339).map_err(|error| format!("the time cannot be written: {error}"))?;
        let agent = json!({ "name": model.unwrap_or(GENERATOR), "version": VERSION });
        let mut actions = Vec::new();
        let is_created = named(Role::Parent).is_empty();
        let action = if is_created { "c2pa.created" } else { "c2pa.edited" };
        let mut done = json!({ "action": action, "digitalSourceType": digital_source, "softwareAgent": agent });
        if !named(Role::Input).is_empty() {
            done["parameters"] = json!({ "ingredientIds": named(Role::Input) });
        }
        if !is_created {
            actions.push(json!({ "action": "c2pa.opened", "parameters": { "ingredientIds": named(Role::Parent) } }));
            for component in named(Role::Component) {
                actions.push(json!({ "action": "c2pa.placed", "parameters": { "ingredientIds": [component] } }));
            }
        }
        actions.push(done);
        for action in &mut actions {
            action["when"] = json!(when);
        }
        Ok(Self { ingredients, actions })
    }

    /// What was done last was done within this part of the image alone.
    #[must_use]
    pub fn changed_within(mut self, Changed { left, top, width, height }: Changed) -> Self {
        let origin = json!({ "x": left, "y": top });
        let shape = json!({ "type": "rectangle", "unit": "percent", "origin": origin, "width": width, "height": height });
        let region = json!([{ "type": "spatial", "shape": shape }]);
        if let Some(edited) = self.actions.last_mut() {
            // Without a role, which this release of c2pa writes and cannot read.
            edited["changes"] = json!([{ "region": region }]);
        }
        self
    }

    /// The images were changed once more, by what has this name; none where it is not to be named.
    #[must_use]
    pub fn edited_by(mut self, name: Option<&str>) -> Self {
        self.actions.push(self.further("c2pa.edited", name));
        self
    }

    /// A text was set into the images.
    #[must_use]
    pub fn with_text(mut self) -> Self {
        self.actions.push(self.further("c2pa.addedText", None));
        self
    }

    fn further(&self, action: &str, name: Option<&str>) -> Value {
        let when = self.actions.last().map(|action| action["when"].clone());
        json!({ "action": action, "softwareAgent": { "name": name.unwrap_or(GENERATOR) }, "when": when })
    }

    /// The file with the manifest in it; its pixels are what they were. `format`: its media type. `has_mark`: the invisible one is in its pixels.
    ///
    /// # Errors
    /// In words, when it cannot be signed.
    pub fn sign(&self, signing: &Signing, file: &[u8], format: &str, has_mark: bool) -> Result<Signed, String> {
        on_a_deep_stack(|| self.signed(signing, file, format, has_mark))?
    }

    fn signed(&self, signing: &Signing, file: &[u8], format: &str, has_mark: bool) -> Result<Signed, String> {
        let mut actions = self.actions.clone();
        if has_mark {
            actions.push(self.further("c2pa.watermarked.unbound", None));
        }
        let definition = json!({
            "claim_generator_info": [{ "name": GENERATOR, "version": VERSION }],
            "format": format,
            "assertions": [{ "label": "c2pa.actions.v2", "data": { "actions": actions }, "created": true }],
        });
        let failed = |error: c2pa::Error| format!("an image cannot be signed: {error}");
        let mut builder =
            Builder::from_shared_context(&signing.context).with_definition(definition.to_string()).map_err(failed)?;
        for ingredient in &self.ingredients {
            builder.add_ingredient(ingredient.clone());
        }
        let mut signed = Cursor::new(Vec::with_capacity(file.len()));
        let signer = signing.for_one();
        builder.sign(&signer, format, &mut Cursor::new(file), &mut signed).map_err(|error| match signer.problem() {
            None => failed(error),
            Some(problem) => format!("an image cannot be signed: {problem}"),
        })?;
        Ok(Signed { file: signed.into_inner(), timestamp: signer.timestamp() })
    }
}

fn ingredient(signing: &Signing, original: &Original) -> Result<Ingredient, String> {
    let bare = json!({
        "title": original.field,
        "format": original.format,
        "label": original.field,
        "relationship": original.role.relationship(),
    });
    if let Some(file) = &original.file {
        // The file is a stranger's: whatever a parser does with it, the image is signed.
        let read = on_a_deep_stack(|| with_manifest(signing, &bare, original.format, file));
        match read.and_then(|read| read) {
            Ok(ingredient) => return Ok(ingredient),
            Err(problem) => tracing::warn!(field = original.field, problem, "what an input says of itself is left out"),
        }
    }
    Ingredient::from_json(&bare.to_string()).map_err(|error| format!("{}: cannot be described: {error}", original.field))
}

fn with_manifest(signing: &Signing, bare: &Value, format: &str, file: &[u8]) -> Result<Ingredient, String> {
    let mut builder = Builder::from_shared_context(&signing.context);
    let added = builder.add_ingredient_from_stream(bare.to_string(), format, &mut Cursor::new(file));
    let ingredient = added.map_err(|error| error.to_string())?;
    let manifests = ingredient.manifest_data().unwrap_or_default();
    let bytes = manifests.len();
    let count = manifests.windows(MANIFEST_TYPE.len()).filter(|window| window == MANIFEST_TYPE).count();
    if count > MAX_INPUT_MANIFESTS {
        return Err(format!("it has {count} manifests, {MAX_INPUT_MANIFESTS} at most are taken along"));
    }
    if bytes > MAX_INPUT_MANIFEST_BYTES {
        return Err(format!("its manifests have {bytes} bytes, {MAX_INPUT_MANIFEST_BYTES} at most are taken along"));
    }
    Ok(ingredient.clone())
}
