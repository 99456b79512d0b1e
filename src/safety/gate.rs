//! The gate: all that is asked before and after a job is generated, and what its answers mean.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

use super::checker::Checker;
use super::moderator::{Answer, Moderator};
use super::prompt_list::PromptList;
use super::settings::{Mode, Settings, TryOnSettings};
use crate::job::Job;
use crate::job::safety::{Block, SafetyCheck, Stage};
use crate::job::task::Task;
use crate::setting::SettingError;

/// What may be shown of people in underwear, where [`TryOnSettings::allow_underwear`] and the job's consent say so.
const UNDERWEAR: &str = "underwear";
/// Of a moderator that says no and not why.
const UNNAMED: &str = "not_allowed";
/// Scores in records and logs have so many places.
const PLACES: f64 = 1e3;

/// What is made of section `safety`, once at start.
#[derive(Debug)]
pub struct Gate {
    mode: Mode,
    tryon: TryOnSettings,
    prompt_lists: Vec<PromptList>,
    /// Of instructions that change images of people.
    undress: PromptList,
    /// Of what is kept out of such an image.
    uncover: PromptList,
    /// Uploads of a job that was blocked go.
    pub deletes_inputs: bool,
    /// Of the classifier that the model's manifest names.
    pub checker: Option<Checker>,
    pub moderator: Option<Moderator>,
    /// The first 12 of the SHA-256 of all that decides: two records with the same one were judged alike.
    pub policy: String,
}

/// What a job was found to be by one that was asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgment {
    pub check: SafetyCheck,
    pub block: Option<Block>,
}

impl Gate {
    /// # Errors
    /// Names the setting that is wrong, and how.
    pub fn new(settings: &Settings, checker: Option<Checker>) -> Result<Self, SettingError> {
        let undress = PromptList::undress().map_err(|problem| SettingError::new("safety", problem))?;
        let uncover = PromptList::uncover().map_err(|problem| SettingError::new("safety", problem))?;
        let mut digest = Sha256::new();
        let mut prompt_lists = Vec::new();
        for path in &settings.prompt_lists {
            let (list, text) = PromptList::read(path).map_err(|problem| SettingError::new("safety.prompt_lists", problem))?;
            digest.update(text.as_bytes());
            digest.update([0]);
            prompt_lists.push(list);
        }
        let moderator = Moderator::new(&settings.moderator)?;
        let url = settings.moderator.url.as_deref();
        digest.update(format!("{:?} {:?} {checker:?} {url:?} {}", settings.mode, settings.tryon, env!("CARGO_PKG_VERSION")));
        let policy = base16ct::lower::encode_string(&digest.finalize())[..12].to_owned();
        let deletes_inputs = settings.delete_inputs;
        Ok(Self {
            mode: settings.mode,
            tryon: settings.tryon,
            prompt_lists,
            undress,
            uncover,
            deletes_inputs,
            checker,
            moderator,
            policy,
        })
    }

    #[must_use]
    pub fn is_on(&self) -> bool {
        self.mode == Mode::On
    }

    /// Whether somebody looks at images.
    #[must_use]
    pub fn looks_at_images(&self) -> bool {
        self.is_on() && (self.checker.is_some() || self.moderator.is_some())
    }

    /// What the job's settings demand whoever looks.
    #[must_use]
    pub fn tryon(&self) -> TryOnSettings {
        self.tryon
    }

    /// The prompt by all lists; none: there is no list for it. What is to be left out of an image is looked at only for clothes: it is the other way
    /// to ask for none.
    #[must_use]
    pub fn prompt(&self, job: &Job) -> Option<Judgment> {
        let of_people = changes_an_image(&job.task).then_some(&self.undress);
        let mut lists = of_people.into_iter().chain(&self.prompt_lists).peekable();
        lists.peek()?;
        let prompt = job.task.prompt();
        let found = lists.find_map(|list| list.category_of(prompt)).map(|category| ("prompt", category));
        let left_out = of_people.and_then(|_| self.uncover.category_of(job.task.negative_prompt()));
        let block = found.or(left_out.map(|category| ("negative_prompt", category))).map(|(field, category)| Block {
            category: category.to_owned(),
            stage: Stage::Prompt,
            field: Some(field.to_owned()),
        });
        let check = SafetyCheck { stage: Stage::Prompt, backend: "prompt_lists".to_owned(), scores: BTreeMap::new() };
        Some(Judgment { check, block })
    }

    /// What the classifier's scores say of the images, a list of scores an image. `fields`: the job's, of its inputs.
    #[must_use]
    pub fn images(&self, checker: &Checker, stage: Stage, fields: &[String], scores: &[Vec<f32>], job: &Job) -> Judgment {
        let mut highest: BTreeMap<String, f64> = BTreeMap::new();
        let mut block = None;
        for (place, scores) in scores.iter().enumerate() {
            for finding in checker.read(scores) {
                let score = (f64::from(finding.score) * PLACES).round() / PLACES;
                let known = highest.entry(finding.label.to_owned()).or_insert(score);
                *known = known.max(score);
                let found = finding.found.filter(|category| self.is_blocked(category, job));
                if block.is_none()
                    && let Some(category) = found
                {
                    block = Some(Block { category: category.to_owned(), stage, field: fields.get(place).cloned() });
                }
            }
        }
        Judgment { check: SafetyCheck { stage, backend: format!("classifier {}", checker.name), scores: highest }, block }
    }

    /// What a moderator's answer says.
    #[must_use]
    pub fn answer(&self, stage: Stage, answer: &Answer, job: &Job) -> Judgment {
        let categories: BTreeSet<&str> = answer.categories.iter().map(String::as_str).collect();
        let blocked = categories.iter().find(|category| self.is_blocked(category, job)).copied();
        // Its no is one whatever it names.
        let refused = (!answer.allowed).then(|| categories.first().copied().unwrap_or(UNNAMED));
        let block =
            blocked.or(refused).map(|category| Block { category: category.to_owned(), stage, field: answer.field.clone() });
        let scores = answer.scores.iter().map(|(name, score)| (name.clone(), (score * PLACES).round() / PLACES)).collect();
        Judgment { check: SafetyCheck { stage, backend: "moderator".to_owned(), scores }, block }
    }

    /// Whether a job may not have what was found: all of it but underwear, where a person has agreed and the operator allows it.
    fn is_blocked(&self, category: &str, job: &Job) -> bool {
        category != UNDERWEAR || !(self.tryon.allow_underwear && job.consent.is_some())
    }
}

fn changes_an_image(task: &Task) -> bool {
    match task {
        Task::Generate(generate) => generate.start.is_some(),
        Task::TryOn(_) | Task::Edit(_) => true,
    }
}
