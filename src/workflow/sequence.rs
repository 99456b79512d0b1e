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
    name: StepName,
    takes: Stage,
    gives: Stage,
}

/// All steps, in the one order that is right.
const STEPS: [Declared; 11] = [
    Declared { name: StepName::Fetch, takes: Stage::Job, gives: Stage::Fetched },
    Declared { name: StepName::Preprocess, takes: Stage::Fetched, gives: Stage::Decoded },
    Declared { name: StepName::Screen, takes: Stage::Decoded, gives: Stage::Decoded },
    Declared { name: StepName::Infer, takes: Stage::Decoded, gives: Stage::Images },
    Declared { name: StepName::Postprocess, takes: Stage::Images, gives: Stage::Images },
    Declared { name: StepName::Check, takes: Stage::Images, gives: Stage::Images },
    Declared { name: StepName::Watermark, takes: Stage::Images, gives: Stage::Images },
    Declared { name: StepName::Encode, takes: Stage::Images, gives: Stage::Encoded },
    Declared { name: StepName::Credentials, takes: Stage::Encoded, gives: Stage::Encoded },
    Declared { name: StepName::Store, takes: Stage::Encoded, gives: Stage::Recorded },
    Declared { name: StepName::Notify, takes: Stage::Recorded, gives: Stage::Recorded },
];

impl Declared {
    /// Without it no job gets from its stage to the next.
    fn is_required(&self) -> bool {
        self.takes != self.gives
    }
}

/// Checks a list of steps: what passes runs every job to its record.
///
/// # Errors
/// Says which step is missing, doubled or misplaced, next to which, and what the right order is.
pub fn check(steps: &[StepName]) -> Result<(), String> {
    let Some(problem) = doubled(steps).or_else(|| problem(steps)) else { return Ok(()) };
    let right = STEPS.iter().filter(|step| step.is_required() || steps.contains(&step.name));
    let right: Vec<&str> = right.map(|step| step.name.as_str()).collect();
    Err(format!("{problem}; the right order is [{}]", right.join(", ")))
}

fn doubled(steps: &[StepName]) -> Option<String> {
    let again = (1..steps.len()).find(|index| steps[..*index].contains(&steps[*index]))?;
    Some(format!("`{}` is listed twice", steps[again].as_str()))
}

fn problem(steps: &[StepName]) -> Option<String> {
    let mut stage = Stage::Job;
    // Places in STEPS of those that went before.
    let mut before: Vec<usize> = Vec::new();
    for name in steps {
        let place = STEPS.iter().position(|step| step.name == *name)?;
        let step = &STEPS[place];
        if step.takes > stage {
            return Some(too_early(step, steps));
        }
        // What took away the stage that this step needs, or works on what this one should have worked on.
        let later = before.iter().find(|other| **other > place);
        if let Some(later) = later {
            return Some(format!("`{}` must come before `{}`", name.as_str(), STEPS[*later].name.as_str()));
        }
        stage = step.gives;
        before.push(place);
    }
    // Nothing is in the wrong place: what would come next may be missing.
    let missing = STEPS.iter().find(|step| step.is_required() && step.takes == stage)?;
    let last = steps.last().map(|last| format!(" after `{}`", last.as_str())).unwrap_or_default();
    Some(format!("`{}` is missing{last}", missing.name.as_str()))
}

/// `step` stands where nothing has yet given what it takes.
fn too_early(step: &Declared, steps: &[StepName]) -> String {
    let name = step.name.as_str();
    let giver = STEPS.iter().find(|giver| giver.is_required() && giver.gives == step.takes);
    match giver.map(|giver| giver.name) {
        Some(giver) if steps.contains(&giver) => format!("`{}` must come before `{name}`", giver.as_str()),
        giver => format!("`{}` is missing before `{name}`", giver.map_or("", StepName::as_str)),
    }
}
