//! A moderator outside: gets the prompt and small copies of the images, and says whether they may be shown.
//!
//! `POST {url}`, JSON:
//!
//! ```json
//! {"stage": "input", "job_id": "t-1", "task": "tryon", "tenant": "shop-7", "prompt": "a red dress", "negative_prompt": "",
//!  "consent": {"basis": "given", "reference": "form-17"},
//!  "images": [{"field": "person", "content_type": "image/jpeg", "data": "<base64>"}]}
//! ```
//!
//! `stage`: `input` before anything is generated, with the input images; `image` behind it, with the results.
//! Answer, 200 and JSON: `{"allowed": true}`, or `{"allowed": false, "categories": ["minors"], "field": "person", "scores": {"minors": 0.93}}`.
//! Categories of an allowed job count as well: `underwear` is for the operator's settings to decide.
//! Anything else, another status or no answer in time, is no answer: the job waits, and nothing leaves.

use std::collections::BTreeMap;
use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::thumbnail;
use image::{ExtendedColorType, ImageEncoder as _, RgbImage};
use serde::{Deserialize, Serialize};

use super::checker::is_word;
use crate::job::Job;
use crate::job::consent::Consent;
use crate::job::outcome::JobError;
use crate::job::safety::Stage;
use crate::service::{Address, Service, object};
use crate::setting::{Secret, SettingError};
use crate::shown;

/// In settings and messages.
const NAME: &str = "safety.moderator";
/// Of the longer side of what is sent.
const MAX_SIDE_PX: u32 = 512;
const JPEG_QUALITY: u8 = 85;
/// Bytes of an answer.
const MAX_ANSWER_BYTES: u64 = 64 << 10;
/// A score is a probability, or a number that a classifier decides by.
const MAX_SCORE: f64 = 1e6;

/// Section `safety.moderator`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// None: nobody outside is asked.
    pub url: Option<String>,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<Secret>,
    /// Of one request.
    pub timeout_ms: u64,
    /// A job waits so long for an answer before it is handed back.
    pub max_wait_ms: u64,
}

/// Who is asked.
#[derive(Debug, Clone)]
pub struct Moderator(Service);

/// What it said.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Answer {
    pub allowed: bool,
    #[serde(default)]
    pub categories: Vec<String>,
    /// The field at fault.
    #[serde(default)]
    pub field: Option<String>,
    #[serde(default)]
    pub scores: BTreeMap<String, f64>,
}

#[derive(Serialize)]
struct Question<'a> {
    stage: Stage,
    job_id: &'a str,
    task: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    prompt: &'a str,
    negative_prompt: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    consent: Option<&'a Consent>,
    images: &'a [SmallImage],
}

/// A small copy of an image.
#[derive(Debug, Clone, Serialize)]
pub struct SmallImage {
    /// The job's field of an input; `image[n]` of a result.
    field: String,
    content_type: &'static str,
    data: String,
}

impl SmallImage {
    /// # Errors
    /// When the image cannot be encoded.
    pub fn of(field: &str, image: &RgbImage) -> Result<Self, String> {
        let longer = image.width().max(image.height());
        let side = |px: u32| (u64::from(px) * u64::from(MAX_SIDE_PX) / u64::from(longer.max(1))).max(1) as u32;
        let small = (longer > MAX_SIDE_PX).then(|| thumbnail(image, side(image.width()), side(image.height())));
        let shown = small.as_ref().unwrap_or(image);
        let mut file = Cursor::new(Vec::new());
        let encoder = JpegEncoder::new_with_quality(&mut file, JPEG_QUALITY);
        let written = encoder.write_image(shown, shown.width(), shown.height(), ExtendedColorType::Rgb8);
        written.map_err(|error| error.to_string())?;
        Ok(Self { field: field.to_owned(), content_type: "image/jpeg", data: STANDARD.encode(file.into_inner()) })
    }
}

