//! What may be generated: prompt lists, an image classifier and a moderator outside, and what each of them says of a job.
//!
//! - [`settings`] is section `safety` of config.yaml; [`gate::Gate`] is what is made of it once at start.
//! - The classifier itself runs on the engine's thread: the workflow asks it, and the gate says what its scores mean.
//! - Whatever cannot be asked lets nothing through: an error is never a yes.

pub mod checker;
pub mod gate;
pub mod moderator;
pub mod prompt_list;
pub mod settings;
