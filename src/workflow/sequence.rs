//! Which lists of steps a function can have: derived from what each step takes and gives.

use super::StepName;

/// What there is of a job on its way from request to record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Job,
    Fetched,
    Decoded,
    Images,
    Encoded,
    Recorded,
}

/// A step with the stage that it needs, and the stage that it leaves: the same one where it only works on what there is.
struct Declared {
    /// None: any number of the user's own, in their order.
    name: Option<StepName>,
    takes: Stage,
    gives: Stage,
}

/// All steps, in the one order that is right.
static STEPS: [Declared; 14] = [
    Declared { name: Some(StepName::Fetch), takes: Stage::Job, gives: Stage::Fetched },
    Declared { name: Some(StepName::Preprocess), takes: Stage::Fetched, gives: Stage::Decoded },
    Declared { name: Some(StepName::Screen), takes: Stage::Decoded, gives: Stage::Decoded },
    Declared { name: Some(StepName::Mask), takes: Stage::Decoded, gives: Stage::Decoded },
    Declared { name: Some(StepName::Infer), takes: Stage::Decoded, gives: Stage::Images },
    Declared { name: Some(StepName::Postprocess), takes: Stage::Images, gives: Stage::Images },
    Declared { name: Some(StepName::Upscale), takes: Stage::Images, gives: Stage::Images },
    Declared { name: None, takes: Stage::Images, gives: Stage::Images },
    Declared { name: Some(StepName::Check), takes: Stage::Images, gives: Stage::Images },
    Declared { name: Some(StepName::Watermark), takes: Stage::Images, gives: Stage::Images },
    Declared { name: Some(StepName::Encode), takes: Stage::Images, gives: Stage::Encoded },
    Declared { name: Some(StepName::Credentials), takes: Stage::Encoded, gives: Stage::Encoded },
    Declared { name: Some(StepName::Store), takes: Stage::Encoded, gives: Stage::Recorded },
    Declared { name: Some(StepName::Notify), takes: Stage::Recorded, gives: Stage::Recorded },
];

impl Declared {
    /// Without it no job gets from its stage to the next.
    fn is_required(&self) -> bool {
        self.takes != self.gives
    }

    fn is(&self, step: &StepName) -> bool {
        match &self.name {
            Some(name) => name == step,
            None => step.as_user_step().is_some(),
        }
    }

    /// Its name, or those of the user's own that are listed.
    fn names<'a>(&'a self, listed: &'a [StepName]) -> Vec<&'a str> {
        match &self.name {
            Some(name) if self.is_required() || listed.contains(name) => vec![name.as_str()],
            Some(_) => Vec::new(),
            None => {
                let own = listed.iter().enumerate().filter(|(index, step)| self.is(step) && !listed[..*index].contains(step));
                own.map(|(_, step)| step.as_str()).collect()
            }
        }
    }
}

/// Checks a list of steps: what passes runs every job to its record.
///
/// # Errors
/// Says which step is missing, doubled or misplaced, next to which, and what the right order is.
pub fn check(steps: &[StepName]) -> Result<(), String> {
    let Some(problem) = doubled(steps).or_else(|| problem(steps)) else { return Ok(()) };
    let right: Vec<&str> = STEPS.iter().flat_map(|step| step.names(steps)).collect();
    Err(format!("{problem}; the right order is [{}]", right.join(", ")))
}

fn doubled(steps: &[StepName]) -> Option<String> {
    let again = (1..steps.len()).find(|index| steps[..*index].contains(&steps[*index]))?;
    Some(format!("`{}` is listed twice", steps[again].as_str()))
}

fn problem(steps: &[StepName]) -> Option<String> {
    let mut stage = Stage::Job;
    // Those that went before, each with its place in STEPS.
    let mut before: Vec<(usize, &StepName)> = Vec::new();
    for name in steps {
        let place = STEPS.iter().position(|step| step.is(name))?;
        let step = &STEPS[place];
        if step.takes > stage {
            return Some(too_early(name, step, steps));
        }
        // What took away the stage that this step needs, or works on what this one should have worked on.
        let later = before.iter().find(|(other, _)| *other > place);
        if let Some((_, later)) = later {
            return Some(format!("`{}` must come before `{}`", name.as_str(), later.as_str()));
        }
        stage = step.gives;
        before.push((place, name));
    }
    // Nothing is in the wrong place: what would come next may be missing.
    let missing = STEPS.iter().find(|step| step.is_required() && step.takes == stage)?.name.as_ref()?;
    let last = steps.last().map(|last| format!(" after `{}`", last.as_str())).unwrap_or_default();
    Some(format!("`{}` is missing{last}", missing.as_str()))
}

/// `step` stands where nothing has yet given what it takes.
fn too_early(name: &StepName, step: &Declared, steps: &[StepName]) -> String {
    let name = name.as_str();
    let giver = STEPS.iter().find(|giver| giver.is_required() && giver.gives == step.takes);
    match giver.and_then(|giver| giver.name.as_ref()) {
        Some(giver) if steps.contains(giver) => format!("`{}` must come before `{name}`", giver.as_str()),
        giver => format!("`{}` is missing before `{name}`", giver.map_or("", StepName::as_str)),
    }
}