impl Moderator {
    /// None: the settings name none.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn new(settings: &Settings) -> Result<Option<Self>, SettingError> {
        let Some(url) = &settings.url else {
            let unused = settings.token.is_some();
            let problem = "is set, and there is no safety.moderator.url to send it to";
            return if unused { Err(SettingError::new("safety.moderator.token", problem)) } else { Ok(None) };
        };
        let address = Address {
            url,
            token: settings.token.as_ref(),
            timeout_ms: settings.timeout_ms,
            max_wait_ms: settings.max_wait_ms,
            max_answer_bytes: MAX_ANSWER_BYTES,
        };
        Service::new(NAME, NAME, address).map(|service| Some(Self(service)))
    }

    /// Asks until there is an answer, for as long as the settings say.
    ///
    /// # Errors
    /// [`JobError::ModerationUnavailable`]: there is none, and the job has to wait for it.
    pub async fn ask(&self, job: &Job, stage: Stage, images: &[SmallImage]) -> Result<Answer, JobError> {
        let question = Question {
            stage,
            job_id: job.id.as_str(),
            task: job.task.name(),
            tenant: job.tenant.as_deref(),
            prompt: job.task.prompt(),
            negative_prompt: job.task.negative_prompt(),
            consent: job.consent.as_ref(),
            images,
        };
        let question = serde_json::to_vec(&question)
            .map_err(|error| JobError::Internal { problem: format!("the moderator's question cannot be written: {error}") })?;
        // Whatever is wrong with an answer may be put right while the job waits, and until then nobody has judged it.
        let answer = self.0.ask(question, |body| read(&body), |_| true).await;
        answer.map_err(|no_answer| JobError::ModerationUnavailable { problem: no_answer.problem().to_owned() })
    }
}

/// Reads an answer. What it names becomes part of webhooks and metrics.
fn read(body: &[u8]) -> Result<Answer, String> {
    let no_answer = |problem: String| format!("safety.moderator must answer {{\"allowed\": true or false, ...}}: {problem}");
    let answer: Answer = object(body).map_err(no_answer)?;
    if let Some((name, score)) = answer.scores.iter().find(|(_, score)| score.abs() > MAX_SCORE) {
        let name = shown::text(name);
        return Err(no_answer(format!("the score of {name} is {score}, and must be from -{MAX_SCORE} to {MAX_SCORE}")));
    }
    if let Some(strange) = answer.categories.iter().find(|category| !is_word(category)) {
        let strange = shown::text(strange);
        return Err(format!("safety.moderator named the category {strange}; it must be 1 to 32 of the characters a-z 0-9 _ -"));
    }
    let field = answer.field.map(|field| shown::clipped(field, 64));
    Ok(Answer { field, ..answer })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_yes_or_a_no_and_nothing_else() {
        assert!(read(br#"{"allowed": true}"#).unwrap().allowed);
        let no =
            read(br#"{"allowed": false, "categories": ["minors"], "field": "person", "scores": {"minors": 0.9}, "more": 1}"#);
        assert_eq!(no.unwrap().categories, ["minors"]);
        for (body, problem) in [
            (&b""[..], "no object"),
            (b"ok", "must answer {\"allowed\""),
            (b"[true]", "no object"),
            (b" [true, [], null, {}]", "no object"),
            (br#"{"allowed": true, "allowed": false}"#, "duplicate field"),
            (br#"{"allowed": true, "scores": {"x": 1e306}}"#, "the score of \"x\" is"),
            (b"{}", "missing field `allowed`"),
            (br#"{"allowed": "yes"}"#, "invalid type"),
            (br#"{"allowed": false, "categories": ["Not Safe"]}"#, "named the category \"Not Safe\""),
        ] {
            let error = read(body).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn what_is_sent_is_small() {
        let small = SmallImage::of("person", &RgbImage::new(1400, 700)).unwrap();
        let file = STANDARD.decode(small.data).unwrap();
        let sent = image::load_from_memory(&file).unwrap();
        assert_eq!((sent.width(), sent.height()), (512, 256));
        let own = SmallImage::of("person", &RgbImage::new(96, 128)).unwrap();
        let own = image::load_from_memory(&STANDARD.decode(own.data).unwrap()).unwrap();
        assert_eq!((own.width(), own.height()), (96, 128));
    }
}
