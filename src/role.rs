//! What the binary can be asked to be on its command line.

use clap::Subcommand;

use crate::{client, demo, doctor, inspect, invoke, log, start};

#[derive(Subcommand)]
pub enum Role {
    /// Generate sample jobs with everything embedded: S3, webhook receiver, the real handler.
    Demo(demo::Options),
    /// Take jobs from queues and HTTP, and keep handlers alive that generate them.
    Host(start::host::Options),
    /// Take one event through the handler in this process and print the reply.
    Invoke(invoke::Options),
    /// Hand a job to a host or a queue, follow it, bring its images.
    Submit(client::submit::Options),
    /// What a host knows of its jobs: list, show, follow, cancel.
    Jobs(client::jobs::Options),
    /// What failed for good in the queues: list, show, send again, remove.
    Dead(client::dead::Options),
    /// Download models and verify checksums.
    Models(start::models::Options),
    /// Check what the function and the host need, one line each, and say how to repair it.
    Doctor(doctor::Options),
    /// Show what an image says of itself, and verify its content credentials.
    Inspect(inspect::Options),
    /// Show how the images of a job came about, and whether they are those of its record.
    Audit(inspect::audit::Options),
    /// Print the completion script of a shell; docs/completions/ has them.
    #[command(hide = true)]
    Completions { shell: clap_complete::Shell },
    /// Print the manual page; docs/atelier.1 has it.
    #[command(hide = true)]
    Manual,
}

impl Role {
    /// What is logged where the environment says nothing: a role that prints for a person needs less.
    #[must_use]
    pub fn default_level(&self) -> log::DefaultLevel {
        match self {
            Self::Doctor(_) | Self::Inspect(_) | Self::Audit(_) => log::DefaultLevel::Nothing,
            Self::Demo(_) | Self::Submit(_) | Self::Jobs(_) | Self::Dead(_) => log::DefaultLevel::Warnings,
            _ => log::DefaultLevel::Outcomes,
        }
    }
}
