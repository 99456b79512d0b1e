//! From what a vision transformer saw to scores, in f32: labels that share 1, or cosines to concepts.

use candle_core::{Result, Tensor};
use candle_nn::{VarBuilder, ops::softmax_last_dim};

use super::config::{Architecture, ClassifierConfig};
use crate::layers::{Linear, linear, linear_b};

/// As many of each as diffusers' class has.
const CONCEPTS: usize = 17;
const SPECIAL_CARE: usize = 3;
/// What an image that needs special care has added to each further score.
const ADJUSTMENT: f32 = 0.01;

pub(super) enum Head {
    /// A score for each label, which add up to 1.
    Softmax(Linear),
    Concepts(SafetyChecker),
}

/// diffusers' `StableDiffusionSafetyChecker`, behind its vision model.
pub(super) struct SafetyChecker {
    /// Without a bias.
    visual_projection: Linear,
    concepts: Embeddings,
    special_care: Embeddings,
}

/// What images are compared with.
struct Embeddings {
    /// (n, projection), each of length 1.
    directions: Tensor,
    /// The cosine from which on an image shows it, (n).
    thresholds: Tensor,
}

impl Head {
    /// Tensors at the root of the file, f32, on the CPU.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub(super) fn new(config: &ClassifierConfig, vb: &VarBuilder) -> Result<Self> {
        let hidden = config.vision.layer.hidden_size;
        Ok(match &config.architecture {
            Architecture::Vit(labels) => Self::Softmax(linear(hidden, labels.len(), vb.pp("classifier"))?),
            Architecture::SafetyChecker { projection_dim } => Self::Concepts(SafetyChecker {
                visual_projection: linear_b(hidden, *projection_dim, false, vb.pp("visual_projection"))?,
                concepts: Embeddings::new(CONCEPTS, *projection_dim, "concept_embeds", vb)?,
                special_care: Embeddings::new(SPECIAL_CARE, *projection_dim, "special_care_embeds", vb)?,
            }),
        })
    }

    /// `seen`: (B, hidden), f32, on the CPU. Returns B lists of scores in the order of the labels.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn scores(&self, seen: &Tensor) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Softmax(classifier) => softmax_last_dim(&classifier.forward(seen)?)?.to_vec2(),
            Self::Concepts(checker) => checker.scores(seen),
        }
    }
}

impl SafetyChecker {
    /// The highest score over all concepts and over those of special care, an image.
    fn scores(&self, seen: &Tensor) -> Result<Vec<Vec<f32>>> {
        let embedded = normalized(&self.visual_projection.forward(seen)?)?;
        let concepts = self.concepts.differences(&embedded)?;
        let special_care = self.special_care.differences(&embedded)?;
        Ok(concepts.iter().zip(&special_care).map(|(concepts, special_care)| judged(concepts, special_care).to_vec()).collect())
    }
}

/// Scores of unsafe content and of special care. diffusers raises all that follows the first concept of special care it finds, and rounds to 3
/// places before it compares with 0.
fn judged(concepts: &[f32], special_care: &[f32]) -> [f32; 2] {
    let mut adjustment = 0.0;
    let mut special = f32::NEG_INFINITY;
    for difference in special_care {
        let score = rounded(difference + adjustment);
        special = highest(special, score);
        if score > 0.0 {
            adjustment = ADJUSTMENT;
        }
    }
    let unsafe_content = concepts.iter().map(|difference| rounded(difference + adjustment)).fold(f32::NEG_INFINITY, highest);
    [unsafe_content, special]
}

/// `f32::max`, but what is no number stays none.
fn highest(one: f32, other: f32) -> f32 {
    if one.is_nan() || one > other { one } else { other }
}

/// As numpy rounds to 3 places.
fn rounded(score: f32) -> f32 {
    (score * 1000.0).round_ties_even() / 1000.0
}

impl Embeddings {
    fn new(count: usize, projection_dim: usize, name: &str, vb: &VarBuilder) -> Result<Self> {
        let directions = normalized(&vb.get((count, projection_dim), name)?)?;
        Ok(Self { directions, thresholds: vb.get(count, &format!("{name}_weights"))? })
    }

    /// `embedded`: (B, projection). Returns B lists of cosines minus thresholds.
    fn differences(&self, embedded: &Tensor) -> Result<Vec<Vec<f32>>> {
        embedded.matmul(&self.directions.t()?)?.broadcast_sub(&self.thresholds)?.to_vec2()
    }
}

/// Rows of length 1, as torch's `normalize` makes them.
fn normalized(rows: &Tensor) -> Result<Tensor> {
    rows.broadcast_div(&rows.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(1e-12)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In thousandths.
    fn thousandths(concepts: &[f32], special_care: &[f32]) -> [i32; 2] {
        judged(concepts, special_care).map(|score| (score * 1000.0).round() as i32)
    }

    #[test]
    fn special_care_lowers_the_bar_for_all_that_follows_it() {
        assert_eq!(thousandths(&[-0.005, -0.2], &[-0.1, -0.1]), [-5, -100]);
        assert_eq!(thousandths(&[-0.005, -0.2], &[0.02, -0.1]), [5, 20]);
        assert_eq!(
            thousandths(&[-0.02, -0.2], &[0.001, -0.005]),
            [-10, 5],
            "a later concept of special care is raised as well"
        );
        let rounded = judged(&[0.000_4], &[-0.005, 0.000_4]);
        assert!(rounded.iter().all(|score| *score <= 0.0), "rounded before it is compared: {rounded:?}");
    }

    #[test]
    fn what_is_no_number_is_never_a_low_score() {
        assert!(judged(&[f32::NAN, -0.5], &[-0.5])[0].is_nan());
        assert!(judged(&[-0.5, f32::NAN], &[-0.5])[0].is_nan());
        assert!(judged(&[-0.5], &[f32::NAN, -0.5])[1].is_nan());
    }
}
