//! Which broker, which queue, and how much of it at once: section `sources.rabbitmq`.

use std::path::PathBuf;

use serde::Deserialize;

use crate::authorities;
use crate::setting::{Secret, SettingError};

/// What RabbitMQ allows for a name, less what `.retry.3600000` and the like add to it.
const MAX_QUEUE_NAME_BYTES: usize = 230;
const MAX_NAME_BYTES: usize = 255;

/// Settings of section `sources.rabbitmq`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Name or address of the broker. Without it this source is off.
    pub host: Option<String>,
    pub port: u16,
    pub user: String,
    pub password: Secret,
    pub vhost: String,
    /// The queue of jobs.
    pub queue: String,
    /// true: make the queue (quorum) with its dead-letter exchange and queue. false: use the queue as it is found; the
    /// small queues that messages wait in between two attempts are still made when the first one is needed.
    pub declare: bool,
    /// TLS to the broker, whose certificate must be for `host`; its port is usually 5671.
    pub tls: bool,
    /// PEM file with certificates of authorities to trust next to the system's.
    pub ca_file: Option<PathBuf>,
    /// Messages that this process may hold at once, those that wait for a handler included; 1 to 65535.
    pub prefetch: u16,
    /// Seconds between signs of life, 1 to 600; a connection that is silent for two of them is abandoned.
    pub heartbeat_seconds: u16,
    /// Milliseconds for a connection from the first packet until the broker has let us in.
    pub connect_timeout_ms: u64,
    /// Seconds after which the broker takes back a message that is not settled: its own `consumer_timeout`. A message that
    /// waits here for half as long is handed back before.
    pub consumer_timeout_seconds: u64,
    /// true: refused messages are dead-lettered even when their sender was notified; else only those that no one could be notified of.
    pub keep_refused: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            host: None,
            port: 5672,
            user: "guest".into(),
            password: Secret::new("guest"),
            vhost: "/".into(),
            queue: "image_generation".into(),
            declare: false,
            tls: false,
            ca_file: None,
            prefetch: 10,
            heartbeat_seconds: 30,
            connect_timeout_ms: 10_000,
            consumer_timeout_seconds: 1800,
            keep_refused: false,
        }
    }
}

impl Settings {
    /// The broker, where one is set.
    #[must_use]
    pub fn broker(&self) -> Option<&str> {
        self.host.as_deref().filter(|host| !host.is_empty())
    }

    /// The certificates of `ca_file`, as PEM.
    pub(super) fn authorities(&self) -> Result<Option<String>, SettingError> {
        let bundled = authorities::bundled().filter(|_| self.tls);
        let Some(file) = &self.ca_file else { return Ok(bundled) };
        let wrong = |problem: &str| SettingError::new("sources.rabbitmq.ca_file", format!("{}: {problem}", file.display()));
        let pem = std::fs::read_to_string(file).map_err(|error| wrong(&format!("cannot be read ({error})")))?;
        if pem.contains("-----BEGIN CERTIFICATE-----") {
            Ok(Some(bundled.unwrap_or_default() + &pem))
        } else {
            Err(wrong("must hold certificates in PEM form (-----BEGIN CERTIFICATE-----)"))
        }
    }

    pub(super) fn check(&self) -> Result<(), SettingError> {
        let wrong = |key: &str, problem: String| Err(SettingError::new(&format!("sources.rabbitmq.{key}"), problem));
        if self.broker().is_none() {
            return wrong("host", "must name the broker (RABBITMQ_HOST)".into());
        }
        if let Some(problem) = self.broker().and_then(no_host) {
            return wrong("host", problem);
        }
        let queue = self.queue.len();
        if queue == 0 || queue > MAX_QUEUE_NAME_BYTES {
            return wrong("queue", format!("must have 1 to {MAX_QUEUE_NAME_BYTES} bytes, got {queue}"));
        }
        if self.vhost.is_empty() || self.vhost.len() > MAX_NAME_BYTES {
            return wrong("vhost", format!("must have 1 to {MAX_NAME_BYTES} bytes, got {}", self.vhost.len()));
        }
        if self.prefetch == 0 {
            return wrong("prefetch", "must be 1 to 65535 (0 would take the whole queue at once)".into());
        }
        if !(1..=600).contains(&self.heartbeat_seconds) {
            return wrong("heartbeat_seconds", format!("must be 1 to 600 seconds, got {}", self.heartbeat_seconds));
        }
        if self.connect_timeout_ms == 0 {
            return wrong("connect_timeout_ms", "must be at least 1 millisecond".into());
        }
        if self.consumer_timeout_seconds < 2 {
            return wrong(
                "consumer_timeout_seconds",
                format!("must be at least 2 seconds, got {}", self.consumer_timeout_seconds),
            );
        }
        if self.ca_file.is_some() && !self.tls {
            return wrong("ca_file", "needs `tls: true`".into());
        }
        Ok(())
    }
}

/// Why a text is no name or address of a host. It may be a URL with a password in it, so it is not shown.
fn no_host(text: &str) -> Option<String> {
    let others = "sources.rabbitmq.port, user, password, vhost and tls (RABBITMQ_PORT, RABBITMQ_USER, RABBITMQ_PASS)";
    if text.contains("://") || text.contains('@') || text.contains('/') {
        return Some(format!(
            "must be the broker's name or address alone, not a URL; what else the URL says belongs into {others}"
        ));
    }
    let is_plain = !text.contains(char::is_whitespace) && (!text.contains(':') || text.parse::<std::net::Ipv6Addr>().is_ok());
    (!is_plain).then(|| {
        format!("must be the broker's name or address alone, without a port or spaces; the port belongs into {others}")
    })
}
