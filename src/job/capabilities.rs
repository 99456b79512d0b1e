//! What a function can be asked for, whatever the job: its host learns it from the handler and refuses the rest at the door.

use serde::{Deserialize, Serialize};

use super::Job;
use super::outcome::JobError;
use super::task::control::{Control, NetName};
use super::task::edit::Edit;
use super::task::sampling::StepCache;
use super::task::scheduler::{Sampler, Scheduler};
use super::task::tryon::Mode;
use super::task::{Generate, GuidanceScale, ModelName, SidePx, Task};

/// Pixels of a side that one token of a flow stands for.
const TOKEN_PX: u32 = 16;

/// What the function's model can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capabilities {
    /// Images from text, by a UNet.
    Generate,
    /// The same with these ControlNets and IP-Adapters.
    Steered(Steering),
    /// Images from text, by a flow in these modes, whose weights are loaded.
    Text(Vec<Mode>),
    /// Images from text, or from an image and a text, by a flow without modes that was distilled over guidance and takes LoRAs.
    Flow,
    /// The same from text alone, and edits.
    EditFlow,
    /// Try-ons and edits in these modes, whose weights are loaded.
    Edit(Vec<Mode>),
}

/// What steers generations besides their text, as far as it is loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steering {
    pub controlnets: Vec<ControlNet>,
    /// By their names.
    pub ip_adapters: Vec<NetName>,
}

/// A ControlNet that is loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlNet {
    pub name: NetName,
    /// What kind of image it looks at, such as `canny` or `depth`.
    pub image: NetName,
}

