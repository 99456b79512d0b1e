//! The field `controlnets` of task `generate`.

use serde::{Deserialize, Deserializer, de};
use serde_json::{Value, json};

use super::field::{self, ImageBody};
use crate::job::outcome::JobError;
use crate::job::task::control::{Control, ControlScale, Detector, NetName, StepsPart, Threshold};

/// Each runs in every step: more would take longer than anyone waits.
const MAX: usize = 4;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ControlBody {
    name: NetName,
    image: ImageBody,
    scale: Option<ControlScale>,
    start: Option<StepsPart>,
    end: Option<StepsPart>,
    #[serde(default, deserialize_with = "detector")]
    detect: Option<DetectorName>,
    low_threshold: Option<Threshold>,
    high_threshold: Option<Threshold>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DetectorName {
    Canny,
}

impl ControlBody {
    /// The one at place `index` of the list.
    pub(super) fn read(self, index: usize) -> Result<Control, JobError> {
        let invalid =
            |field: &str, problem: String| Err(JobError::Invalid { field: format!("controlnets[{index}].{field}"), problem });
        let start = self.start.unwrap_or_else(StepsPart::first);
        let end = self.end.unwrap_or_else(StepsPart::last);
        if start.get() >= end.get() {
            return invalid("end", format!("must be above start, which is {}, got {}", start.get(), end.get()));
        }
        let thresholds = [("low_threshold", self.low_threshold), ("high_threshold", self.high_threshold)];
        let detect = match self.detect {
            None => match thresholds.into_iter().find(|(_, given)| given.is_some()) {
                Some((field, _)) => {
                    return invalid(field, "means something only with \"detect\": \"canny\": give that as well".into());
                }
                None => None,
            },
            Some(DetectorName::Canny) => {
                let low = self.low_threshold.unwrap_or_else(Threshold::default_low);
                let high = self.high_threshold.unwrap_or_else(Threshold::default_high);
                if low.get() > high.get() {
                    return invalid(
                        "low_threshold",
                        format!("must be at most high_threshold, {}, got {}", high.get(), low.get()),
                    );
                }
                Some(Detector::Canny { low, high })
            }
        };
        let scale = self.scale.unwrap_or_else(ControlScale::one);
        Ok(Control { name: self.name, image: self.image.url, detect, scale, start, end })
    }
}

pub(super) fn controls<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ControlBody>, D::Error> {
    let controls: Vec<ControlBody> = field::or_default(deserializer)?;
    let count = controls.len();
    if count <= MAX { Ok(controls) } else { Err(de::Error::custom(format!("must be at most {MAX}, got {count}"))) }
}

fn detector<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DetectorName>, D::Error> {
    field::named(deserializer, Detector::NAMES)
}

/// What decides the images.
pub(super) fn canonical(Control { name, image, detect, scale, start, end }: &Control) -> Value {
    let detect = detect.map(|detector| match detector {
        Detector::Canny { low, high } => json!([detector.name(), low, high]),
    });
    json!([name, image.identity(), scale, start, end, detect])
}
