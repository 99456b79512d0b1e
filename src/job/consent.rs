//! On what basis a job uses the image of a person: the caller says it, the record keeps it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::shown;

/// Field `consent` of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consent {
    pub basis: Basis,
    /// Where the caller keeps it, such as the number of a form.
    pub reference: Reference,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// The caller is the person.
    Own,
    /// The person has agreed.
    Given,
    /// There is no such person.
    Synthetic,
}

impl Basis {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Given => "given",
            Self::Synthetic => "synthetic",
        }
    }
}

impl<'de> Deserialize<'de> for Basis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(word) if word == "own" => Ok(Self::Own),
            serde_json::Value::String(word) if word == "given" => Ok(Self::Given),
            serde_json::Value::String(word) if word == "synthetic" => Ok(Self::Synthetic),
            other => {
                let got = shown::json(&other);
                Err(de::Error::custom(format!("must be \"own\", \"given\" or \"synthetic\", got {got}")))
            }
        }
    }
}

/// 1 to 256 characters without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Reference(String);

impl Reference {
    pub const MAX_CHARS: usize = 256;
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if (1..=Self::MAX_CHARS).contains(&text.chars().count()) && !text.chars().any(char::is_control) {
            return Ok(Self(text));
        }
        let most = Self::MAX_CHARS;
        let got = shown::text(&text);
        Err(de::Error::custom(format!("must be 1 to {most} characters without control characters, got {got}")))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
