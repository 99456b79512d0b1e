//! What the steps are called, in config.yaml and in records.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

use crate::safety::checker::is_word;
use crate::shown;

/// The steps there are, by their names in config.yaml.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StepName {
    /// Download what the job refers to.
    Fetch,
    /// Open the images of a try-on and bring them to size.
    Preprocess,
    /// Look at what is asked for, before anything is generated.
    Screen,
    /// Find the clothes of a person, where a try-on asks for it.
    Mask,
    /// Generate.
    Infer,
    /// Put back what a try-on was to leave as it was.
    Postprocess,
    /// Enlarge what was generated.
    Upscale,
    /// A program or a service of the user's own.
    User(UserStepName),
    /// Look at what was generated.
    Check,
    /// Put the artist's signature on.
    Watermark,
    /// Turn pixels into a file.
    Encode,
    /// Sign the files, each with a manifest of how it came about.
    Credentials,
    /// Upload the images, then the record.
    Store,
    /// Notify the caller.
    Notify,
}

/// `command:NAME` or `http:NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserStepName {
    kind: UserStepKind,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UserStepKind {
    Command,
    Http,
}

impl UserStepKind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Http => "http",
        }
    }
}

impl UserStepName {
    #[must_use]
    pub fn kind(&self) -> UserStepKind {
        self.kind
    }

    /// The kind and what stands behind it, as config.yaml has it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What stands behind the kind.
    #[must_use]
    pub fn name(&self) -> &str {
        self.text.split_once(':').map_or("", |(_, name)| name)
    }
}

impl fmt::Display for UserStepName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StepName {
    /// Those that come with atelier.
    pub const BUILT_IN: [Self; 13] = [
        Self::Fetch,
        Self::Preprocess,
        Self::Screen,
        Self::Mask,
        Self::Infer,
        Self::Postprocess,
        Self::Upscale,
        Self::Check,
        Self::Watermark,
        Self::Encode,
        Self::Credentials,
        Self::Store,
        Self::Notify,
    ];

    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Fetch => "fetch",
            Self::Preprocess => "preprocess",
            Self::Screen => "screen",
            Self::Mask => "mask",
            Self::Infer => "infer",
            Self::Postprocess => "postprocess",
            Self::Upscale => "upscale",
            Self::User(name) => name.as_str(),
            Self::Check => "check",
            Self::Watermark => "watermark",
            Self::Encode => "encode",
            Self::Credentials => "credentials",
            Self::Store => "store",
            Self::Notify => "notify",
        }
    }

    #[must_use]
    pub fn as_user_step(&self) -> Option<&UserStepName> {
        match self {
            Self::User(name) => Some(name),
            _ => None,
        }
    }

    /// # Errors
    /// Says what there is.
    pub fn named(text: &str) -> Result<Self, String> {
        if let Some(step) = Self::BUILT_IN.into_iter().find(|step| step.as_str() == text) {
            return Ok(step);
        }
        let kinds = [UserStepKind::Command, UserStepKind::Http].into_iter();
        let own = text.split_once(':').and_then(|(kind, name)| Some((kinds.clone().find(|own| own.as_str() == kind)?, name)));
        match own {
            Some((kind, name)) if is_word(name) => Ok(Self::User(UserStepName { kind, text: text.to_owned() })),
            Some((kind, name)) => {
                let name = shown::text(name);
                Err(format!("must have 1 to 32 of the characters a-z 0-9 _ - behind `{}:`, got {name}", kind.as_str()))
            }
            None => {
                let names = Self::BUILT_IN.map(|step| step.as_str().to_owned()).join(", ");
                Err(format!(
                    "must be one of {names}, or command:NAME or http:NAME for a step of your own, got {}",
                    shown::text(text)
                ))
            }
        }
    }
}

impl<'de> Deserialize<'de> for StepName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::named(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}
