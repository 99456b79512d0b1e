//! What the scores of an image classifier mean: which of its labels are categories, and from which score on.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;

use crate::shown;

/// Key `checker.categories` of a manifest: label to category.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Categories(BTreeMap<String, Category>);

/// What a label of a classifier stands for.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Category {
    /// One word that callers read, such as `nude`.
    pub category: String,
    /// A score above it is a finding; none: the classifier's own.
    #[serde(default)]
    pub threshold: Option<f32>,
}

/// A classifier's labels with what they stand for.
#[derive(Debug, Clone, PartialEq)]
pub struct Checker {
    /// For records and logs: the directory's name.
    pub name: String,
    labels: Vec<Label>,
}

#[derive(Debug, Clone, PartialEq)]
struct Label {
    label: String,
    /// Category and threshold; none: it says nothing of what may be shown.
    stands_for: Option<(String, f32)>,
}

/// A score of one label.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding<'a> {
    pub label: &'a str,
    pub score: f32,
    /// The category, where the score is above the threshold.
    pub found: Option<&'a str>,
}

impl Checker {
    /// `labels`: what the classifier gives scores for, in its order, each with its own threshold; `scores`: between which they are.
    ///
    /// # Errors
    /// When no label stands for a category, a category is of a label that there is not, or a threshold is one that no score is above, or all are.
    pub fn new(name: &str, (labels, scores): (&[(String, f32)], Range<f32>), categories: &Categories) -> Result<Self, String> {
        let known = || labels.iter().map(|(label, _)| label.as_str()).collect::<Vec<_>>().join(", ");
        if let Some(unknown) = categories.0.keys().find(|label| !labels.iter().any(|(known, _)| known == *label)) {
            return Err(format!("{} is no label of {name}, which has {}", shown::text(unknown), known()));
        }
        if categories.0.is_empty() {
            return Err(format!("must say which labels of {name} stand for what may not be shown; it has {}", known()));
        }
        if let Some((label, _)) = categories.0.iter().find(|(_, of)| !is_word(&of.category)) {
            return Err(format!("{label}: category must be 1 to 32 of the characters a-z 0-9 _ -"));
        }
        for (label, of) in &categories.0 {
            let Some(threshold) = of.threshold.filter(|threshold| !scores.contains(threshold)) else { continue };
            let Range { start, end } = scores;
            return Err(format!(
                "{label}: threshold must be from {start} to below {end}, as the scores of {name}, got {threshold}"
            ));
        }
        let labels = labels.iter().map(|(label, own)| {
            let of = categories.0.get(label);
            let stands_for = of.map(|of| (of.category.clone(), of.threshold.unwrap_or(*own)));
            Label { label: label.clone(), stands_for }
        });
        Ok(Self { name: name.to_owned(), labels: labels.collect() })
    }

    /// What the scores of one image say, in the order of the labels.
    #[must_use]
    pub fn read<'a>(&'a self, scores: &[f32]) -> Vec<Finding<'a>> {
        let read = self.labels.iter().zip(scores).map(|(Label { label, stands_for }, score)| {
            let found = stands_for.as_ref().filter(|(_, threshold)| score > threshold);
            Finding { label, score: *score, found: found.map(|(category, _)| category.as_str()) }
        });
        read.collect()
    }
}

/// Whether it may be a category: callers compare it, and metrics have it as a label.
#[must_use]
pub fn is_word(category: &str) -> bool {
    let is_plain = category.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte));
    (1..=32).contains(&category.len()) && is_plain
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checker(categories: serde_json::Value) -> Result<Checker, String> {
        let labels = [("normal".to_owned(), 0.5), ("nsfw".to_owned(), 0.5), ("underwear".to_owned(), 0.5)];
        Checker::new("falconsai", (&labels, 0.0..1.0), &serde_json::from_value(categories).unwrap())
    }

    #[test]
    fn a_score_above_its_threshold_is_a_finding() {
        let nude = json!({ "nsfw": { "category": "nude" }, "underwear": { "category": "underwear", "threshold": 0.8 } });
        let checker = checker(nude).unwrap();
        let found =
            |scores: &[f32]| checker.read(scores).iter().filter_map(|finding| finding.found).collect::<Vec<_>>().join(" ");
        assert_eq!(found(&[0.9, 0.05, 0.05]), "");
        assert_eq!(found(&[0.1, 0.51, 0.39]), "nude");
        assert_eq!(found(&[0.0, 0.5, 0.5]), "", "at the threshold it is none");
        assert_eq!(found(&[0.0, 0.1, 0.81]), "underwear");
        assert_eq!(checker.read(&[0.25, 0.5, 0.25])[1].label, "nsfw");
    }

    #[test]
    fn categories_are_of_labels_that_there_are() {
        let wrong = [
            (json!({}), "must say which labels of falconsai stand for what may not be shown; it has normal, nsfw, underwear"),
            (json!({ "porn": { "category": "nude" } }), "\"porn\" is no label of falconsai, which has normal, nsfw, underwear"),
            (
                json!({ "nsfw": { "category": "nude", "threshold": 95 } }),
                "nsfw: threshold must be from 0 to below 1, as the scores of falconsai, got 95",
            ),
            (
                json!({ "nsfw": { "category": "nude", "threshold": 1.0 } }),
                "nsfw: threshold must be from 0 to below 1, as the scores of falconsai, got 1",
            ),
            (json!({ "nsfw": { "category": "Not safe" } }), "nsfw: category must be 1 to 32 of the characters a-z 0-9 _ -"),
        ];
        for (categories, problem) in wrong {
            assert_eq!(checker(categories).unwrap_err(), problem);
        }
    }
}
