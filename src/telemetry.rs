//! OpenTelemetry: exports the spans of jobs to a collector, by OTLP over HTTP, where the environment names one.
//!
//! The variables are OpenTelemetry's own (<https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>). Spans
//! of a job whose caller's trace is not sampled are not exported. A collector that is away costs no job anything: spans are lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::Context;
use opentelemetry::trace::{SpanBuilder, Tracer, TracerProvider as _};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::registry::LookupSpan;
use url::Url;

use crate::authorities;
use crate::config::Environment;
use crate::job::trace::{self, EXPORTED_TARGET, JOB_SPAN, SOURCE, SPAN_TARGET};
use crate::setting::SettingError;

const SERVICE: &str = "atelier";
/// Of the specification.
const TIMEOUT: Duration = Duration::from_secs(10);
/// For the spans of one event, on a platform that freezes the process next.
const FLUSH: Duration = Duration::from_secs(2);

/// Where spans go; clones share it.
#[derive(Debug, Clone)]
pub struct Telemetry {
    provider: SdkTracerProvider,
}

impl Telemetry {
    /// None where the environment names no collector, or turns the export off.
    ///
    /// # Errors
    /// [`SettingError`] for an address that is none, a number that is none, or a protocol other than `http/protobuf`.
    pub fn new(environment: &Environment) -> Result<Option<Self>, SettingError> {
        let Some((name, endpoint)) = set(environment, "ENDPOINT") else { return Ok(None) };
        let is = |name: &str, value: &str| environment.get(name).is_some_and(|text| text.trim().eq_ignore_ascii_case(value));
        if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
            return Ok(None);
        }
        check_endpoint(&name, endpoint)?;
        if let Some((name, protocol)) = set(environment, "PROTOCOL").filter(|(_, protocol)| *protocol != "http/protobuf") {
            let problem = format!(
                "must be http/protobuf, got {protocol:?}; leave it unset, and have the endpoint name the collector's port for HTTP, which is 4318 by default"
            );
            return Err(SettingError::new(&name, problem));
        }
        let timeout = match set(environment, "TIMEOUT") {
            None => TIMEOUT,
            Some((name, text)) => text
                .parse()
                .map(Duration::from_millis)
                .map_err(|_| SettingError::new(&name, format!("must be a whole number of milliseconds, got {text:?}")))?,
        };
        let failed = |error: &dyn std::fmt::Display| SettingError::new(&name, format!("traces cannot be exported ({error})"));
        let client = authorities::client().timeout(timeout).build().map_err(|error| failed(&error))?;
        let client = Client { http: client, runtime: Handle::current(), is_failing: AtomicBool::new(false) };
        let exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).with_http_client(client);
        let exporter = exporter.build().map_err(|error| failed(&error))?;
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource(environment)).build();
        Ok(Some(Self { provider }))
    }

    /// Makes spans of ours OpenTelemetry's.
    #[must_use]
    pub fn layer<S>(&self) -> impl Layer<S>
    where
        S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    {
        // Where in our sources a span begins, and on which thread, tells an operator nothing.
        let layer = tracing_opentelemetry::layer().with_tracer(Kinds(self.provider.tracer(SERVICE)));
        let layer = layer.with_location(false).with_threads(false).with_target(false).with_tracked_inactivity(false);
        layer.with_filter(FilterFn::new(|span| span.is_span() && [SPAN_TARGET, EXPORTED_TARGET].contains(&span.target())))
    }

    /// Exports what has ended, in a short time or not at all.
    pub async fn flush(&self) {
        let provider = self.provider.clone();
        let exporting = tokio::task::spawn_blocking(move || provider.force_flush());
        // The client has said what was wrong.
        let _ = tokio::time::timeout(FLUSH, exporting).await;
    }

    /// Exports what has ended; nothing is exported any more.
    pub async fn end(self) {
        let exporting = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(FLUSH));
        let _ = exporting.await;
    }
}

/// Says what kind a job's span is. As a field of the span, which `tracing-opentelemetry` reads, it would stand in every line of the job's log.
#[derive(Debug, Clone)]
struct Kinds(SdkTracer);

