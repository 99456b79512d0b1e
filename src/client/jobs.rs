//! `atelier jobs`: what a host knows of its jobs.

use std::path::{Path, PathBuf};

use reqwest::Method;

use super::follow::follow;
use super::{Api, job_id};
use crate::config::Environment;
use crate::start::command::line;

#[derive(clap::Args)]
pub struct Options {
    /// A host's address [default: the host at `server.port` of this machine]
    #[arg(long, value_name = "URL", global = true)]
    at: Option<String>,
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// The jobs that the host has seen last, the newest first.
    List,
    /// All that is known of a job, as JSON.
    Show { job_id: String },
    /// Print what happens to a job, until it has ended.
    Follow {
        job_id: String,
        /// Put its previews while it runs, and its images, into this directory
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Cancel a job that has not ended.
    Cancel { job_id: String },
}

/// Asks the host, and prints what it says.
///
/// # Errors
/// When the host cannot be asked, or refuses.
pub async fn run(options: &Options, config: Option<&Path>, environment: &Environment) -> anyhow::Result<()> {
    let api = Api::new(options.at.as_deref(), config, environment)?;
    match &options.what {
        What::List => {
            let jobs = api.answer(api.request(Method::GET, &["jobs"])?).await?;
            for job in jobs["jobs"].as_array().into_iter().flatten() {
                let text = |name: &str| job[name].as_str().unwrap_or_default();
                line(&format!("{} {} attempt {} {}%", text("job_id"), text("state"), job["attempt"], job["progress"]))?;
            }
            Ok(())
        }
        What::Show { job_id: id } => Ok(line(&serde_json::to_string_pretty(&api.job(&job_id(id)?).await?)?)?),
        What::Follow { job_id: id, out } => follow(&api, &job_id(id)?, out.as_deref()).await,
        What::Cancel { job_id: id } => {
            let id = job_id(id)?;
            let answer = api.answer(api.request(Method::DELETE, &["jobs", id.as_str()])?).await?;
            Ok(line(&format!("{id} {}", answer["message"].as_str().unwrap_or("is cancelled")))?)
        }
    }
}