impl Capabilities {
    /// The tasks that such a function does, as the field `task` has them.
    #[must_use]
    pub fn tasks(&self) -> &'static [&'static str] {
        match self {
            Self::Generate | Self::Steered(_) | Self::Text(_) | Self::Flow => &["generate"],
            Self::EditFlow => &["generate", "edit"],
            Self::Edit(_) => &["tryon", "edit"],
        }
    }

    /// The modes whose weights are loaded; none: the model has no modes.
    #[must_use]
    pub fn modes(&self) -> &[Mode] {
        match self {
            Self::Generate | Self::Steered(_) | Self::Flow | Self::EditFlow => &[],
            Self::Text(modes) | Self::Edit(modes) => modes,
        }
    }

    /// Whether generations from text, and edits of the models that do both, may bring adapters of their own.
    #[must_use]
    pub fn takes_loras(&self) -> bool {
        matches!(self, Self::Generate | Self::Steered(_) | Self::Flow | Self::EditFlow)
    }

    /// The ControlNets that jobs may ask for.
    #[must_use]
    pub fn controlnets(&self) -> &[ControlNet] {
        match self {
            Self::Steered(steering) => &steering.controlnets,
            Self::Generate | Self::Text(_) | Self::Flow | Self::EditFlow | Self::Edit(_) => &[],
        }
    }

    /// The IP-Adapters that jobs may ask for, by their names.
    #[must_use]
    pub fn ip_adapters(&self) -> &[NetName] {
        match self {
            Self::Steered(steering) => &steering.ip_adapters,
            Self::Generate | Self::Text(_) | Self::Flow | Self::EditFlow | Self::Edit(_) => &[],
        }
    }

    /// Whether it generates from text and edits what it is shown, but starts from no image.
    #[must_use]
    pub fn is_shown_images(&self) -> bool {
        matches!(self, Self::EditFlow)
    }

    /// Whether a guidance scale above 1 and a negative prompt mean something.
    #[must_use]
    pub fn has_guidance(&self) -> bool {
        !matches!(self, Self::Flow | Self::EditFlow)
    }

    /// Pixels of which both sides of an image are multiples.
    #[must_use]
    pub fn side_multiple_px(&self) -> u32 {
        match self {
            Self::Generate | Self::Steered(_) => SidePx::MULTIPLE_OF as u32,
            Self::Text(_) | Self::Flow | Self::EditFlow | Self::Edit(_) => TOKEN_PX,
        }
    }

    /// Refuses a job that a function with this one model can never do.
    ///
    /// # Errors
    /// [`JobError::Invalid`] of the field `task`, `model` or `mode`, or one that the model does not read.
    pub fn check(&self, model: &ModelName, job: &Job) -> Result<(), JobError> {
        self.check_task(model, &job.task)?;
        if let Some(asked) = job.task.model().filter(|asked| *asked != model) {
            let served = model.as_str();
            let asked = asked.as_str();
            return invalid("model", format!("must be {served:?}, the model this function serves, got {asked:?}"));
        }
        self.check_step_cache(job.task.step_cache())?;
        match (self, &job.task) {
            (Self::Edit(modes), Task::TryOn(tryon)) => check_mode(modes, tryon.mode),
            (Self::Edit(_), Task::Edit(Edit { loras, .. })) if !loras.is_empty() => unread("lora"),
            (Self::Edit(modes), Task::Edit(edit)) => edit.mode.map_or(Ok(()), |mode| check_mode(modes, mode)),
            (Self::Text(modes), Task::Generate(generate)) => check_text(modes, generate),
            (
                Self::Generate | Self::Steered(_) | Self::Flow | Self::EditFlow,
                Task::Generate(Generate { mode: Some(_), .. }) | Task::Edit(Edit { mode: Some(_), .. }),
            ) => {
                let served = model.as_str();
                invalid("mode", format!("means something only with a model that has modes, which {served} has not"))
            }
            (Self::Flow | Self::EditFlow, Task::Generate(generate)) => check_flow(generate, *self == Self::Flow),
            (Self::EditFlow, Task::Edit(edit)) => check_unguided(edit.guidance_scale),
            (Self::Generate | Self::Steered(_), Task::Generate(generate)) => {
                check_controls(self.controlnets(), generate)?;
                check_prompts(self.ip_adapters(), generate)
            }
            _ => Ok(()),
        }
    }

    /// A UNet and a transformer take over other things.
    fn check_step_cache(&self, asked: Option<StepCache>) -> Result<(), JobError> {
        let has_unet = match self {
            Self::Generate | Self::Steered(_) => true,
            Self::Text(_) | Self::Flow | Self::EditFlow | Self::Edit(_) => false,
        };
        let (has, takes) = match asked {
            Some(StepCache::Threshold(_)) if has_unet => ("a UNet", "interval"),
            Some(StepCache::Interval(_)) if !has_unet => ("a transformer", "threshold"),
            _ => return Ok(()),
        };
        invalid("step_cache", format!("must have {takes}, for this function's model has {has}"))
    }

    fn check_task(&self, model: &ModelName, task: &Task) -> Result<(), JobError> {
        let tasks = self.tasks();
        let asked = task.name();
        if tasks.contains(&asked) {
            return Ok(());
        }
        let served = model.as_str();
        let does = tasks.join(" and ");
        let problem = format!(
            "this function serves {served}, which does {does} and not {asked}; send the job to a function whose model does"
        );
        invalid("task", problem)
    }
}

/// Each must be one that is loaded; one that looks at depth cannot use edges.
fn check_controls(loaded: &[ControlNet], generate: &Generate) -> Result<(), JobError> {
    if loaded.is_empty() && !generate.controls.is_empty() {
        return invalid("controlnets", "this function's model has no ControlNets: leave it out".into());
    }
    for (index, Control { name, detect, .. }) in generate.controls.iter().enumerate() {
        let Some(net) = loaded.iter().find(|net| net.name == *name) else {
            let names: Vec<&str> = loaded.iter().map(|net| net.name.as_str()).collect();
            let problem =
                format!("must be one of {}, the ControlNets of this function, got {}", names.join(", "), name.as_str());
            return invalid(&format!("controlnets[{index}].name"), problem);
        };
        let image = net.image.as_str();
        if let Some(detector) = detect.filter(|detector| detector.name() != image) {
            let problem =
                format!("is {}, but {} looks at images of the kind {image}: leave it out", detector.name(), name.as_str());
            return invalid(&format!("controlnets[{index}].detect"), problem);
        }
    }
    Ok(())
}

