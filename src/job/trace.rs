//! Which trace a job belongs to, and the span that every line of its log stands in.
//!
//! - W3C Trace Context, `traceparent: 00-{trace id}-{parent id}-{flags}`: <https://www.w3.org/TR/trace-context/>.
//! - AWS X-Ray, `Root=1-{8 hex digits}-{24 hex digits};Parent={16 hex digits};Sampled=1`, is the same trace in other words:
//!   <https://docs.aws.amazon.com/xray/latest/devguide/xray-concepts.html#xray-concepts-tracingheader>.
//!
//! Where traces are exported (`crate::telemetry`), the span of a job is a span of its caller's trace, and what is sent on names that
//! span as its parent. Elsewhere what came in is handed on as it was.

use std::fmt;

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use opentelemetry::{Context, KeyValue};
use serde::{Deserialize, Serialize};
use tracing::{Span, field};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The header that carries a trace by HTTP and AMQP.
pub const TRACEPARENT: &str = "traceparent";

/// A caller's trace, and the span in it that sent the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Trace {
    /// The trace-id. Never 0.
    id: u128,
    /// Never 0.
    parent_id: u64,
    flags: u8,
}

/// The lowest bit of the flags: the caller keeps what it records.
const SAMPLED: u8 = 1;

impl Trace {
    /// Reads a `traceparent`. None for what is none: a trace is never a reason to refuse a job.
    #[must_use]
    pub fn from_traceparent(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let version: u8 = hex(parts.next()?, 2)?.try_into().ok()?;
        let trace_id = hex(parts.next()?, 32)?;
        let parent_id = hex(parts.next()?, 16)?.try_into().ok()?;
        let flags = hex(parts.next()?, 2)?.try_into().ok()?;
        // Later versions may have more parts; version 255 is forbidden.
        let readable = version < 255 && (version > 0 || parts.next().is_none());
        (readable && trace_id != 0 && parent_id != 0).then_some(Self { id: trace_id, parent_id, flags })
    }

    /// Reads an X-Ray trace header. Without `Parent`, as load balancers write it, the end of the trace's id stands for it.
    #[must_use]
    pub fn from_xray(text: &str) -> Option<Self> {
        let part = |name: &str| text.split(';').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
        let (time, random) = part("Root")?.strip_prefix("1-")?.split_once('-')?;
        let trace_id = (hex(time, 8)? << 96) | hex(random, 24)?;
        let parent_id = match part("Parent") {
            Some(parent) => hex(parent, 16)?.try_into().ok()?,
            None => trace_id as u64,
        };
        let flags = if part("Sampled") == Some("1") { SAMPLED } else { 0 };
        (trace_id != 0 && parent_id != 0).then_some(Self { id: trace_id, parent_id, flags })
    }

    /// The exported span itself, as a parent of what comes after it. None where `span` is not exported.
    #[must_use]
    pub fn of(span: &Span) -> Option<Self> {
        let context = span.context();
        let context = context.span().span_context().clone();
        context.is_valid().then(|| Self {
            id: u128::from_be_bytes(context.trace_id().to_bytes()),
            parent_id: u64::from_be_bytes(context.span_id().to_bytes()),
            flags: context.trace_flags().to_u8(),
        })
    }

    /// As [`Self::of`], of the span around this line.
    #[must_use]
    pub fn current() -> Option<Self> {
        Self::of(&Span::current())
    }

    fn to_context(self) -> Context {
        Context::new().with_remote_span_context(SpanContext::new(
            TraceId::from_bytes(self.id.to_be_bytes()),
            SpanId::from_bytes(self.parent_id.to_be_bytes()),
            TraceFlags::new(self.flags),
            true,
            TraceState::default(),
        ))
    }

    #[must_use]
    pub fn to_traceparent(self) -> String {
        self.to_string()
    }

    #[must_use]
    pub fn to_xray(self) -> String {
        let Self { id: trace_id, parent_id, flags } = self;
        let time = trace_id >> 96;
        let random = trace_id & ((1 << 96) - 1);
        format!("Root=1-{time:08x}-{random:024x};Parent={parent_id:016x};Sampled={}", flags & SAMPLED)
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.id, self.parent_id, self.flags)
    }
}

impl From<Trace> for String {
    fn from(trace: Trace) -> Self {
        trace.to_string()
    }
}

impl TryFrom<String> for Trace {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::from_traceparent(&text).ok_or_else(|| format!("must be a W3C traceparent, got {text:?}"))
    }
}

/// Both headers have a fixed number of digits, and the W3C's are lower-case.
fn hex(digits: &str, count: usize) -> Option<u128> {
    let valid = digits.len() == count && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    valid.then(|| u128::from_str_radix(digits, 16).ok()).flatten()
}

