//! `atelier host`: puts the host together from its configuration and runs it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::listed::{self, HostedModel};
use super::safety;
use crate::config::{Config, Environment};
use crate::events::auth::Auth;
use crate::host::cloud::interruption::Interruption;
use crate::host::cloud::protection::Protection;
use crate::host::dispatch::HandlerPlace;
use crate::host::functions::Functions;
use crate::host::http::uploads::Uploads;
use crate::host::http::{self, Http, ModelInfo};
use crate::host::notification_sender::NotificationSender;
use crate::host::process::Program;
use crate::host::source::Source;
use crate::host::source::rabbitmq::{self, RabbitMq};
use crate::host::source::spool::Spool;
use crate::host::source::sqs::Sqs;
use crate::host::{Function, Host, Parts, Place, descriptors, drain};
use crate::job::Job;
use crate::job::outcome::JobError;
use crate::job::request::catalogue::{Catalogue, Served};
use crate::job::url::AssetUrl;
use crate::metrics::Metrics;
use crate::metrics::gpu::Gpus;
use crate::notify::Notifier;
use crate::outbound::Outbound;
use crate::safety::settings::TryOnSettings;
use crate::store::Store;
use crate::workflow::watermark::{self, TextStyle};
use crate::workflow::{StepName, absent};

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

impl Options {
    /// This binary's own handlers behind a port, and a short end.
    #[must_use]
    pub fn at(port: u16) -> Self {
        Self { handlers: None, drain_seconds: Some(5), port: Some(port), function: Vec::new() }
    }
}

/// Runs the host until it is asked to end.
///
/// # Errors
/// When the configuration is wrong, or a queue, the bucket or the port cannot be used.
pub async fn run(options: Options, path: Option<&Path>, environment: &Environment) -> anyhow::Result<()> {
    super::arm_fault_point(environment);
    // First of all: a host that is asked to end while it starts ends in order.
    let (orders, mut ordered) = mpsc::channel(4);
    drain::signals(orders.clone())?;
    let config = configured(&options, path, environment)?;
    warn_without_token(&config);
    let passes_through = !options.function.is_empty();
    let models = if passes_through { Vec::new() } else { listed::hosted(&config, environment)? };
    models.iter().try_for_each(|model| safety::check(&model.config.safety, &model.manifest))?;
    let outbound = Outbound::new(&config.outbound)?;
    let store = Arc::new(Store::connect(&config.store, outbound.clone()).await?);
    let catalogue = Arc::new(listed::catalogue(&models).unwrap_or_else(|| of_another_function(&config, environment)));
    // What it reports of a try-on that no handler lived to report is of the model that does try-ons.
    let tryon = catalogue.doing("tryon").map_or(&config.model.name, |model| &model.name);
    let notifier = Arc::new(super::notifier((&config, tryon), outbound.clone(), store.clone())?);
    let metrics = Metrics::new(Gpus::watch()).context("the metrics' table is wrong")?;
    // A queue may be waited for, and nothing was accepted yet.
    let Some(sources) = unless_asked_to_end(Box::pin(sources(&config)), &mut ordered).await else { return Ok(()) };
    let sources = sources?;
    let queue = sources.first().context("no source is configured")?.clone();
    let host = Host::start(Parts {
        settings: config.host.clone(),
        places: places(options.function, path, (&config, &models), environment)?,
        sources,
        queue,
        notification_sender: NotificationSender { notifier: notifier.clone(), store: store.clone() },
        notify: config.notify.clone(),
        catalogue,
        max_attempts: config.runtime.max_attempts,
        needs_store: !passes_through,
        token: config.security.internal_auth_token.clone(),
        metrics: metrics.clone(),
    })?;
    let own = models.iter().map(HostedModel::function).collect();
    let functions = Functions::new(own, host.functions());
    let check = door(&config, functions.clone(), &host, super::text_style(&config)?, (&notifier, &store, &outbound));
    let refresh = refresh(&host, notifier, metrics.clone());
    let infos = infos(&config, &models, environment);
    let http = Http {
        passes_through,
        ..http_side(&config, &host, Store::clone(&store), (metrics, refresh), (check, functions), infos)
    };
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

/// The configuration, with what the command line says over it.
fn configured(options: &Options, path: Option<&Path>, environment: &Environment) -> anyhow::Result<Config> {
    let mut config = Config::load(path, environment)?;
    check_options(options, &config)?;
    config.host.handlers = options.handlers.unwrap_or(config.host.handlers);
    config.host.drain_seconds = options.drain_seconds.unwrap_or(config.host.drain_seconds);
    config.server.port = options.port.unwrap_or(config.server.port);
    Ok(config)
}

/// None once the host was asked to end.
async fn unless_asked_to_end<T>(starting: impl Future<Output = T>, orders: &mut mpsc::Receiver<&'static str>) -> Option<T> {
    tokio::select! {
        started = starting => Some(started),
        Some(order) = orders.recv() => {
            tracing::info!(order, "asked to end before anything was accepted");
            None
        }
    }
}

fn check_options(options: &Options, config: &Config) -> anyhow::Result<()> {
    let alone = config.host.models.is_empty();
    anyhow::ensure!(
        options.handlers.is_none() || alone,
        "--handlers means something only where host.models is empty: each listed model has `handlers` of its own"
    );
    anyhow::ensure!(
        options.function.is_empty() || alone,
        "host.models is for this binary's own handlers, not for another function"
    );
    Ok(())
}

/// What `/version` and `/test` say: of the model that the contract's fields speak of, and of all.
fn infos(config: &Config, models: &[HostedModel], environment: &Environment) -> (ModelInfo, Vec<ModelInfo>) {
    let all: Vec<ModelInfo> = models.iter().map(HostedModel::info).collect();
    let name = config.model.name.as_str();
    let named = all.iter().find(|model| model.model_version == name).or(all.first()).cloned();
    let first = named.unwrap_or_else(|| ModelInfo {
        // Another function may have no model, or keeps it to itself.
        model_type: config.manifest(environment).map_or("function", |manifest| manifest.family.as_str()).to_owned(),
        model_version: name.to_owned(),
        backend: "candle".into(),
    });
    let all = if all.is_empty() { vec![first.clone()] } else { all };
    (first, all)
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
    (check, functions): (http::Check, Functions),
    (model, models): (ModelInfo, Vec<ModelInfo>),
) -> Http {
    Http {
        job_service: host.job_service(),
        store,
        auth: Auth::new(config.security.require_auth, config.security.internal_auth_token.as_ref()),
        node_id: config.server.node_id.clone(),
        model,
        models,
        settings: http::Settings {
            max_connections: descriptors::connections(config.host.http.max_connections),
            ..config.host.http.clone()
        },
        uploads: Uploads::new(&config.host.http),
        metrics,
        refresh,
        check,
        functions,
        page: config.server.has_page(),
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
    catalogue: Arc<Catalogue>,
    functions: Functions,
    notifier: Arc<Notifier>,
    store: Arc<Store>,
    outbound: Outbound,
    /// What watermarks are set with.
    text_style: TextStyle,
    steps: Vec<StepName>,
    tryon: TryOnSettings,
}

fn door(
    config: &Config,
    functions: Functions,
    host: &Host,
    text_style: TextStyle,
    (notifier, store, outbound): (&Arc<Notifier>, &Arc<Store>, &Outbound),
) -> http::Check {
    let door = Door {
        catalogue: host.job_service().catalogue,
        functions,
        notifier: Arc::clone(notifier),
        store: Arc::clone(store),
        outbound: outbound.clone(),
        text_style,
        steps: config.workflow.steps.clone(),
        tryon: config.safety.tryon,
    };
    Arc::new(move |job| door.check(job))
}

impl Door {
    /// Refuses what a handler of this release would refuse before it begins. No one is asked for anything: no name is resolved, and
    /// no bucket is asked. Of a function that does not say what it can do nothing is known.
    fn check(&self, job: &Job) -> Result<(), JobError> {
        let function = self.functions.at(self.catalogue.place(job)?);
        let Some(Function { model, capabilities, upscalers, segmenter }) = function else { return Ok(()) };
        capabilities.check(&model, job)?;
        upscalers.check(job)?;
        segmenter.check(job)?;
        self.tryon.check(job)?;
        if self.steps.contains(&StepName::Fetch) {
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
        absent::check(&self.steps, job)?;
        if self.steps.contains(&StepName::Watermark) {
            watermark::check_job(job, &self.text_style)?;
        }
        self.notifier.check(job)
    }
}

async fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::from((config.server.address, config.server.port));
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("{address} cannot be listened on: choose another port (--port, server.port) or address (server.address)")
    })?;
    let address = listener.local_addr()?;
    tracing::info!(%address, "listening for HTTP");
    if config.server.has_page() {
        tracing::info!(url = format!("http://{address}/"), "the page to try this host is open");
    }
    Ok(listener)
}

