//! An OpenTelemetry collector: keeps the spans that it is sent by OTLP over HTTP.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::net::TcpListener;

/// A span with the name of the service that sent it.
#[derive(Debug, Clone)]
pub(crate) struct Exported {
    pub(crate) service: String,
    pub(crate) span: Span,
}

pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    exported: Arc<Mutex<Vec<Exported>>>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let exported = Arc::<Mutex<Vec<Exported>>>::default();
        let router = Router::new().route("/v1/traces", post(receive)).with_state(exported.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, exported }
    }

    /// What a process needs to export to it.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn exported(&self) -> Vec<Exported> {
        self.exported.lock().unwrap().clone()
    }

    /// All that came, once `done` says so of it; within a minute.
    pub(crate) async fn until(&self, done: impl Fn(&[Exported]) -> bool) -> Vec<Exported> {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let exported = self.exported();
            if done(&exported) {
                return exported;
            }
            assert!(Instant::now() < deadline, "{:?}", exported.iter().map(|one| &one.span.name).collect::<Vec<_>>());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Exported {
    pub(crate) fn attribute(&self, key: &str) -> Option<&Value> {
        value(&self.span.attributes, key)
    }

    /// As it stands in a `traceparent` that names this span as parent.
    pub(crate) fn traceparent(&self) -> String {
        format!(
            "00-{}-{}-01",
            base16ct::lower::encode_string(&self.span.trace_id),
            base16ct::lower::encode_string(&self.span.span_id)
        )
    }
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    found.and_then(|attribute| attribute.value.as_ref()).and_then(|AnyValue { value }| value.as_ref())
}

async fn receive(State(exported): State<Arc<Mutex<Vec<Exported>>>>, body: Bytes) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
    for resource_spans in request.resource_spans {
        let attributes = resource_spans.resource.map(|resource| resource.attributes).unwrap_or_default();
        let service = match value(&attributes, "service.name") {
            Some(Value::StringValue(name)) => name.clone(),
            _ => String::new(),
        };
        let spans = resource_spans.scope_spans.into_iter().flat_map(|scope_spans| scope_spans.spans);
        exported.lock().unwrap().extend(spans.map(|span| Exported { service: service.clone(), span }));
    }
    StatusCode::OK
}