/// Target of [`span`], by which the log's filter knows it.
pub const SPAN_TARGET: &str = "atelier::job";
/// Target of the spans that are exported and no part of the log.
pub const EXPORTED_TARGET: &str = "atelier::exported";

/// Name of [`span`].
pub const JOB_SPAN: &str = "job";
/// What of [`span`] says where the job came from.
pub const SOURCE: &str = "source";

/// What a job's span is to its caller's: the work on a message of a queue, or on a request whose caller waits.
#[must_use]
pub fn kind(source: &str) -> SpanKind {
    match source {
        "sqs" | "rabbitmq" | "spool" => SpanKind::Consumer,
        _ => SpanKind::Server,
    }
}

/// The span of one attempt of a job. `source`: where it came from, such as `sqs`. `job_id`: empty where it could not be read.
#[must_use]
pub fn span(job_id: &str, source: &str, attempt: u32, trace: Option<Trace>) -> Span {
    // As an error: a span below the log's level is left out, and its fields with it, from lines that are not.
    let span = tracing::error_span!(target: SPAN_TARGET, JOB_SPAN, job_id, source, attempt, traceparent = field::Empty);
    if let Some(trace) = trace {
        span.record("traceparent", field::display(trace));
        adopt(&span, trace);
    }
    span
}

/// The span of a step of the workflow, below that of its job.
#[must_use]
pub fn step_span(name: &str) -> Span {
    tracing::trace_span!(target: EXPORTED_TARGET, "step", otel.name = name)
}

/// The span of one attempt to send a notification. `kind`: of the notification. `host`: of its receiver's address.
#[must_use]
pub fn webhook_span(kind: &str, webhook_id: &str, host: &str, trace: Option<Trace>) -> Span {
    let span = tracing::trace_span!(
        target: EXPORTED_TARGET, "webhook", otel.kind = "client", kind, webhook_id, server.address = host
    );
    if let Some(trace) = trace {
        adopt(&span, trace);
    }
    span
}

/// Puts a new span below one of another process.
fn adopt(span: &Span, parent: Trace) {
    // Fails where no spans are exported: then there is nothing to put anywhere.
    let _ = span.set_parent(parent.to_context());
}

/// Says of an exported span that it ended with an error.
pub fn fail(span: &Span, code: &str) {
    span.set_attribute("error.type", code.to_owned());
    span.set_status(Status::error(code.to_owned()));
}

/// A moment in an exported span: this denoising step is done.
pub fn note_denoising_step(span: &Span, step: u32, steps: u32) {
    span.add_event("denoising step", vec![KeyValue::new("step", i64::from(step)), KeyValue::new("steps", i64::from(steps))]);
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const XRAY: &str = "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent=00f067aa0ba902b7;Sampled=1";

    #[test]
    fn both_headers_say_the_same() {
        let trace = Trace::from_traceparent(PARENT).unwrap();
        assert_eq!(trace.to_traceparent(), PARENT);
        assert_eq!(trace.to_xray(), XRAY);
        assert_eq!(Trace::from_xray(XRAY), Some(trace));
        assert_eq!(serde_json::to_string(&trace).unwrap(), format!("{PARENT:?}"));
        assert_eq!(serde_json::from_str::<Trace>(&format!("{PARENT:?}")).unwrap(), trace);
        assert!(serde_json::from_str::<Trace>("\"00-1\"").is_err());
    }

    #[test]
    fn an_xray_header_may_leave_parts_out_and_have_others() {
        let root = "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736";
        let expected = "00-4bf92f3577b34da6a3ce929d0e0e4736-a3ce929d0e0e4736-00";
        assert_eq!(Trace::from_xray(root).unwrap().to_string(), expected);
        assert_eq!(Trace::from_xray(&format!("Self=1-67891234-12456789abcdef012345678;{root}")).unwrap().to_string(), expected);
        assert_eq!(Trace::from_xray(&format!("{root}; Sampled=?; Lineage=a:1")).unwrap().to_string(), expected);
    }

    #[test]
    fn what_is_no_trace_is_none() {
        for text in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-ä-1-1",
        ] {
            assert_eq!(Trace::from_traceparent(text), None, "{text}");
        }
        assert!(Trace::from_traceparent(&format!("01{}-what-comes-later", &PARENT[2..])).is_some());
        for text in ["", "Root=1-4bf92f35", "Root=2-4bf92f35-77b34da6a3ce929d0e0e4736", "Parent=00f067aa0ba902b7", "Root=1-ü-1"]
        {
            assert_eq!(Trace::from_xray(text), None, "{text}");
        }
    }
}
