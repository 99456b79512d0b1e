//! How far this machine's clock is from those of the servers that judge signatures by time.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use reqwest::header::DATE;

use super::finding::Finding;
use super::within;
use crate::config::Config;

const CHECK: &str = "clock";
/// A clock that is kept is off by less than a second, and the header has whole ones.
const OFF: Duration = Duration::from_mins(1);
/// Receivers of webhooks refuse what is older, S3 and SQS after fifteen minutes.
const FAR_OFF: Duration = Duration::from_mins(5);
const HOW: &str = "keep the clock by NTP (chronyd, systemd-timesyncd); look at the host of a virtual machine as well";

pub(super) async fn check(config: &Config, limit: Duration) -> Vec<Finding> {
    let mut servers = vec![("S3", tokio::time::timeout(limit, s3(config)).await.unwrap_or_default())];
    if config.sources.sqs.queue_url.is_some()
        && let Ok(server) = config.sources.sqs.server()
    {
        servers.push(("SQS", server));
    }
    let asked = servers.iter().map(|(name, server)| within(limit, CHECK, compare(name, server)));
    join_all(asked).await
}

/// The server that the bucket is asked of. Any answer of it has a date, a refusal as well.
async fn s3(config: &Config) -> String {
    if let Some(endpoint) = &config.store.endpoint_url {
        return endpoint.clone();
    }
    let shared = config.store.access().load().await.ok();
    let region = shared.as_ref().and_then(|shared| shared.region()).map_or("us-east-1", |region| region.as_ref()).to_owned();
    format!("https://s3.{region}.amazonaws.com/")
}

async fn compare(name: &str, server: &str) -> Finding {
    // A certificate is judged by the very clock that is in question, and nothing secret is sent.
    let client = crate::authorities::client().redirect(reqwest::redirect::Policy::none()).tls_danger_accept_invalid_certs(true);
    let answer = match client.build() {
        Ok(client) => client.head(server).send().await,
        Err(error) => Err(error),
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) if error.is_builder() => return Finding::skip(CHECK, format!("{name} has no address to ask")),
        Err(_) => return Finding::skip(CHECK, format!("{name} could not be asked for its time")),
    };
    let date = answer.headers().get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    date.map_or_else(|| Finding::skip(CHECK, format!("{name} says no time")), |date| judge(name, date, SystemTime::now()))
}

fn judge(name: &str, theirs: SystemTime, ours: SystemTime) -> Finding {
    let (off, word) = match ours.duration_since(theirs) {
        Ok(off) => (off, "ahead of"),
        Err(error) => (error.duration(), "behind"),
    };
    let found = format!("{} s {word} that of {name}", off.as_secs());
    if off > FAR_OFF {
        Finding::fail(CHECK, format!("{found}: receivers refuse webhooks after 5 minutes, AWS requests after 15"), HOW)
    } else if off > OFF {
        Finding::warn(CHECK, found, HOW)
    } else {
        Finding::ok(CHECK, found)
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    #[test]
    fn a_minute_is_a_warning_and_five_are_a_failure_either_way() {
        let ours = SystemTime::now();
        for (off_s, state) in [(0, State::Ok), (60, State::Ok), (61, State::Warn), (300, State::Warn), (301, State::Fail)] {
            let off = Duration::from_secs(off_s);
            assert_eq!(judge("S3", ours - off, ours).state, state, "{off_s} s behind");
            assert_eq!(judge("S3", ours + off, ours).state, state, "{off_s} s ahead");
        }
    }
}
