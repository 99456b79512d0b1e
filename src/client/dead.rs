//! `atelier dead`: the messages that failed for good, listed, shown, sent again and removed.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{bail, ensure};
use serde_json::{Value, json};

use super::bucket_dead_letters::BucketDeadLetters;
use crate::config::{Config, Environment};
use crate::host::source::SourceError;
use crate::host::source::dead_letters::{DeadLetter, DeadLetters, Decision, Operator};
use crate::host::source::rabbitmq::dead_letters::RabbitMqDeadLetters;
use crate::host::source::spool::dead_letters::SpoolDeadLetters;
use crate::host::source::sqs::dead_letters::SqsDeadLetters;
use crate::job::JobId;
use crate::shown;
use crate::start::command::line;

#[derive(clap::Args)]
pub struct Options {
    /// Only of this source; `bucket`: what a function on Lambda refused of Amazon MQ's messages [default: each queue that is configured, and the
    /// spool where there is one]
    #[arg(long, value_name = "sqs|rabbitmq|spool|bucket", global = true)]
    from: Option<Place>,
    /// RabbitMQ's queue of dead letters [default: the name of the queue of jobs and `.dead`]
    #[arg(long, value_name = "QUEUE", global = true)]
    dead_queue: Option<String>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Place {
    Sqs,
    Rabbitmq,
    Spool,
    /// `dead/` in the bucket of the configuration. Only where it is named: a host has nothing there, and may not list it.
    Bucket,
}

#[derive(clap::Subcommand)]
enum What {
    /// One line each: source, own id, job, when it was sent, why it failed.
    List,
    /// All that is known of a message, as JSON.
    Show {
        /// A message's own id, or the id of its job
        id: String,
    },
    /// Send messages again, with all their attempts.
    Retry(Which),
    /// Remove messages for good.
    Purge(Which),
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Messages by their own ids, or by the ids of their jobs
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// All that are there now
    #[arg(long)]
    all: bool,
}

impl What {
    /// What the command line names.
    fn names(&self) -> impl Iterator<Item = &str> {
        let names = match self {
            Self::List => &[],
            Self::Show { id } => std::slice::from_ref(id),
            Self::Retry(which) | Self::Purge(which) => which.ids.as_slice(),
        };
        names.iter().map(String::as_str)
    }

    fn is_meant(&self, letter: &DeadLetter) -> bool {
        match self {
            Self::List => true,
            Self::Retry(which) | Self::Purge(which) if which.all => true,
            _ => self.names().any(|name| letter.is_called(name)),
        }
    }
}

/// Goes through the dead letters of each source.
///
/// # Errors
/// When a source cannot be asked, or has no message of that name. What was done until then is printed.
pub async fn run(options: &Options, config: Option<&Path>, environment: &Environment) -> anyhow::Result<()> {
    let config = Config::load(config, environment)?;
    let unmet = options.what.names().collect();
    let mut visit = Visit { what: &options.what, source: "", unmet, problems: Vec::new(), unwritten: None };
    let mut places = Vec::new();
    for place in wanted(options, &config)? {
        match open(place, options, &config).await {
            Ok(letters) => {
                places.push(format!("{} ({})", letters.source(), letters.place()));
                visit.source = letters.source();
                let gone_through = letters.go_through(&mut visit).await;
                visit.problems.extend(gone_through.err().map(anyhow::Error::from));
            }
            Err(error) => visit.problems.push(error),
        }
    }
    if let Some(error) = visit.unwritten {
        return Err(error.into());
    }
    ensure!(visit.problems.is_empty(), "{}", visit.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
    ensure!(
        visit.unmet.is_empty(),
        "no dead letter is called {} in {}, unless somebody else looks at it now; `atelier dead list` names them",
        visit.unmet.into_iter().map(shown::text).collect::<Vec<_>>().join(", "),
        places.join(", ")
    );
    Ok(())
}

/// `--from`, else all that may have any.
fn wanted(options: &Options, config: &Config) -> anyhow::Result<Vec<Place>> {
    if let Some(place) = options.from {
        return Ok(vec![place]);
    }
    let sources = &config.sources;
    let configured = [
        (Place::Sqs, sources.sqs.queue_url.is_some()),
        (Place::Rabbitmq, sources.rabbitmq.broker().is_some()),
        (Place::Spool, SpoolDeadLetters::new(&sources.spool).is_there()),
    ];
    let places: Vec<Place> = configured.into_iter().filter(|(_, is_on)| *is_on).map(|(place, _)| place).collect();
    if places.is_empty() {
        let directory = sources.spool.directory.display();
        bail!(
            "no source is configured (SQS_QUEUE_URL, RABBITMQ_HOST), and there is no spool at {directory} \
             (sources.spool.directory): run this with the host's configuration, in its directory"
        );
    }
    Ok(places)
}

async fn open(place: Place, options: &Options, config: &Config) -> anyhow::Result<Box<dyn DeadLetters>> {
    let sources = &config.sources;
    Ok(match place {
        Place::Sqs => Box::new(SqsDeadLetters::connect(&sources.sqs).await?),
        Place::Rabbitmq => Box::new(RabbitMqDeadLetters::connect(&sources.rabbitmq, options.dead_queue.as_deref()).await?),
        Place::Spool => Box::new(SpoolDeadLetters::new(&sources.spool)),
        Place::Bucket => Box::new(BucketDeadLetters::connect(config).await?),
    })
}

/// One look at all of them, which prints as it goes.
struct Visit<'a> {
    what: &'a What,
    /// Where it is now.
    source: &'static str,
    /// Names of the command line that no letter had until now.
    unmet: Vec<&'a str>,
    /// What could not be done with one of them.
    problems: Vec<anyhow::Error>,
    /// Why nothing more could be printed.
    unwritten: Option<io::Error>,
}

impl Visit<'_> {
    fn met(&mut self, letter: &DeadLetter) {
        self.unmet.retain(|name| !letter.is_called(name));
    }

