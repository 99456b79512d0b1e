//! What the safety gate was asked about a job, and what it said: part of records, notes and notifications.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What was asked of a job before it was stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Safety {
    /// Two jobs with the same one were judged alike.
    pub policy: String,
    /// In the order in which they were asked.
    pub checks: Vec<SafetyCheck>,
}

/// One that was asked, and what it said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SafetyCheck {
    pub stage: Stage,
    /// `prompt_lists`, `classifier NAME` or `moderator`.
    pub backend: String,
    /// The highest of all images by label, to three places.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scores: BTreeMap<String, f64>,
}

/// What of a job is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Prompt,
    /// Its input images.
    Input,
    /// The images that were generated.
    Image,
}

impl Stage {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Input => "input",
            Self::Image => "image",
        }
    }
}

/// Why a job is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// One word, such as `nude`.
    pub category: String,
    pub stage: Stage,
    /// The field of the request at fault; none: what was generated from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { category, stage, field } = self;
        match stage {
            Stage::Prompt | Stage::Input => {
                let field = field.as_deref().unwrap_or("the job");
                write!(f, "{field}: is not allowed by this function's content policy ({category}); nothing was generated")
            }
            Stage::Image => {
                write!(f, "what was generated is not allowed by this function's content policy ({category}); no image was kept")
            }
        }
    }
}

/// What the bucket keeps of a job that was blocked: whoever gets it again tells the same, and generates nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockedJob {
    pub job_id: String,
    /// Of the request.
    pub fingerprint: String,
    #[serde(flatten)]
    pub block: Block,
    /// As [`Safety::policy`].
    pub policy: String,
    /// All that was asked, the last of which has blocked it.
    pub checks: Vec<SafetyCheck>,
    /// Seconds since 1970-01-01T00:00:00Z.
    pub blocked_at_s: u64,
}