impl Tracer for Kinds {
    type Span = <SdkTracer as Tracer>::Span;

    fn build_with_context(&self, mut builder: SpanBuilder, parent: &Context) -> Self::Span {
        if builder.name == JOB_SPAN {
            let source = builder.attributes.iter().flatten().find(|attribute| attribute.key.as_str() == SOURCE);
            builder.span_kind = source.map(|source| trace::kind(&source.value.as_str()));
        }
        self.0.build_with_context(builder, parent)
    }
}

/// A variable that may be set for traces alone, or for all that OTLP carries: its name and text; none where it is empty.
fn set<'a>(environment: &'a Environment, what: &str) -> Option<(String, &'a str)> {
    let names = [format!("OTEL_EXPORTER_OTLP_TRACES_{what}"), format!("OTEL_EXPORTER_OTLP_{what}")];
    names.into_iter().find_map(|name| {
        let text = environment.get(&name)?.trim();
        (!text.is_empty()).then_some((name, text))
    })
}

fn check_endpoint(name: &str, endpoint: &str) -> Result<(), SettingError> {
    let is_http = Url::parse(endpoint).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if is_http {
        return Ok(());
    }
    Err(SettingError::new(name, format!("must be an address such as http://127.0.0.1:4318, got {endpoint:?}")))
}

/// What the environment says of this service; its name is ours where that says none.
fn resource(environment: &Environment) -> Resource {
    let is_named = environment.get("OTEL_SERVICE_NAME").is_some_and(|name| !name.is_empty())
        || environment.get("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|attributes| attributes.contains("service.name="));
    let resource = Resource::builder();
    if is_named { resource.build() } else { resource.with_service_name(SERVICE).build() }
}

/// Sends on the runtime of this process what the exporter's own thread has.
#[derive(Debug)]
struct Client {
    http: reqwest::Client,
    runtime: Handle,
    /// The log says once that the collector cannot be reached.
    is_failing: AtomicBool,
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let http = self.http.clone();
        let sending = self.runtime.spawn(async move {
            let response = http.execute(request.try_into()?).await?;
            let status = response.status();
            let headers = response.headers().clone();
            let mut received = Response::new(response.bytes().await?);
            *received.status_mut() = status;
            *received.headers_mut() = headers;
            Ok::<_, reqwest::Error>(received)
        });
        let sent = sending.await?.map_err(reqwest::Error::without_url);
        let problem = match &sent {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("the collector answered {}", response.status())),
            Err(error) => Some(error.to_string()),
        };
        let was_failing = self.is_failing.swap(problem.is_some(), Ordering::Relaxed);
        match problem {
            Some(problem) if !was_failing => {
                tracing::warn!(problem, "spans cannot be exported, and are lost until they can be");
            }
            None if was_failing => tracing::info!("spans are exported again"),
            _ => {}
        }
        Ok(sent?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(variables: &[(&str, &str)]) -> Result<bool, String> {
        let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Telemetry::new(&environment).map(|telemetry| telemetry.is_some()).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn spans_are_exported_where_a_collector_is_named_and_the_export_is_not_off() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        assert_eq!(started(&[]), Ok(false));
        assert_eq!(started(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]), Ok(false));
        assert_eq!(started(&[endpoint, ("OTEL_SDK_DISABLED", "TRUE")]), Ok(false));
        assert_eq!(started(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), Ok(false));
        assert_eq!(started(&[endpoint]), Ok(true));
        assert_eq!(started(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]), Ok(true));
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_named_with_what_can() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317");
        for (variables, says) in [
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "127.0.0.1:4318")][..], "must be an address such as http://127.0.0.1:4318"),
            (&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "grpc://collector")], "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
            (&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], "must be http/protobuf, got \"grpc\""),
            (&[endpoint, ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s")], "must be a whole number of milliseconds, got \"10s\""),
        ] {
            let problem = started(variables).expect_err("it is refused");
            assert!(problem.contains(says), "{says:?} is not in {problem:?}");
        }
    }
}
