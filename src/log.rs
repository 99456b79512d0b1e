//! Where the log goes, and in which form.

use std::fmt;
use std::io::{IsTerminal as _, stderr};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{Directive, FilterFn};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::config::Environment;
use crate::setting::SettingError;
use crate::telemetry::Telemetry;

/// What is logged where `LOG_LEVEL` says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultLevel {
    Outcomes,
    /// For roles that talk to a person.
    Warnings,
    /// For `atelier doctor`, whose output says all of it.
    Nothing,
}

/// JSON lines for machines, short lines for people. `LOG_LEVEL` is a level by the name or number that Python or tracing gives it, or
/// a list of tracing's directives; empty means the default.
///
/// # Errors
/// [`SettingError`] for a `LOG_LEVEL` that means nothing; then the log is at its default level, so that the error can be logged.
pub fn start(
    environment: &Environment,
    default_level: DefaultLevel,
    telemetry: Option<&Telemetry>,
) -> Result<(), SettingError> {
    let named = environment.get("LOG_LEVEL").map_or("", String::as_str);
    let read = directives(named).map_err(|problem| SettingError::new("LOG_LEVEL", problem));
    let level = match &read {
        Ok(Some(level)) => level.as_str(),
        Ok(None) | Err(_) => default_level.directives(),
    };
    // A line that cannot be written is lost, and nothing else: the subscriber would report that to where it cannot write, and panic.
    let log = tracing_subscriber::fmt::layer().with_writer(stderr).log_internal_errors(false);
    let log = if stderr().is_terminal() || default_level != DefaultLevel::Outcomes {
        log.without_time().with_target(false).with_ansi(stderr().is_terminal()).boxed()
    } else {
        log.fmt_fields(JsonFields::new()).event_format(Lines).boxed()
    };
    let log = log.with_filter(filter(level)).with_filter(keeps_secrets());
    tracing_subscriber::registry().with(log).with(telemetry.map(Telemetry::layer)).init();
    read.map(drop)
}

impl DefaultLevel {
    fn directives(self) -> &'static str {
        match self {
            Self::Outcomes => "info",
            // The embedded S3 server logs every answer that is an error, also those that are asked for, as an error of its own.
            Self::Warnings => "warn,s3s=off,s3s_fs=off",
            Self::Nothing => "off",
        }
    }
}

/// `LOG_LEVEL` as tracing's directives; none where it is empty.
fn directives(text: &str) -> Result<Option<String>, String> {
    let parts: Vec<&str> = split(text).into_iter().map(str::trim).filter(|part| !part.is_empty()).collect();
    let read = parts.into_iter().map(directive).collect::<Result<Vec<_>, _>>()?;
    Ok(Some(read.join(",")).filter(|list| !list.is_empty()))
}

/// At commas that do not stand between the braces or brackets of a span.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    text.split(|c| {
        match c {
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .collect()
}

fn directive(text: &str) -> Result<String, String> {
    // Behind the last bracket, since a span's fields have equals signs as well.
    let fields_end = text.rfind(']').map_or(0, |at| at + 1);
    let read = match text[fields_end..].rsplit_once('=') {
        Some((target, named)) => {
            let target = format!("{}{target}", &text[..fields_end]);
            let level = level(named.trim()).ok_or_else(|| unknown(named))?;
            format!("{}={level}", target.trim())
        }
        None => match level(text) {
            Some(level) => level.to_owned(),
            // A word alone would be a target of which everything is let through, and turn all others off.
            None if !text.contains("::") && !text.contains('[') => return Err(unknown(text)),
            None => text.to_owned(),
        },
    };
    match read.parse::<Directive>() {
        Ok(_) => Ok(read),
        Err(error) => Err(format!("{text:?} is no directive of a log filter ({error}); {ALLOWED}")),
    }
}

const ALLOWED: &str = "it takes debug, info, warning, error, critical or off in any case, a number of Python's (10, 20, 30, 40, 50), or \
                       a list such as info,atelier::host=debug";

fn unknown(word: &str) -> String {
    format!("{word:?} is no level; {ALLOWED}")
}

/// A level by its name or its number in Python's logging, or by its name in tracing. tracing has none above `error`.
fn level(word: &str) -> Option<&'static str> {
    Some(match word.to_ascii_lowercase().as_str() {
        "trace" | "notset" => "trace",
        "debug" => "debug",
        "info" => "info",
        "warn" | "warning" => "warn",
        "error" | "critical" | "fatal" => "error",
        "off" => "off",
        // A number lets through what is as high as itself.
        number => match number.parse::<u32>().ok()? {
            0..=9 => "trace",
            10 => "debug",
            11..=20 => "info",
            21..=30 => "warn",
            _ => "error",
        },
    })
}

/// Whatever the level: clients of HTTP, AWS and the Runtime API write tokens, presigned queries and complete events into their
/// own lines below `info`. What is below `info` is ours alone.
fn keeps_secrets() -> FilterFn {
    FilterFn::new(|line| *line.level() <= Level::INFO || line.target().starts_with("atelier"))
}

/// What the level lets through, and the span of a job in any case: a list of targets would leave it out, and with it the
/// fields of the lines that it lets through. lapin reports a broken connection in its own words next to ours, so it is silent
/// unless it is named.
fn filter(level: &str) -> EnvFilter {
    let span = format!("{}=error", crate::job::trace::SPAN_TARGET);
    let own = [span.as_str(), "lapin=off"].map(str::parse::<Directive>);
    let names_lapin = split(level).iter().any(|directive| directive.trim_start().starts_with("lapin"));
    let own = own.into_iter().flatten().take(if names_lapin { 1 } else { 2 });
    own.fold(EnvFilter::new(level), EnvFilter::add_directive)
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
    fn at_no_level_do_the_clients_report_what_they_send() {
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

    #[test]
    fn levels_have_pythons_names_and_numbers_in_any_case() {
        for (text, expected) in [
            ("", None),
            ("  ", None),
            ("WARNING", Some("warn")),
            ("Warn", Some("warn")),
            ("CRITICAL", Some("error")),
            ("fatal", Some("error")),
            ("NOTSET", Some("trace")),
            ("5", Some("trace")),
            ("10", Some("debug")),
            ("20", Some("info")),
            ("25", Some("warn")),
            ("30", Some("warn")),
            ("40", Some("error")),
            ("50", Some("error")),
            ("OFF", Some("off")),
            (" Info , atelier=DEBUG ", Some("info,atelier=debug")),
            ("warning,atelier::host=20", Some("warn,atelier::host=info")),
            ("atelier::host", Some("atelier::host")),
            ("info,atelier[job{job_id=a,source=sqs}]=trace", Some("info,atelier[job{job_id=a,source=sqs}]=trace")),
        ] {
            assert_eq!(directives(text).unwrap().as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused_in_words() {
        for text in ["wanring", "verbose", "info,atelir", "atelier=loud", "-10", "atelier", "yes", "info;debug", "a=b=c"] {
            let problem = directives(text).expect_err(text);
            assert!(problem.contains("warning") && problem.contains("info,atelier::host=debug"), "{problem}");
        }
    }

    #[test]
    fn lapin_is_silent_at_every_level_unless_it_is_named() {
        let logged = || {
            tracing::error!(target: "lapin::channels", "closed");
            tracing::error!(target: "atelier", "ours");
        };
        for level in ["trace", "info", "error", "info,atelier=debug"] {
            let messages: Vec<_> = lines(level, logged).iter().map(|line| line["message"].clone()).collect();
            assert_eq!(messages, ["ours"], "{level}");
        }
        assert_eq!(lines("info,lapin=error", logged).len(), 2);
    }
}
