//! `atelier host`: puts the host together from its configuration and runs it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::manifest::Family;
use crate::config::{Config, Environment};
use crate::events::auth::Auth;
use crate::host::cloud::interruption::Interruption;
use crate::host::cloud::protection::Protection;
use crate::host::http::uploads::Uploads;
use crate::host::http::{self, Http, ModelInfo};
use crate::host::notification_sender::NotificationSender;
use crate::host::process::Program;
use crate::host::source::Source;
use crate::host::source::rabbitmq::{self, RabbitMq};
use crate::host::source::spool::Spool;
use crate::host::source::sqs::Sqs;
use crate::host::{Function, Host, Parts, descriptors, drain};
use crate::job::Job;
use crate::job::outcome::JobError;
use crate::job::request::Defaults;
use crate::job::url::AssetUrl;
use crate::metrics::Metrics;
use crate::metrics::gpu::{self, Gpus};
use crate::notify::Notifier;
use crate::outbound::Outbound;
use crate::store::Store;
use crate::workflow::{StepName, watermark};

/// How long answers that are under way may take after the last job.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub struct Options {
    /// Handler processes [default: one per visible GPU]
    #[arg(long)]
    handlers: Option<u32>,
    /// Seconds that running jobs may go on after SIGTERM before they are handed back [default: `host.drain_seconds`]
    #[arg(long)]
    drain_seconds: Option<u64>,
    /// TCP port of the HTTP server, 0 for a free one [default: `server.port`]
    #[arg(long)]
    port: Option<u16>,
    /// Another Lambda function than this binary's own, with its arguments
    #[arg(last = true)]
    function: Vec<OsString>,
}

/// Runs the host until it is asked to end.
///
/// # Errors
/// When the configuration is wrong, or a queue, the bucket or the port cannot be used.
pub async fn run(options: Options, path: Option<&Path>, environment: &Environment) -> anyhow::Result<()> {
    super::arm_fault_point(environment);
    let mut config = Config::load(path, environment)?;
    config.host.handlers = options.handlers.unwrap_or(config.host.handlers);
    config.host.drain_seconds = options.drain_seconds.unwrap_or(config.host.drain_seconds);
    config.server.port = options.port.unwrap_or(config.server.port);
    warn_without_token(&config);
    let passes_through = !options.function.is_empty();
    let program = program(options.function, path, &config, environment)?;
    let outbound = Outbound::new(&config.outbound)?;
    let store = Arc::new(Store::connect(&config.store, outbound.clone()).await?);
    let notifier = Arc::new(super::notifier(&config, outbound.clone(), store.clone())?);
    let (defaults, model_type, family) = match config.manifest(environment) {
        Ok(manifest) => (manifest.defaults, manifest.family.as_str(), Some(manifest.family)),
        // Another function may have no model, or keeps it to itself.
        Err(_) if passes_through => (Defaults::default(), "function", None),
        Err(error) => return Err(error.into()),
    };
    let metrics = Metrics::new(Gpus::watch()).context("the metrics' table is wrong")?;
    let sources = sources(&config).await?;
    let queue = sources.first().context("no source is configured")?.clone();
    // Before anything is accepted: a host that is asked to end while it starts ends in order.
    let (orders, ordered) = mpsc::channel(4);
    drain::signals(orders.clone())?;
    let host = Host::start(Parts {
        gpus: gpus(&config, environment),
        settings: config.host.clone(),
        program,
        sources,
        queue,
        notification_sender: NotificationSender { notifier: notifier.clone(), store: store.clone() },
        notify: config.notify.clone(),
        defaults,
        max_attempts: config.runtime.max_attempts,
        needs_store: !passes_through,
        token: config.security.internal_auth_token.clone(),
        metrics: metrics.clone(),
    })?;
    let check = door(&config, family.filter(|_| !passes_through), &host, (&notifier, &store, &outbound));
    let refresh = refresh(&host, notifier, metrics.clone());
    let http = http_side(&config, &host, Store::clone(&store), (metrics, refresh), check, model_type);
    let http = Http { passes_through, ..http };
    let over = CancellationToken::new();
    let server = tokio::spawn(http::serve(listen(&config).await?, http, over.clone().cancelled_owned()));
    if let Some(protection) = Protection::new(&config.host.protection)? {
        tokio::spawn(protection.watch(host.job_service().snapshot));
    }
    if let Some(found) = Interruption::find(&config.host.interruption).await? {
        drain::interruption(found, orders.clone());
    }
    let ran = host.run(ordered).await;
    over.cancel();
    // A client that still reads an image may have a moment for it.
    if let Ok(Ok(ended)) = tokio::time::timeout(LAST_ANSWERS, server).await {
        ended?;
    }
    Ok(ran?)
}

/// Either no one may send jobs by HTTP, or everyone may.
fn warn_without_token(config: &Config) {
    match (config.security.require_auth, &config.security.internal_auth_token) {
        (true, None) => tracing::warn!(
            "security.internal_auth_token is not set: HTTP jobs are refused with 503 not_configured, queues are served"
        ),
        (false, _) => tracing::warn!("security.require_auth is false: anyone who reaches the port may send jobs"),
        (true, Some(_)) => {}
    }
}

fn http_side(
    config: &Config,
    host: &Host,
    store: Store,
    (metrics, refresh): (Metrics, http::Refresh),
    check: http::Check,
    model_type: &str,
) -> Http {
    Http {
        job_service: host.job_service(),
        store,
        auth: Auth::new(config.security.require_auth, config.security.internal_auth_token.as_ref()),
        node_id: config.server.node_id.clone(),
        model: ModelInfo {
            model_type: model_type.to_owned(),
            model_version: config.model.name.as_str().into(),
            backend: "candle".into(),
        },
        settings: http::Settings {
            max_connections: descriptors::connections(config.host.http.max_connections),
            ..config.host.http.clone()
        },
        uploads: Uploads::new(&config.host.http),
        metrics,
        refresh,
        check,
        passes_through: false,
    }
}

