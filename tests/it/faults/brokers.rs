//! Faults of the queues: brokers that restart, connections that break, messages that come twice.

use rustix::process::Signal;

use super::campaign::{Campaign, body};
use super::{jobs, report};
use crate::host::sqs::Bench;
use crate::host::{is_alive, signal};
use crate::servers::proxy::Proxy;
use crate::servers::rabbitmq;

/// What a host needs to take its jobs from a RabbitMQ node on this port.
fn rabbit(port: u16, queue: &str) -> [(&'static str, String); 5] {
    [
        ("RABBITMQ_HOST", "127.0.0.1".into()),
        ("RABBITMQ_PORT", port.to_string()),
        ("ATELIER__SOURCES__RABBITMQ__QUEUE", queue.into()),
        ("ATELIER__SOURCES__RABBITMQ__DECLARE", "true".into()),
        ("ATELIER__SOURCES__RABBITMQ__HEARTBEAT_SECONDS", "5".into()),
    ]
}

async fn start(what: &'static str, changes: &[(&'static str, String)]) -> Campaign {
    let changes: Vec<_> = changes.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Campaign::start(what, &changes, &[]).await
}

#[tokio::test]
async fn broker_restart() {
    let Some(mut node) = rabbitmq::own_or_skip("a broker that restarts", "").await else { return };
    let mut campaign = start("RabbitMQ restarts", &rabbit(node.port, "restarts")).await;
    for number in 0..jobs() {
        campaign.hand_in(&format!("job-{number}")).await;
        if number == jobs() / 2 {
            campaign.a_moment(300).await;
            node.stop().await;
            node.start_again().await;
        }
    }
    campaign.acknowledge().await;
    report(&campaign.row());
}

#[tokio::test]
async fn broker_connection_cut() {
    let Some(node) = rabbitmq::shared_or_skip("connections that are cut").await else { return };
    let proxy = Proxy::start(([127, 0, 0, 1], node.port).into()).await;
    let mut campaign = start("RabbitMQ connection cut", &rabbit(proxy.address.port(), "cuts")).await;
    for number in 0..jobs() {
        campaign.hand_in(&format!("job-{number}")).await;
        if number % 5 == 4 {
            campaign.a_moment(300).await;
            proxy.cut().await;
        }
    }
    campaign.acknowledge().await;
    report(&campaign.row());
}

#[tokio::test]
async fn broker_and_handler_kill_9() {
    let Some(node) = rabbitmq::shared_or_skip("handlers that are killed next to a broker").await else { return };
    let mut campaign = start("RabbitMQ, handler kill -9", &rabbit(node.port, "kills")).await;
    campaign.hand_in_all(jobs()).await;
    while campaign.notified() < jobs() / 2 {
        campaign.a_moment(2_000).await;
        if let Some(pid) = campaign.host.handlers().into_iter().rfind(|pid| is_alive(*pid)) {
            signal(Signal::KILL, pid);
        }
    }
    campaign.acknowledge().await;
    report(&campaign.row());
}

#[tokio::test]
async fn duplicate_deliveries() {
    let Some(bench) = Bench::start("messages that come more than once").await else { return };
    let url = bench.queue("duplicates", &[]).await;
    let changes = [("SQS_QUEUE_URL", url.clone()), ("ATELIER__SOURCES__SQS__WAIT_SECONDS", "1".into())];
    let mut campaign = start("SQS delivers each job three times", &changes).await;
    for number in 0..jobs() {
        let id = format!("job-{number}");
        for _ in 0..3 {
            bench.send(&url, &body(&id)).await;
        }
        campaign.expect(&id);
    }
    bench.emptied(&url).await;
    campaign.acknowledge().await;
    let row = campaign.row();
    assert!(campaign.host.backend.accepted().len() >= 3 * row.jobs, "each delivery notified its caller");
    report(&row);
}

#[tokio::test]
async fn sqs_and_host_kill_9() {
    let Some(bench) = Bench::start("a host on SQS that is killed").await else { return };
    let url = bench.queue("host-kills", &[]).await;
    let changes = [
        ("SQS_QUEUE_URL", url.clone()),
        ("ATELIER__SOURCES__SQS__WAIT_SECONDS", "1".into()),
        ("ATELIER__SOURCES__SQS__VISIBILITY_SECONDS", "2".into()),
    ];
    let mut campaign = start("SQS, host kill -9", &changes).await;
    for number in 0..jobs() {
        campaign.hand_in(&format!("job-{number}")).await;
        if number % 7 == 6 {
            campaign.a_moment(400).await;
            campaign.host.kill();
            campaign.host.restart();
        }
    }
    campaign.acknowledge().await;
    report(&campaign.row());
}
