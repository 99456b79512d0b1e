//! What a handler reports to its host while it works: lines on standard output, each one JSON object with the key `atelier`.

use std::io::{self, Write as _};

use serde::{Deserialize, Serialize};

use crate::job::capabilities::Capabilities;
use crate::job::segmenter::Segmenter;
use crate::job::task::ModelName;
use crate::job::upscalers::Upscalers;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The model is loaded and warm.
    Ready {
        model: ModelName,
        load_seconds: f64,
        /// None: a handler of an earlier release, which says nothing of it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        capabilities: Option<Capabilities>,
        /// None: as well.
        #[serde(default, skip_serializing_if = "Upscalers::is_empty")]
        upscalers: Upscalers,
        #[serde(default, skip_serializing_if = "Segmenter::is_none")]
        segmenter: Segmenter,
    },
    /// A denoising step is done.
    Progress { job_id: String, step: u32, steps: u32 },
    /// What the first image of a job looks like after a step; said of jobs that [`ControlCommand::Preview`](super::control::ControlCommand::Preview)
    /// names, at most twice a second.
    Preview {
        job_id: String,
        #[serde(flatten)]
        preview: Preview,
    },
}

/// What the first image of a job looks like after a denoising step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    /// The denoising step that it shows, of all.
    pub step: u32,
    pub steps: u32,
    /// 128 at most, as the height.
    #[serde(rename = "width")]
    pub width_px: u32,
    #[serde(rename = "height")]
    pub height_px: u32,
    /// A JPEG in base64, some 40 kB at most.
    pub image: String,
}

#[derive(Serialize, Deserialize)]
struct Line {
    atelier: Report,
}

impl Report {
    /// None: the line is the function's own output.
    #[must_use]
    pub fn decode(line: &str) -> Option<Self> {
        // Most lines are not ours, and reading them as JSON is not free.
        line.starts_with("{\"atelier\"").then(|| serde_json::from_str::<Line>(line).ok())?.map(|line| line.atelier)
    }

    /// The line, without its end. Empty only if it could not be written as JSON, which none of them is.
    #[must_use]
    pub fn encode(self) -> String {
        serde_json::to_string(&Line { atelier: self }).unwrap_or_default()
    }

    /// Writes the line, from any thread.
    pub fn send(self) {
        write_line(&self.encode());
    }
}

/// Writes a line in one piece. A standard output that no one reads is no reason to stop.
pub fn write_line(line: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::task::upscale::{UpscaleFactor, Upscaler};

    #[test]
    fn lines_are_read_back_and_others_are_left_alone() {
        let report = Report::Progress { job_id: "job-1".into(), step: 3, steps: 20 };
        let line = report.clone().encode();
        assert_eq!(line, r#"{"atelier":{"progress":{"job_id":"job-1","step":3,"steps":20}}}"#);
        assert_eq!(Report::decode(&line), Some(report));
        let preview = Preview { step: 3, steps: 20, width_px: 64, height_px: 48, image: "/9j/".into() };
        let shown = Report::Preview { job_id: "job-1".into(), preview };
        let line = shown.clone().encode();
        let expected =
            r#"{"atelier":{"preview":{"job_id":"job-1","step":3,"steps":20,"width":64,"height":48,"image":"/9j/"}}}"#;
        assert_eq!(line, expected, "handlers of other releases write it so");
        assert_eq!(Report::decode(&line), Some(shown));
        let ready = Report::Ready {
            model: ModelName::new("tiny-sd").unwrap(),
            load_seconds: 1.5,
            capabilities: Some(Capabilities::Edit(vec![crate::job::task::tryon::Mode::Fp8])),
            upscalers: Upscalers {
                listed: vec![Upscaler {
                    name: ModelName::new("x4plus").unwrap(),
                    factor: UpscaleFactor::new(4).unwrap(),
                    licence: Some("BSD-3-Clause".into()),
                }],
                max_pixels: 1 << 24,
            },
            segmenter: Segmenter { classes: vec!["Background".into(), "Dress".into()], licence: None },
        };
        assert_eq!(Report::decode(&ready.clone().encode()), Some(ready));
        let earlier = Report::decode(r#"{"atelier":{"ready":{"model":"tiny-sd","load_seconds":1.5}}}"#);
        assert!(matches!(earlier, Some(Report::Ready { capabilities: None, .. })), "{earlier:?}");
        for other in ["", "hello", "{\"level\":\"INFO\"}", "{\"atelier\":1}", "{\"atelier\":{\"other\":{}}}"] {
            assert_eq!(Report::decode(other), None, "{other}");
        }
    }
}
