//! The handler's life under a Runtime API: init, one invocation after the other, a tidy end on SIGTERM.

use std::sync::Arc;
use std::time::Duration;

use lambda_runtime::tower::{Layer, Service, service_fn};
use lambda_runtime::{Context, Diagnostic, LambdaEvent, LambdaInvocation, Runtime};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::line::ControlCommands;
use super::{Handler, HandlerError};
use crate::clock::later;
use crate::protocol;
use crate::protocol::control::ControlCommand;
use crate::telemetry::Telemetry;
use crate::workflow::Spent;
use crate::workflow::control::{Cancels, Control, NotificationMode, Shutdown};
use crate::workflow::previews::Previews;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The bounds of every invocation.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Work stops this long before the invocation's deadline.
    pub deadline_margin: Duration,
    /// After SIGTERM the running job may go on this long before it is handed back.
    pub shutdown_grace: Duration,
}

impl From<HandlerError> for Diagnostic {
    fn from(error: HandlerError) -> Self {
        Self { error_type: error.error_type().to_owned(), error_message: error.to_string() }
    }
}

/// Why a handler ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// SIGTERM, or its host is gone.
    Asked,
    /// Its GPU can be used no more by this process; the job was handed back.
    FatalDeviceError,
    /// It can sign no image any more; the job was handed back.
    CannotSign,
}

impl From<Spent> for End {
    fn from(spent: Spent) -> Self {
        match spent {
            Spent::FatalDeviceError => Self::FatalDeviceError,
            Spent::CannotSign => Self::CannotSign,
        }
    }
}

/// What a host says, and what it wants to see.
pub struct Host {
    pub commands: ControlCommands,
    pub previews: Option<Arc<Previews>>,
}

/// Serves invocations until SIGTERM, or until `host`, where there is one, is gone. Whatever is running then is finished within
/// the grace or handed back, its reply is posted, and only then does this return. Needs no Extensions API: hosts exist that
/// have none.
///
/// # Errors
/// When the Runtime API goes away.
pub async fn serve(
    handler: Handler,
    limits: Limits,
    host: Option<Host>,
    telemetry: Option<Telemetry>,
) -> Result<End, BoxError> {
    let (switch, shutdown) = Shutdown::channel();
    let mut terminate = signal(SignalKind::terminate())?;
    let (busy, mut idle) = watch::channel(false);
    let (ending, spent) = watch::channel(None);
    let (cancels, cancelled) = Cancels::channel();
    let cancels = Arc::new(cancels);
    // A handler of a host goes on between two events; Lambda freezes one.
    let telemetry = telemetry.filter(|_| host.is_none());
    let life = LifeLayer { busy: Arc::new(busy), shutdown: shutdown.clone(), spent: spent.clone(), telemetry };
    let function = {
        let handler = Arc::new(Mutex::new(handler));
        let cancels = Arc::clone(&cancels);
        let previews = host.as_ref().and_then(|host| host.previews.clone());
        let ending = Arc::new(ending);
        service_fn(move |event: LambdaEvent<Box<RawValue>>| {
            let handler = handler.clone();
            let cancels = cancels.clone();
            let previews = previews.clone();
            let ending = ending.clone();
            let control = Control::new(event.context.deadline, limits.deadline_margin, shutdown.clone())
                .cancellable(cancelled.clone())
                .notification_mode_by(notification_mode(&event.context));
            async move {
                let handler = handler.lock().await;
                let reply = handler.handle(&event.payload, &control).await;
                cancels.forget();
                if let Some(previews) = previews {
                    previews.forget();
                }
                ending.send_replace(handler.spent());
                reply
            }
        })
    };
    let runtime = Runtime::new(function).layer(life);
    // On its own, because jobs can be cancelled until the very end.
    let mut host_is_gone = tokio::spawn(obey(host, cancels));
    let ended = async {
        let mut spent = spent.clone();
        let end = tokio::select! {
            _ = terminate.recv() => End::Asked,
            _ = &mut host_is_gone => End::Asked,
            Ok(spent) = spent.wait_for(Option::is_some) => spent.map_or(End::Asked, End::from),
        };
        if end == End::Asked {
            tracing::info!(grace_ms = limits.shutdown_grace.as_millis() as u64, "asked to end: finishing what runs");
            let _ = switch.send(Some(later(Instant::now(), limits.shutdown_grace)));
        }
        let _ = idle.wait_for(|busy| !busy).await;
        end
    };
    tokio::select! {
        result = runtime.run() => result.map(|()| End::Asked),
        end = ended => Ok(end),
    }
}

/// Obeys the host for as long as there is one; never resolves where there was none.
async fn obey(host: Option<Host>, cancels: Arc<Cancels>) {
    let Some(Host { mut commands, previews }) = host else { return std::future::pending().await };
    while let Some(command) = commands.recv().await {
        match command {
            ControlCommand::Cancel(job_id) => cancels.cancel(&job_id),
            ControlCommand::Preview { job_id, is_wanted } => {
                if let Some(previews) = &previews {
                    previews.want(&job_id, is_wanted);
                }
            }
        }
    }
    tracing::warn!("the host is gone");
}

/// `atelier host` says in the client context that it delivers the notifications itself.
fn notification_mode(context: &Context) -> NotificationMode {
    let has_host = context.client_context.as_ref().is_some_and(|client| protocol::context::decode(&client.custom));
    if has_host { NotificationMode::Later } else { NotificationMode::Now }
}

/// Reports to the Runtime API why this handler never got as far as its first event.
///
/// # Errors
/// When the Runtime API cannot be reached.
pub async fn report_init_error(runtime_api: &str, error_type: &str, message: &str) -> Result<(), reqwest::Error> {
    let client = crate::authorities::client().no_proxy().timeout(Duration::from_secs(5)).build()?;
    client
        .post(format!("http://{runtime_api}/2018-06-01/runtime/init/error"))
        .header("Lambda-Runtime-Function-Error-Type", error_type)
        .json(&json!({ "errorType": error_type, "errorMessage": message, "stackTrace": [] }))
        .send()
        .await?
        .error_for_status()
        .map(drop)
}

/// Marks the process busy from an event's arrival until its reply is posted, which is when the inner service is done; and
/// takes no event more once the process is to end.
#[derive(Clone)]
struct LifeLayer {
    busy: Arc<watch::Sender<bool>>,
    shutdown: Shutdown,
    spent: watch::Receiver<Option<Spent>>,
    /// Where spans must be exported before the next event is asked for.
    telemetry: Option<Telemetry>,
}

#[derive(Clone)]
struct LifeService<S> {
    inner: S,
    life: LifeLayer,
}

impl<S> Layer<S> for LifeLayer {
    type Service = LifeService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        LifeService { inner, life: self.clone() }
    }
}

impl<S> Service<LambdaInvocation> for LifeService<S>
where
    S: Service<LambdaInvocation, Response = (), Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = ();
    type Error = BoxError;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, invocation: LambdaInvocation) -> Self::Future {
        let life = self.life.clone();
        life.busy.send_replace(true);
        let work = self.inner.call(invocation);
        Box::pin(async move {
            let result = work.await;
            if let Some(telemetry) = &life.telemetry {
                telemetry.flush().await;
            }
            life.busy.send_replace(false);
            if life.shutdown.is_announced() || life.spent.borrow().is_some() {
                // The runtime would ask for the next event before `serve` has ended.
                std::future::pending::<()>().await;
            }
            result
        })
    }
}
