//! The host: takes messages from queues and HTTP, speaks the Runtime API to handlers, and survives them.

pub mod desk;
pub mod jobs;
pub mod source;
