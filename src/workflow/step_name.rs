//! What the steps are called, in config.yaml and in records.

use serde::Deserialize;

/// The steps there are, by their names in config.yaml.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepName {
    /// Download what the job refers to.
    Fetch,
    /// Open the images of a try-on and bring them to size.
    Preprocess,
    /// Look at what is asked for, before anything is generated.
    Screen,
    /// Generate.
    Infer,
    /// Put back what a try-on was to leave as it was.
    Postprocess,
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

impl StepName {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Preprocess => "preprocess",
            Self::Screen => "screen",
            Self::Infer => "infer",
            Self::Postprocess => "postprocess",
            Self::Check => "check",
            Self::Watermark => "watermark",
            Self::Encode => "encode",
            Self::Credentials => "credentials",
            Self::Store => "store",
            Self::Notify => "notify",
        }
    }
}
