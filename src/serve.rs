//! The handler role: serves the Runtime API with the configured function until it is to end.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::config::{self, Config, Environment};
use crate::handler::lambda::{self, End, Host, Limits};
use crate::handler::line;
use crate::job::JobId;
use crate::protocol::report::{Preview, Report};
use crate::protocol::{ENGINE_LOST_EXIT_CODE, control};
use crate::start;
use crate::telemetry::Telemetry;
use crate::workflow::infer::Observer;
use crate::workflow::previews::{PreviewFile, Previews};
use atelier_engine::Progress;

/// Serves invocations; returns the exit code of the process.
///
/// # Errors
/// When there is no Runtime API here, the function cannot be set up, or the Runtime API goes away.
pub async fn run(path: Option<&Path>, environment: &Environment, telemetry: Option<Telemetry>) -> anyhow::Result<ExitCode> {
    let runtime_api = config::runtime_api(environment)?
        .context("there is no Runtime API here (AWS_LAMBDA_RUNTIME_API is not set); try `atelier demo` or `atelier --help`")?;
    let has_host = match control::decode_environment(environment) {
        Ok(has_host) => has_host,
        Err(error) => {
            report_failed_start(&runtime_api, "Atelier.Protocol", &error.to_string()).await;
            return Err(error.into());
        }
    };
    let host = if has_host {
        Some(line::listen(std::io::BufReader::new(std::io::stdin())).context("the host cannot be listened to")?)
    } else {
        None
    };
    let before = Instant::now();
    let observer = observer(host.is_some()).context("previews cannot be made")?;
    let previews = observer.previews.clone();
    let started = async {
        let config = Config::load(path, environment)?;
        let handler = start::handler(&config, environment, observer).await?;
        Ok::<_, start::StartError>((config, handler))
    };
    let (config, handler) = match started.await {
        Ok(started) => started,
        Err(error) => {
            report_failed_start(&runtime_api, error.error_type(), &error.to_string()).await;
            return Err(error.into());
        }
    };
    if host.is_some() {
        Report::Ready {
            model: config.model.name.clone(),
            load_seconds: before.elapsed().as_secs_f64(),
            capabilities: Some(handler.capabilities.clone()),
            upscalers: handler.upscalers.clone(),
            segmenter: handler.segmenter.clone(),
        }
        .send();
    }
    let limits = Limits {
        deadline_margin: Duration::from_millis(config.runtime.deadline_margin_ms),
        shutdown_grace: Duration::from_millis(config.runtime.shutdown_grace_ms),
    };
    match lambda::serve(handler, limits, host.map(|commands| Host { commands, previews }), telemetry)
        .await
        .map_err(anyhow::Error::from_boxed)?
    {
        End::Asked => Ok(ExitCode::SUCCESS),
        End::CannotSign => {
            tracing::error!("images can be signed no more; this process ends, and the next one says at start what is wrong");
            Ok(ExitCode::FAILURE)
        }
        End::FatalDeviceError => {
            tracing::error!("the GPU failed; this process ends, so that another one is started");
            Ok(ExitCode::from(ENGINE_LOST_EXIT_CODE))
        }
    }
}

/// What the host wants to see of a running job.
fn observer(has_host: bool) -> std::io::Result<Observer> {
    if !has_host {
        return Ok(Observer { step: Arc::new(|_, _| ()), previews: None });
    }
    let previews = Previews::start(|PreviewFile { job_id, preview: shown }| {
        let image = STANDARD.encode(shown.image);
        let preview =
            Preview { step: shown.step, steps: shown.steps, width_px: shown.width_px, height_px: shown.height_px, image };
        Report::Preview { job_id: job_id.to_string(), preview }.send();
    })?;
    let step = Arc::new(|job_id: &JobId, Progress { step, steps }: Progress| {
        Report::Progress { job_id: job_id.as_str().to_owned(), step, steps }.send();
    });
    Ok(Observer { step, previews: Some(Arc::new(previews)) })
}

/// The host reads the reason there; the log has it all the same.
async fn report_failed_start(runtime_api: &str, error_type: &str, message: &str) {
    if let Err(unreported) = lambda::report_init_error(runtime_api, error_type, message).await {
        tracing::warn!(error = %unreported, "the Runtime API could not be notified why the start failed");
    }
}