/// Counts the webhooks that the host itself has sent, and those that it has not sent yet.
fn refresh(host: &Host, notifier: Arc<Notifier>, metrics: Metrics) -> http::Refresh {
    let outbox = host.outbox();
    Arc::new(move || {
        metrics.webhooks(&notifier.take_attempts());
        metrics.outbox(outbox.waiting(), &outbox.open_breakers());
    })
}

/// What HTTP jobs are checked by, before they are accepted.
struct Door {
    /// What the configuration says of this binary's own handlers, until one of them is ready and says it itself.
    own: Option<Function>,
    function: watch::Receiver<Option<Function>>,
    notifier: Arc<Notifier>,
    store: Arc<Store>,
    outbound: Outbound,
    signs: bool,
    fetches: bool,
}

/// `own`: the family of this binary's own handlers; none: the function is another one.
fn door(
    config: &Config,
    own: Option<Family>,
    host: &Host,
    (notifier, store, outbound): (&Arc<Notifier>, &Arc<Store>, &Outbound),
) -> http::Check {
    let steps = &config.workflow.steps;
    let own =
        own.map(|family| Function { model: config.model.name.clone(), capabilities: super::capabilities(config, family) });
    let door = Door {
        own,
        function: host.function(),
        notifier: Arc::clone(notifier),
        store: Arc::clone(store),
        outbound: outbound.clone(),
        signs: steps.contains(&StepName::Watermark),
        fetches: steps.contains(&StepName::Fetch),
    };
    Arc::new(move |job| door.check(job))
}

impl Door {
    /// Refuses what a handler of this release would refuse before it begins. No one is asked for anything: no name is resolved, and
    /// no bucket is asked. Of a function that does not say what it can do nothing is known.
    fn check(&self, job: &Job) -> Result<(), JobError> {
        let said = self.function.borrow().clone();
        let Some(Function { model, capabilities }) = said.as_ref().or(self.own.as_ref()) else { return Ok(()) };
        capabilities.check(model, job)?;
        if self.fetches {
            self.store.check_inputs(job)?;
            for (field, asset) in job.inputs() {
                if let AssetUrl::Http(url) = asset {
                    self.outbound.check_at_the_door(url).map_err(|error| error.for_field(&field))?;
                }
            }
        }
        if let Some(url) = job.callback.as_ref().and_then(|callback| callback.url.as_ref()) {
            self.outbound.check_at_the_door(url.as_url()).map_err(|error| error.for_field("callback.url"))?;
        }
        if self.signs {
            watermark::check_job(job)?;
        } else {
            watermark::check_unsigned(job)?;
        }
        self.notifier.check(job)
    }
}

async fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::from((config.server.address, config.server.port));
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("{address} cannot be listened on (server.port)"))?;
    tracing::info!(address = %listener.local_addr()?, "listening for HTTP");
    Ok(listener)
}

/// This binary as the handler, or whatever function the command line names.
fn program(
    function: Vec<OsString>,
    config_file: Option<&Path>,
    config: &Config,
    environment: &Environment,
) -> anyhow::Result<Program> {
    let mut words = function.into_iter();
    // Another function may have no model: only our own handler's part of the configuration names one.
    let (path, arguments, environment) = if let Some(path) = words.next() {
        (path, words.collect(), config.function_environment(config_file, environment)?)
    } else {
        let own = std::env::current_exe().context("the path of this binary cannot be found")?;
        let arguments = config_file.map(|file| vec!["--config".into(), file.into()]);
        (own.into(), arguments.unwrap_or_default(), config.handler_environment(config_file, environment)?)
    };
    Ok(Program { path, arguments, function_name: "atelier".into(), memory_mib: config.host.handler.memory_mib, environment })
}

/// The configured queues; where none is, the spool. HTTP jobs go to the first.
async fn sources(config: &Config) -> anyhow::Result<Vec<Arc<dyn Source>>> {
    let mut sources: Vec<Arc<dyn Source>> = Vec::new();
    if config.sources.sqs.queue_url.is_some() {
        sources.push(Arc::new(Sqs::connect(&config.sources.sqs).await?));
    }
    if config.sources.rabbitmq.broker().is_some() {
        rabbitmq::inspect::check_declared(&config.sources.rabbitmq).await?;
        sources.push(Arc::new(RabbitMq::start(&config.sources.rabbitmq)?));
    }
    if sources.is_empty() {
        sources.push(Arc::new(Spool::open(&config.sources.spool, Duration::from_millis(config.host.max_backoff_ms))?));
    }
    Ok(sources)
}

/// One a handler: which GPU it is to see.
fn gpus(config: &Config, environment: &Environment) -> Vec<Option<String>> {
    let visible: Vec<String> = environment
        .get("CUDA_VISIBLE_DEVICES")
        .map(|list| list.split(',').map(|gpu| gpu.trim().to_owned()).filter(|gpu| !gpu.is_empty()).collect())
        .unwrap_or_default();
    let visible = match visible.len() {
        0 => (0..gpu::count()).map(|index| index.to_string()).collect(),
        _ => visible,
    };
    let handlers = match config.host.handlers {
        0 => visible.len().max(1),
        handlers => handlers as usize,
    };
    (0..handlers).map(|index| visible.get(index % visible.len().max(1)).cloned()).collect()
}
