//! A soak: two hosts on one broker and one bucket, and everything fails at random, within bounds.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use rustix::process::Signal;

use super::campaign::Campaign;
use super::{Row, report};
use crate::bucket::Trouble;
use crate::host::{HostProcess, is_alive, signal};
use crate::servers::proxy::Proxy;
use crate::servers::rabbitmq;

/// Jobs and the longest time for handing them in: a few in every test run, or `JOBS,SECONDS` of `ATELIER_FAULTS_SOAK`.
fn bounds() -> (usize, Duration) {
    let Some(asked) = crate::servers::environment("ATELIER_FAULTS_SOAK") else { return (8, Duration::from_secs(30)) };
    let asked = asked.into_string().unwrap();
    let (jobs, seconds) = asked.split_once(',').expect("JOBS,SECONDS");
    (jobs.parse().expect("jobs"), Duration::from_secs(seconds.parse().expect("seconds")))
}

/// One fault, over by the time that this returns.
async fn fault(number: u64, first: &mut Campaign, second: &mut HostProcess, proxy: &Proxy) {
    let a_while = Duration::from_millis(500 + number % 1_500);
    let host = if number.is_multiple_of(2) { &mut first.host } else { &mut *second };
    match number % 7 {
        0 => {
            for pid in host.handlers().into_iter().filter(|pid| is_alive(*pid)) {
                signal(Signal::KILL, pid);
            }
        }
        1 => {
            host.kill();
            host.restart();
        }
        2 => {
            host.terminate();
            assert!(host.ended().await.success(), "{}", host.log());
            host.restart();
        }
        3 => {
            first.host.bucket.trouble(Trouble::Away);
            tokio::time::sleep(a_while).await;
            first.host.bucket.trouble(Trouble::None);
        }
        4 => {
            first.host.backend.answer.send_replace(Some(StatusCode::SERVICE_UNAVAILABLE));
            tokio::time::sleep(a_while).await;
            first.host.backend.answer.send_replace(Some(StatusCode::OK));
        }
        5 => proxy.cut().await,
        _ => {
            proxy.go_away().await;
            tokio::time::sleep(a_while).await;
            proxy.come_back();
        }
    }
}

#[tokio::test]
async fn two_hosts() {
    let Some(node) = rabbitmq::shared_or_skip("a soak").await else { return };
    let proxy = Proxy::start(([127, 0, 0, 1], node.port).into()).await;
    let queue = format!("soak-{}", std::process::id());
    let port = proxy.address.port().to_string();
    let changes = [
        ("RABBITMQ_HOST", "127.0.0.1"),
        ("RABBITMQ_PORT", port.as_str()),
        ("ATELIER__SOURCES__RABBITMQ__QUEUE", queue.as_str()),
        ("ATELIER__SOURCES__RABBITMQ__DECLARE", "true"),
        ("ATELIER__SOURCES__RABBITMQ__HEARTBEAT_SECONDS", "5"),
    ];
    let mut first = Campaign::start("soak", &changes, &[]).await;
    let bucket = format!("http://{}", first.host.bucket.address);
    let backend = format!("http://{}", first.host.backend.address);
    let same = [("ATELIER__STORE__ENDPOINT_URL", bucket.as_str()), ("BACKEND_API_URL", backend.as_str())];
    let mut second = HostProcess::start(&[&super::campaign::DEFAULT_VALUE[..], &changes, &same].concat(), &[]).await;
    let (jobs, limit) = bounds();
    let started = Instant::now();
    let mut faults = 0;
    for number in 0..jobs {
        first.hand_in(&format!("job-{number}")).await;
        if number % 4 == 3 {
            let dice = first.dice();
            fault(dice, &mut first, &mut second, &proxy).await;
            faults += 1;
        }
        if started.elapsed() > limit {
            break;
        }
    }
    let is_reported = first.are_reported_within(limit + Duration::from_mins(5)).await;
    // The last fault may have been a restart: who is asked to end before it could listen to that was not down.
    first.host.ready().await;
    second.ready().await;
    second.terminate();
    let second_ended = second.ended().await.success();
    let is_up = first.ends_well(Duration::from_mins(1)).await && second_ended;
    let row = first.row();
    let what = format!(
        "soak: two hosts, {faults} faults, {} s{}",
        started.elapsed().as_secs(),
        if is_reported { "" } else { ", not all told" }
    );
    report(&Row { what, hosts_down: usize::from(!is_up), ..row });
}
