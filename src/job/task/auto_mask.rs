//! What a try-on has found in the person's image in place of a mask: the clothes that may be changed, and nothing else.

use serde::{Deserialize, Deserializer, Serialize, de};

/// What a job asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AutoMask {
    #[serde(flatten)]
    pub parts: Parts,
    /// By how many pixels of the result the mask is wider than what was found; none: a hundredth of the shorter side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dilate_px: Option<DilatePx>,
}

/// What may be changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Parts {
    /// What the person wears where the garment will be.
    Garment {
        garment: Garment,
        /// Bare arms or legs there as well: a garment may be longer than the one before.
        limbs: bool,
    },
    /// These classes of the function's segmenter.
    Classes { classes: Classes },
}

/// Which part of the body a garment is worn on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Garment {
    Upper,
    Lower,
    /// Both: a dress, an overall, or one garment of each.
    Full,
    Shoes,
}

// What data sets of clothes (ATR, LIP and their like) call it.
const UPPER: &[&str] = &["upper-clothes", "upper", "top", "shirt", "blouse", "sweater", "cardigan", "coat", "jacket", "vest"];
const LOWER: &[&str] = &["pants", "trousers", "jeans", "shorts", "skirt", "lower-clothes", "lower"];
/// Upper and lower clothes at once: who wears one and gets a shirt wears it no more.
const WHOLE: &[&str] = &["dress", "jumpsuit", "jumpsuits"];
/// Between upper and lower clothes.
const BETWEEN: &[&str] = &["belt"];
const SHOES: &[&str] = &["left-shoe", "right-shoe", "shoe", "shoes", "socks", "sock"];
const ARMS: &[&str] = &["left-arm", "right-arm", "arm", "arms"];
const LEGS: &[&str] = &["left-leg", "right-leg", "leg", "legs"];

impl Garment {
    pub const NAMES: &str = "upper, lower, full, shoes";

    /// The classes that are worn where such a garment will be.
    #[must_use]
    pub fn classes(self) -> Vec<&'static str> {
        match self {
            Self::Upper => [UPPER, WHOLE].concat(),
            Self::Lower => [LOWER, WHOLE].concat(),
            Self::Full => [UPPER, LOWER, WHOLE, BETWEEN].concat(),
            Self::Shoes => SHOES.to_vec(),
        }
    }

    /// The classes of limbs that such a garment may cover.
    #[must_use]
    pub fn limbs(self) -> Vec<&'static str> {
        match self {
            Self::Upper => ARMS.to_vec(),
            Self::Lower => LEGS.to_vec(),
            Self::Full => [ARMS, LEGS].concat(),
            Self::Shoes => Vec::new(),
        }
    }
}

/// 1 to 32 names of classes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Classes(Vec<String>);

impl Classes {
    const MAX: usize = 32;
    const MAX_CHARS: usize = 64;

    /// # Errors
    /// Says what is allowed when there is none, there are more, or one of them is too long.
    pub fn new(classes: Vec<String>) -> Result<Self, String> {
        if !(1..=Self::MAX).contains(&classes.len()) {
            return Err(format!("must be 1 to {} names of classes, got {}", Self::MAX, classes.len()));
        }
        match classes.iter().map(|class| class.chars().count()).find(|chars| !(1..=Self::MAX_CHARS).contains(chars)) {
            None => Ok(Self(classes)),
            Some(chars) => Err(format!("must have names of 1 to {} characters, got one of {chars}", Self::MAX_CHARS)),
        }
    }

    #[must_use]
    pub fn get(&self) -> &[String] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Classes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Vec::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

whole_number!(
    /// By how many pixels a mask is wider than what was found, to each side, up and down.
    DilatePx(u32), (0..=256), "a whole number from 0 to 256"
);

/// The mask that a job got, as its record has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MadeMask {
    /// Those of the segmenter that the mask was made of, as far as the image shows them.
    pub classes: Vec<String>,
    pub dilate_px: u32,
    /// The part of the image that may be changed, 0 to 1.
    pub coverage: f64,
    /// What is to be said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Of the segmenter's weights, as the model's manifest names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
}