/// What is known of a function that is another one: it may have no model, or keeps it to itself.
fn of_another_function(config: &Config, environment: &Environment) -> Catalogue {
    let defaults = config.manifest(environment).map(|manifest| manifest.defaults).unwrap_or_default();
    Catalogue::new(Served { name: config.model.name.clone(), tasks: &["generate", "tryon", "edit"], defaults }, Vec::new())
}

/// One a handler: of each model, or of the function that the command line names.
fn places(
    function: Vec<OsString>,
    config_file: Option<&Path>,
    (config, models): (&Config, &[HostedModel]),
    environment: &Environment,
) -> anyhow::Result<Vec<Place>> {
    if models.is_empty() {
        let program = program(function, config_file, config, environment)?;
        let gpus = listed::gpus(&listed::visible(environment), config.host.handlers);
        return Ok(gpus
            .into_iter()
            .map(|gpu| Place { program: program.clone(), gpu, handler: HandlerPlace { model: 0, share: None } })
            .collect());
    }
    let mut places = Vec::new();
    for (place, model) in models.iter().enumerate() {
        let program = model.named(program(Vec::new(), config_file, &model.config, environment)?);
        let handlers = model.gpus.iter().zip(&model.shares);
        places.extend(handlers.map(|(gpu, share)| Place {
            program: program.clone(),
            gpu: gpu.clone(),
            handler: HandlerPlace { model: place, share: *share },
        }));
    }
    Ok(places)
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
        rabbitmq::inspect::check(&config.sources.rabbitmq).await?;
        sources.push(Arc::new(RabbitMq::start(&config.sources.rabbitmq)?));
    }
    if sources.is_empty() {
        sources.push(Arc::new(Spool::open(&config.sources.spool, Duration::from_millis(config.host.max_backoff_ms))?));
    }
    Ok(sources)
}
