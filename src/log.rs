//! Where the log goes, and in which form.

use std::fmt;
use std::io::{IsTerminal as _, stderr};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::Environment;

/// What is told where `LOG_LEVEL` says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultLevel {
    Outcomes,
    /// For roles that talk to a person.
    Warnings,
    /// For `atelier doctor`, whose output says all of it.
    Nothing,
}

/// JSON lines for machines, short lines for people; `LOG_LEVEL` in the syntax of tracing's `EnvFilter`.
pub fn start(environment: &Environment, default_level: DefaultLevel) {
    // lapin tells of a broken connection in its own words next to ours.
    let otherwise = match default_level {
        DefaultLevel::Outcomes => "info,lapin=off",
        DefaultLevel::Warnings => "warn,lapin=off",
        DefaultLevel::Nothing => "off",
    };
    let level = environment.get("LOG_LEVEL").map_or(otherwise, String::as_str).to_lowercase();
    let log = tracing_subscriber::fmt().with_env_filter(filter(&level)).with_writer(stderr);
    if stderr().is_terminal() || default_level != DefaultLevel::Outcomes {
        log.without_time().with_target(false).finish().with(keeps_secrets()).init();
    } else {
        log.fmt_fields(JsonFields::new()).event_format(Lines).finish().with(keeps_secrets()).init();
    }
}

/// Whatever the level: clients of HTTP, AWS and the Runtime API write tokens, presigned queries and complete events into their
/// own lines below `info`. What is below `info` is ours alone.
fn keeps_secrets() -> FilterFn {
    FilterFn::new(|line| *line.level() <= Level::INFO || line.target().starts_with("atelier"))
}

/// What the level lets through, and the span of a job in any case: a list of targets would leave it out, and with it the
/// fields of the lines that it lets through.
fn filter(level: &str) -> EnvFilter {
    let span = format!("{}=error", crate::job::trace::SPAN_TARGET);
    match span.parse() {
        Ok(span) => EnvFilter::new(level).add_directive(span),
        Err(_) => EnvFilter::new(level),
    }
}

/// One flat JSON object per event: `timestamp`, `level`, its own fields, then those of the spans around it, the innermost
/// first. tracing-subscriber's own JSON nests spans, where a query for `job_id` does not find them.
struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    N: for<'writer> tracing_subscriber::fmt::FormatFields<'writer> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let mut line = Line(Map::new());
        line.0.insert("timestamp".into(), timestamp.into());
        line.0.insert("level".into(), event.metadata().level().as_str().into());
        event.record(&mut line);
        for span in context.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<N>>().map(|fields| serde_json::from_str(&fields.fields));
            let Some(Ok(Value::Object(fields))) = fields else { continue };
            for (name, value) in fields {
                line.0.entry(name).or_insert(value);
            }
        }
        writeln!(writer, "{}", Value::Object(line.0))
    }
}

struct Line(Map<String, Value>);

impl Line {
    fn insert(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Line {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::job::trace::{Trace, span};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `events` writes under this `LOG_LEVEL`.
    fn lines(level: &str, events: impl FnOnce()) -> Vec<Value> {
        let written = Written::default();
        let writer = written.clone();
        let log = tracing_subscriber::fmt().with_env_filter(filter(level)).with_writer(move || writer.clone());
        tracing::subscriber::with_default(
            log.fmt_fields(JsonFields::new()).event_format(Lines).finish().with(keeps_secrets()),
            events,
        );
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_jobs_fields_stand_at_the_top_of_its_lines_at_every_level() {
        let trace = Trace::from_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        for level in ["trace", "info", "warn", "error", "atelier::log=warn"] {
            let lines = lines(level, || {
                let outer = tracing::error_span!("http", request_id = "r-1", attempt = 7);
                let _outer = outer.enter();
                let _job = span("job-1", "sqs", 2, trace).entered();
                let problem = io::Error::other("a \"quoted\"\nproblem");
                tracing::error!(error = %problem, delay_ms = 5_u64, last = true, rate = 0.5, "job failed");
            });
            let [line] = &lines[..] else { panic!("{lines:?}") };
            assert_eq!((&line["level"], &line["message"]), (&"ERROR".into(), &"job failed".into()));
            assert_eq!((&line["job_id"], &line["source"], &line["attempt"]), (&"job-1".into(), &"sqs".into(), &2.into()));
            assert_eq!(line["traceparent"], trace.unwrap().to_traceparent());
            assert!(line["request_id"] == "r-1" || level.contains('='), "{line}");
            assert_eq!(line["error"], "a \"quoted\"\nproblem");
            assert_eq!((&line["delay_ms"], &line["last"], &line["rate"]), (&5.into(), &true.into(), &0.5.into()));
            assert!(line["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
        }
    }

    #[test]
    fn at_no_level_do_the_clients_tell_what_they_send() {
        for level in ["trace", "debug", "error,lambda_runtime=trace", "info,hyper=trace,aws_config=debug"] {
            let lines = lines(level, || {
                tracing::trace!(target: "lambda_runtime", event = "x-internal-auth: secret", "new event");
                tracing::debug!(target: "aws_config::profile", "X-Amz-Signature=secret");
                tracing::debug_span!(target: "hyper", "request", token = "secret").in_scope(|| tracing::error!("ours"));
            });
            let [line] = &lines[..] else { panic!("{level}: {lines:?}") };
            assert!(!line.to_string().contains("secret"), "{line}");
        }
        assert_eq!(lines("trace", || tracing::trace!("ours")).len(), 1);
    }

    #[test]
    fn an_event_knows_better_than_the_spans_around_it() {
        let lines = lines("info", || {
            let _job = span("job-1", "sqs", 1, None).entered();
            tracing::info!(source = "store", "kept");
            tracing::debug!("not at this level");
        });
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!((&line["source"], &line["job_id"]), (&"store".into(), &"job-1".into()));
        assert_eq!(line.get("traceparent"), None);
    }
}