/// Each must be one that is loaded.
fn check_prompts(loaded: &[NetName], generate: &Generate) -> Result<(), JobError> {
    if loaded.is_empty() && !generate.image_prompts.is_empty() {
        return invalid("ip_adapters", "this function's model has no IP-Adapters: leave it out".into());
    }
    let unknown = generate.image_prompts.iter().enumerate().find(|(_, prompt)| !loaded.contains(&prompt.name));
    let Some((index, prompt)) = unknown else { return Ok(()) };
    let names: Vec<&str> = loaded.iter().map(NetName::as_str).collect();
    let asked = prompt.name.as_str();
    let problem = format!("must be one of {}, the IP-Adapters of this function, got {asked}", names.join(", "));
    invalid(&format!("ip_adapters[{index}].name"), problem)
}

fn check_mode(loaded: &[Mode], asked: Mode) -> Result<(), JobError> {
    if loaded.contains(&asked) {
        return Ok(());
    }
    let loaded: Vec<&str> = loaded.iter().map(|mode| mode.as_str()).collect();
    let loaded = loaded.join(", ");
    let asked = asked.as_str();
    invalid("mode", format!("must be {loaded}, what this function has the weights of, got {asked}"))
}

/// Of a flow in modes, which takes no adapters but those of its modes.
fn check_text(loaded: &[Mode], generate: &Generate) -> Result<(), JobError> {
    check_sampling(generate, Reads { loras: false, start: false })?;
    generate.mode.map_or(Ok(()), |mode| check_mode(loaded, mode))
}

/// Of a flow that was distilled over guidance. `starts`: whether from images too.
fn check_flow(generate: &Generate, starts: bool) -> Result<(), JobError> {
    check_sampling(generate, Reads { loras: true, start: starts })?;
    check_unguided(generate.guidance_scale)
}

fn check_unguided(guidance_scale: GuidanceScale) -> Result<(), JobError> {
    let scale = guidance_scale.get();
    if scale > 1.0 {
        let problem = format!("must be at most 1 with this function's model, which generates without guidance, got {scale}");
        return invalid("guidance_scale", problem);
    }
    Ok(())
}

/// What some flows read of a generation.
#[derive(Clone, Copy)]
struct Reads {
    loras: bool,
    /// What it starts from, and a mask over that.
    start: bool,
}

/// What a flow does not read: it has one sampler, and tokens of 16 pixels.
fn check_sampling(generate: &Generate, reads: Reads) -> Result<(), JobError> {
    if generate.scheduler != Scheduler::plain(Sampler::Euler) {
        let problem = format!("must be euler, the one that this function's model has, got {}", generate.scheduler);
        return invalid("scheduler", problem);
    }
    let set = [
        ("lora", !reads.loras && !generate.loras.is_empty()),
        ("embeddings", !generate.embeddings.is_empty()),
        ("init_image", !reads.start && generate.start.is_some()),
        ("controlnets", !generate.controls.is_empty()),
        ("ip_adapters", !generate.image_prompts.is_empty()),
    ];
    let set = set.into_iter().filter(|(_, given)| *given).map(|(field, _)| field);
    let sampling = generate.sampling.fields().into_iter().map(|(field, _)| field).filter(|field| *field != "step_cache");
    if let Some(field) = set.chain(sampling).next() {
        return unread(field);
    }
    let sides = [("width", generate.size.width_px()), ("height", generate.size.height_px())];
    if let Some((field, px)) = sides.into_iter().find(|(_, px)| !px.is_multiple_of(TOKEN_PX)) {
        return invalid(field, format!("must be a multiple of {TOKEN_PX} with this function's model, got {px}"));
    }
    Ok(())
}

fn unread(field: &str) -> Result<(), JobError> {
    invalid(field, "is not read by this function's model: leave it out".into())
}

fn invalid(field: &str, problem: String) -> Result<(), JobError> {
    Err(JobError::Invalid { field: field.into(), problem })
}
