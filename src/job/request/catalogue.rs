//! The models behind one host: which of them a job is for, and what a body gets that leaves a field out.

use serde_json::Value;

use super::{Defaults, Refusal};
use crate::job::Job;
use crate::job::outcome::JobError;
use crate::job::task::ModelName;

/// What a body that leaves a field out gets there.
pub trait DefaultsOf {
    /// For this body, a JSON object.
    fn of(&self, body: &Value) -> &Defaults;
}

impl DefaultsOf for Defaults {
    fn of(&self, _body: &Value) -> &Defaults {
        self
    }
}

/// One listed model.
#[derive(Debug, Clone)]
pub struct Served {
    pub name: ModelName,
    /// As the field `task` has them.
    pub tasks: &'static [&'static str],
    pub defaults: Defaults,
}

impl Served {
    fn does(&self, task: &str) -> bool {
        self.tasks.contains(&task)
    }
}

/// The models in the order in which they are listed: one at least.
#[derive(Debug, Clone)]
pub struct Catalogue {
    first: Served,
    more: Vec<Served>,
}

impl Catalogue {
    #[must_use]
    pub fn new(first: Served, more: Vec<Served>) -> Self {
        Self { first, more }
    }

    pub fn models(&self) -> impl Iterator<Item = &Served> {
        std::iter::once(&self.first).chain(&self.more)
    }

    /// The model at a place of [`Self::models`].
    #[must_use]
    pub fn at(&self, place: usize) -> &Served {
        place.checked_sub(1).and_then(|place| self.more.get(place)).unwrap_or(&self.first)
    }

    /// The prefix under which all models' jobs lie, unless they say another.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.first.defaults.prefix
    }

    /// The place of the model that the job is for: the one it names, else the first that does its task. Where there is only one, every
    /// job is for it.
    ///
    /// # Errors
    /// [`JobError::Invalid`] of the field `task` or `model`, where none of several models does the job.
    pub fn place(&self, job: &Job) -> Result<usize, JobError> {
        if self.more.is_empty() {
            return Ok(0);
        }
        let task = job.task.name();
        let asked = job.task.model();
        let place = self.models().position(|model| model.does(task) && asked.is_none_or(|asked| *asked == model.name));
        place.ok_or_else(|| self.refusal(task, asked))
    }

    fn refusal(&self, task: &str, asked: Option<&ModelName>) -> JobError {
        let doing: Vec<&Served> = self.models().filter(|model| model.does(task)).collect();
        let (field, problem) = match asked {
            Some(asked) if !doing.is_empty() => {
                ("model", format!("must be one that does {task}: {}; got {:?}", listed(doing), asked.as_str()))
            }
            _ => ("task", format!("this host serves {}, none of which does {task}", listed(self.models()))),
        };
        JobError::Invalid { field: field.into(), problem }
    }

    /// The first model that does this task.
    #[must_use]
    pub fn doing(&self, task: &str) -> Option<&Served> {
        self.models().find(|model| model.does(task))
    }

    /// What a job of this task gets that leaves a field out: from the model that it names, else from the first that does the task, else
    /// from the first.
    #[must_use]
    pub fn defaults(&self, task: &str, named: Option<&str>) -> &Defaults {
        &self.at(self.place_of(task, named)).defaults
    }

    /// The place of the model that [`Self::defaults`] are from.
    #[must_use]
    pub fn place_of(&self, task: &str, named: Option<&str>) -> usize {
        let by_name = self.models().position(|model| Some(model.name.as_str()) == named);
        by_name.or_else(|| self.models().position(|model| model.does(task))).unwrap_or(0)
    }

    /// The place of the model whose defaults a body was read with that turned out to be no job: that one's handler refuses it.
    #[must_use]
    pub fn place_of_refused(&self, refusal: &Refusal) -> usize {
        self.models().position(|model| Some(&model.name) == refusal.model.as_ref()).unwrap_or(0)
    }
}

fn listed<'a>(models: impl IntoIterator<Item = &'a Served>) -> String {
    let models = models.into_iter().map(|model| format!("{} ({})", model.name.as_str(), model.tasks.join(", ")));
    models.collect::<Vec<_>>().join(", ")
}