    fn print(&mut self, text: &str) {
        if let Err(error) = line(text) {
            self.unwritten.get_or_insert(error);
        }
    }
}

impl Operator for Visit<'_> {
    fn decide(&mut self, letter: &DeadLetter) -> Decision {
        if !self.what.is_meant(letter) {
            return Decision::Keep;
        }
        match self.what {
            What::List => self.print(&in_one_line(self.source, letter)),
            What::Show { .. } => {
                self.met(letter);
                self.print(&in_full(self.source, letter));
            }
            What::Retry(_) => return Decision::SendAgain,
            What::Purge(_) => return Decision::Remove,
        }
        Decision::Keep
    }

    fn done(&mut self, letter: &DeadLetter) {
        let what = if matches!(self.what, What::Retry(_)) { "is sent again" } else { "is removed" };
        self.print(&format!("{} {} {} {what}", self.source, in_one_word(&letter.id), job(letter)));
        self.met(letter);
    }

    fn failed(&mut self, letter: &DeadLetter, error: &SourceError) {
        self.met(letter);
        self.problems.push(anyhow::anyhow!("{} {}: {error}", in_one_word(&letter.id), job(letter)));
    }
}

/// The id of its job, where it can be read.
fn job(letter: &DeadLetter) -> &str {
    letter.job_id.as_ref().map_or("-", JobId::as_str)
}

/// A publisher may have chosen the id.
fn in_one_word(id: &str) -> String {
    let is_odd = id.is_empty() || id.contains(|c: char| c.is_whitespace() || c.is_control());
    if is_odd { shown::text(id).replace(' ', "_") } else { id.to_owned() }
}

fn in_one_line(source: &str, letter: &DeadLetter) -> String {
    let reason = letter.reason.as_deref().map_or_else(|| "no reason is given".to_owned(), shown::name);
    let reason = reason.replace(char::is_control, " ");
    let sent = sent(letter).unwrap_or_else(|| "-".into());
    format!("{source} {} {} {sent} {reason}", in_one_word(&letter.id), job(letter))
}

/// The body as it was sent, where it is JSON, else as a text.
fn in_full(source: &str, letter: &DeadLetter) -> String {
    let DeadLetter { id, job_id, reason, body, .. } = letter;
    let text = String::from_utf8_lossy(body);
    let body = if serde_json::from_str::<Value>(&text).is_ok() { text.trim().to_owned() } else { json!(text).to_string() };
    let job_id = job_id.as_ref().map(JobId::as_str);
    let reason = reason.as_deref().map(shown::without_queries);
    let about = [
        ("source", json!(source)),
        ("id", json!(id)),
        ("job_id", json!(job_id)),
        ("sent", json!(sent(letter))),
        ("reason", json!(reason)),
    ];
    let lines: Vec<String> = about.iter().map(|(name, value)| format!("  \"{name}\": {value},\n")).collect();
    format!("{{\n{}  \"body\": {body}\n}}", lines.concat())
}

fn sent(letter: &DeadLetter) -> Option<String> {
    let at = letter.sent?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(shown::moment(at.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_publisher_wrote_is_one_line_with_its_columns() {
        let forged = DeadLetter::new("a b\nspool x job-2 -".into(), b"no job".to_vec());
        let letter = DeadLetter { reason: Some("unlucky\nspool y job-3 - \u{1b}[2Jforged".into()), ..forged };
        let line = in_one_line("rabbitmq", &letter);
        assert!(!line.contains(char::is_control), "{line:?}");
        let columns: Vec<&str> = line.splitn(5, ' ').collect();
        assert_eq!([columns[0], columns[2], columns[3]], ["rabbitmq", "-", "-"], "{line}");
        assert!(columns[1].starts_with("\"a_b") && columns[4].starts_with("unlucky spool y"), "{line}");
    }

    #[test]
    fn a_body_is_shown_as_it_was_sent_and_no_query_of_an_address() {
        let body = r#"{"b": 1.0,  "a": 1e2, "job_id": "job-1"}"#;
        let reason = Some("https://ada.example/image.png?token=secret could not be fetched".to_owned());
        let letter = DeadLetter { reason, ..DeadLetter::new("m-1".into(), body.as_bytes().to_vec()) };
        let shown = in_full("sqs", &letter);
        assert!(shown.ends_with(&format!("  \"body\": {body}\n}}")), "{shown}");
        assert!(!shown.contains("secret") && shown.contains("https://ada.example/image.png"), "{shown}");
        let document: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!((&document["job_id"], &document["sent"]), (&json!("job-1"), &Value::Null));
        let no_json = in_full("sqs", &DeadLetter::new("m-2".into(), b"no \"job\" \xff".to_vec()));
        let document: Value = serde_json::from_str(&no_json).unwrap();
        assert_eq!(document["body"], "no \"job\" \u{fffd}");
    }
}
