//! The handler's life under a Runtime API: init, one invocation after the other, a tidy end on SIGTERM.

use std::sync::Arc;
use std::time::Duration;

use lambda_runtime::tower::{Layer, Service, service_fn};
use lambda_runtime::{Diagnostic, LambdaEvent, LambdaInvocation, Runtime};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::{Handler, HandlerError};
use crate::workflow::control::{Control, Shutdown};

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

/// Serves invocations until SIGTERM. Whatever is running then is finished within the grace or handed back, its reply is
/// posted, and only then does this return. Needs no Extensions API: hosts exist that have none.
///
/// # Errors
/// When the Runtime API goes away.
pub async fn serve(handler: Handler, limits: Limits) -> Result<(), BoxError> {
    let (switch, shutdown) = Shutdown::channel();
    let mut terminate = signal(SignalKind::terminate())?;
    let (busy, mut idle) = watch::channel(false);
    let handler = Arc::new(Mutex::new(handler));
    let wire = shutdown.clone();
    let function = service_fn(move |event: LambdaEvent<Value>| {
        let (handler, shutdown) = (handler.clone(), wire.clone());
        async move {
            let control = Control::new(event.context.deadline, limits.deadline_margin, shutdown);
            handler.lock().await.handle(event.payload, &control).await
        }
    });
    let runtime = Runtime::new(function).layer(BusyLayer { busy: Arc::new(busy) });
    let ended = async {
        terminate.recv().await;
        tracing::info!(grace_ms = limits.shutdown_grace.as_millis() as u64, "SIGTERM: finishing what runs");
        let _ = switch.send(Some(Instant::now() + limits.shutdown_grace));
        let _ = idle.wait_for(|busy| !busy).await;
    };
    tokio::select! {
        result = runtime.run() => result,
        () = ended => Ok(()),
    }
}

/// Tells the Runtime API why this handler never got as far as its first event.
///
/// # Errors
/// When the Runtime API cannot be reached.
pub async fn report_init_error(runtime_api: &str, error_type: &str, message: &str) -> Result<(), reqwest::Error> {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
    client
        .post(format!("http://{runtime_api}/2018-06-01/runtime/init/error"))
        .header("Lambda-Runtime-Function-Error-Type", error_type)
        .json(&json!({ "errorType": error_type, "errorMessage": message, "stackTrace": [] }))
        .send()
        .await?
        .error_for_status()
        .map(drop)
}

/// Marks the process busy from an event's arrival until its reply is posted, which is when the inner service is done.
#[derive(Clone)]
struct BusyLayer {
    busy: Arc<watch::Sender<bool>>,
}

#[derive(Clone)]
struct BusyService<S> {
    inner: S,
    busy: Arc<watch::Sender<bool>>,
}

impl<S> Layer<S> for BusyLayer {
    type Service = BusyService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        BusyService { inner, busy: self.busy.clone() }
    }
}

impl<S> Service<LambdaInvocation> for BusyService<S>
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
        let busy = self.busy.clone();
        busy.send_replace(true);
        let work = self.inner.call(invocation);
        Box::pin(async move {
            let result = work.await;
            busy.send_replace(false);
            result
        })
    }
}