impl DefaultsOf for Catalogue {
    fn of(&self, body: &Value) -> &Defaults {
        self.defaults(body["task"].as_str().unwrap_or("generate"), body["model"].as_str())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn served(name: &str, tasks: &'static [&'static str], seed: u32) -> Served {
        let name = ModelName::new(name).unwrap();
        let seed = super::super::seed::SeedChoice::Given(seed.into());
        let defaults = Defaults { model: name.clone(), seed, ..Defaults::default() };
        Served { name, tasks, defaults }
    }

    fn both() -> Catalogue {
        let more = vec![served("edit", &["tryon", "edit"], 2), served("big", &["generate"], 3)];
        Catalogue::new(served("small", &["generate"], 1), more)
    }

    fn read(body: &Value) -> Job {
        Job::from_json(body.to_string().as_bytes(), &both()).unwrap_or_else(|refusal| panic!("{body}: {}", refusal.error))
    }

    #[test]
    fn a_job_is_for_the_model_it_names_or_the_first_that_does_its_task() {
        let images = json!(["s3://b/i"]);
        let cases = [
            (json!({ "job_id": "a", "prompt": "x" }), 0, Some(1)),
            (json!({ "job_id": "a", "prompt": "x", "model": "big" }), 2, Some(3)),
            (json!({ "job_id": "a", "prompt": "x", "task": "edit", "images": images }), 1, Some(2)),
            (json!({ "job_id": "a", "task": "tryon", "person": "s3://b/p", "garments": ["s3://b/g"] }), 1, None),
        ];
        for (body, place, seed) in cases {
            let job = read(&body);
            assert_eq!(both().place(&job).ok(), Some(place), "{body}");
            let own = match &job.task {
                crate::job::task::Task::Generate(generate) => Some(generate.seed.get()),
                crate::job::task::Task::Edit(edit) => Some(edit.seed.get()),
                crate::job::task::Task::TryOn(_) => None,
            };
            assert_eq!(own, seed, "{body}: the defaults are that model's");
        }
    }

    #[test]
    fn what_nobody_serves_is_refused_with_what_is_served() {
        let images = json!(["s3://b/i"]);
        let cases = [
            (
                json!({ "job_id": "a", "prompt": "x", "model": "sdxl" }),
                "model: must be one that does generate: small (generate), big",
            ),
            (json!({ "job_id": "a", "prompt": "x", "model": "edit" }), "model: must be one that does generate"),
            (
                json!({ "job_id": "a", "prompt": "x", "task": "edit", "images": images, "model": "big" }),
                "does edit: edit (tryon, edit)",
            ),
        ];
        for (body, says) in cases {
            let error = both().place(&read(&body)).expect_err("nobody serves it").to_string();
            assert!(error.contains(says), "{error} does not say {says:?}");
        }
        let text = Catalogue::new(served("small", &["generate"], 1), vec![served("big", &["generate"], 3)]);
        let body = json!({ "job_id": "a", "prompt": "x", "task": "edit", "images": images });
        let error = text.place(&read(&body)).expect_err("nobody edits").to_string();
        assert!(error.contains("task: this host serves small (generate), big (generate), none of which does edit"), "{error}");
    }

    #[test]
    fn a_body_that_is_no_job_is_for_the_model_whose_defaults_it_was_read_with() {
        for (body, place) in [("{}", 0), (r#"{"model": "big", "steps": 0}"#, 2), (r#"{"task": "edit"}"#, 1), ("[]", 0)] {
            let refusal = Job::from_json(body.as_bytes(), &both()).expect_err(body);
            assert_eq!(both().place_of_refused(&refusal), place, "{body}");
        }
    }

    #[test]
    fn the_only_model_gets_every_job_and_refuses_itself() {
        let alone = Catalogue::new(served("small", &["generate"], 1), Vec::new());
        let job = read(&json!({ "job_id": "a", "prompt": "x", "model": "sdxl" }));
        assert_eq!(alone.place(&job).ok(), Some(0));
    }
}
