//! Steps of the user's own: a program or a service that looks at the images of a job, changes them or refuses them.
//!
//! - They run behind what is generated and before anyone checks, marks or signs it; never for a job that is done.
//! - No image leaves without their answer. A service that is away lets the job wait, which is no attempt; anything else that is no
//!   answer is a failed attempt. A refusal ends the job, and its caller hears the reason.

mod command;
pub mod exchange;
pub mod settings;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use self::command::Command;
use self::exchange::Decision;
use self::settings::{HttpSettings, Settings};
use super::Step;
use super::context::JobContext;
use super::step_name::{StepName, UserStepKind, UserStepName};
use crate::job::outcome::JobError;
use crate::job::user_step::{UserStepDone, UserStepResult, UserStepRun};
use crate::service::{Address, NoAnswer, Service};
use crate::setting::SettingError;
use crate::subprocess::Spawner;
use atelier_engine::Image;

/// Those that `workflow.steps` lists, ready to be asked.
#[derive(Debug, Clone, Default)]
pub struct UserSteps(BTreeMap<UserStepName, UserStep>);

/// One of them.
#[derive(Debug, Clone)]
pub struct UserStep {
    name: UserStepName,
    asked: Arc<Asked>,
}

/// Who answers.
#[derive(Debug)]
enum Asked {
    Command(Command),
    Http(Service),
}

/// Why there is no decision.
enum Failure {
    /// It may give one later, and no job is at fault.
    Away(String),
    Wrong(String),
}

impl UserSteps {
    /// `steps`: a list that [`Settings::check`] has passed. `path`: the `PATH` of this process.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn new(settings: &Settings, steps: &[StepName], path: Option<&str>) -> Result<Self, SettingError> {
        let mut ready = BTreeMap::new();
        let mut spawner = None;
        for name in steps.iter().filter_map(StepName::as_user_step) {
            let section = format!("workflow.user_steps.{}.{}", name.kind().as_str(), name.name());
            let lacking = || SettingError::new(&section, "is missing");
            let asked = match name.kind() {
                UserStepKind::Command => {
                    let settings = settings.command.get(name.name()).ok_or_else(lacking)?;
                    let spawner = match &mut spawner {
                        Some(spawner) => spawner,
                        none => none.insert(started(&section)?),
                    };
                    let command = Command::new(settings, path, spawner.clone());
                    Asked::Command(command.map_err(|(key, problem)| SettingError::new(&format!("{section}.{key}"), problem))?)
                }
                UserStepKind::Http => {
                    let settings = settings.http.get(name.name()).ok_or_else(lacking)?;
                    Asked::Http(service(&section, name, settings)?)
                }
            };
            ready.insert(name.clone(), UserStep { name: name.clone(), asked: Arc::new(asked) });
        }
        Ok(Self(ready))
    }

    /// A step of the list that these were made for.
    #[must_use]
    pub fn get(&self, name: &UserStepName) -> UserStep {
        self.0[name].clone()
    }
}

fn started(section: &str) -> Result<Spawner, SettingError> {
    Spawner::start("user steps").map_err(|error| SettingError::new(section, format!("no process can be started ({error})")))
}

fn service(section: &str, name: &UserStepName, settings: &HttpSettings) -> Result<Service, SettingError> {
    let HttpSettings { url, token, timeout_ms, max_wait_ms, max_bytes } = settings;
    let Some(url) = url else { return Err(SettingError::new(&format!("{section}.url"), "must be the address of the service")) };
    let address = Address {
        url,
        token: token.as_ref(),
        timeout_ms: *timeout_ms,
        max_wait_ms: *max_wait_ms,
        max_answer_bytes: *max_bytes,
    };
    Service::new(section, name.as_str(), address)
}

#[async_trait]
impl Step for UserStep {
    fn name(&self) -> StepName {
        StepName::User(self.name.clone())
    }

    async fn run(&self, context: &mut JobContext<'_>) -> Result<(), JobError> {
        let result = self.judged(context).await;
        let word = match &result {
            Ok(()) => UserStepResult::Ok,
            Err(JobError::StepRefused { .. }) => UserStepResult::Refused,
            Err(JobError::StepUnavailable { .. }) => UserStepResult::Unavailable,
            Err(_) => UserStepResult::Failed,
        };
        context.user_step_runs.push(UserStepRun { step: self.name.to_string(), result: word });
        result
    }
}

impl UserStep {
    async fn judged(&self, context: &mut JobContext<'_>) -> Result<(), JobError> {
        let step = self.name.to_string();
        let images = std::mem::take(&mut context.images);
        let name = self.name.clone();
        let job = context.job.clone();
        let asked = tokio::task::spawn_blocking(move || exchange::question(&name, &job, &images).map(|asked| (asked, images)));
        let asked = asked.await.unwrap_or_else(|panic| Err(panic.to_string()));
        let (question, images) = asked.map_err(|problem| JobError::Internal { problem: format!("{step}: {problem}") })?;
        let decision = match self.decision(question, &images).await {
            Ok(decision) => decision,
            Err(Failure::Away(problem)) => return Err(JobError::StepUnavailable { step, problem }),
            Err(Failure::Wrong(problem)) => return Err(JobError::StepFailed { step, problem }),
        };
        let changed = match decision {
            Decision::Refused(reason) => return Err(JobError::StepRefused { step, reason }),
            Decision::Unchanged => {
                context.images = images;
                false
            }
            Decision::Images(images) => {
                context.images = images;
                true
            }
        };
        context.user_steps.push(UserStepDone { step, changed });
        Ok(())
    }

    async fn decision(&self, question: Vec<u8>, images: &[Image]) -> Result<Decision, Failure> {
        let answer = match &*self.asked {
            Asked::Command(command) => command.answer(question).await.map_err(Failure::Wrong)?,
            Asked::Http(service) => {
                let answer = service.ask(question, Ok, |no_answer| matches!(no_answer, NoAnswer::Away(_))).await;
                answer.map_err(|no_answer| match no_answer {
                    NoAnswer::Away(problem) => Failure::Away(problem),
                    NoAnswer::Wrong(problem) => Failure::Wrong(problem),
                })?
            }
        };
        let seeds: Vec<u64> = images.iter().map(|image| image.seed).collect();
        let decision = tokio::task::spawn_blocking(move || exchange::read(&answer, &seeds)).await;
        decision.unwrap_or_else(|panic| Err(panic.to_string())).map_err(Failure::Wrong)
    }
}
