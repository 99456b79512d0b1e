//! Faults of the processes: handlers and hosts that are killed, ended, or die over a job.

use std::path::Path;

use rustix::process::Signal;
use serde_json::json;

use super::campaign::{Campaign, body};
use super::{jobs, report};
use crate::host::{PYTHON_FUNCTION, is_alive, python_function, signal};
use crate::servers::packages;

#[tokio::test]
async fn handler_kill_9() {
    let mut campaign = Campaign::start("handler kill -9", &[], &["--handlers", "2"]).await;
    campaign.hand_in_all(jobs()).await;
    while campaign.notified() < jobs() * 3 / 4 {
        campaign.a_moment(700).await;
        if let Some(pid) = campaign.host.handlers().into_iter().rfind(|pid| is_alive(*pid)) {
            signal(Signal::KILL, pid);
        }
    }
    campaign.acknowledge().await;
    let died = campaign.host.logged("a handler ended; another is started after a pause").len();
    assert!(died > 0, "no handler was killed\n{}", campaign.host.log());
    report(&campaign.row());
}

#[tokio::test]
async fn host_kill_9() {
    let mut campaign = Campaign::start("host kill -9", &[], &[]).await;
    for number in 0..jobs() {
        campaign.hand_in(&format!("job-{number}")).await;
        if number % 4 == 3 {
            campaign.a_moment(400).await;
            campaign.host.kill();
            campaign.host.restart();
        }
    }
    campaign.acknowledge().await;
    report(&campaign.row());
}

#[tokio::test]
async fn sigterm_in_the_middle() {
    let mut campaign = Campaign::start("SIGTERM to the host", &[], &["--drain-seconds", "0"]).await;
    for number in 0..jobs() {
        campaign.hand_in(&format!("job-{number}")).await;
        if number % 7 == 6 {
            campaign.a_moment(200).await;
            campaign.host.terminate();
            assert!(campaign.host.ended().await.success(), "{}", campaign.host.log());
            campaign.host.restart();
        }
    }
    campaign.acknowledge().await;
    report(&campaign.row());
}

#[tokio::test]
async fn poison() {
    let Some(function) = python_function("jobs that kill their handler") else { return };
    let arguments: Vec<&str> = function.iter().map(String::as_str).collect();
    let changes = [("ATELIER__RUNTIME__MAX_ATTEMPTS", "3")];
    let mut campaign = Campaign::start("poison jobs", &changes, &arguments).await;
    assert!(Path::new(PYTHON_FUNCTION).exists());
    campaign.host.kill();
    for number in 0..jobs().div_ceil(5) {
        let id = format!("poison-{number}");
        let mut poison = body(&id);
        poison["prompt"] = json!("die");
        campaign.host.spool(&id, &poison);
        campaign.expect(&id);
    }
    campaign.host.restart();
    campaign.acknowledge().await;
    let row = campaign.row();
    assert_eq!(row.complete, 0);
    assert_eq!(campaign.host.spooled("dead").len(), 2 * row.jobs, "each with its reason");
    report(&row);
}

/// Everyone's clock is set forth and back by ten minutes, ten times as long as a job may take, once within each job.
#[tokio::test]
async fn clock_jumps() {
    let faketime = packages::faketime();
    if !packages::are_there("clocks that jump", std::slice::from_ref(&faketime)) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let clock = directory.path().join("clock");
    std::fs::write(&clock, "+0").unwrap();
    let changes = [
        ("LD_PRELOAD", faketime.to_str().unwrap()),
        ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        (
            "ATELIER__HOST__HANDLER__ENVIRONMENT",
            "[LD_PRELOAD, FAKETIME_TIMESTAMP_FILE, FAKETIME_NO_CACHE, FAKETIME_DONT_FAKE_MONOTONIC]",
        ),
        ("ATELIER__HOST__HANDLER__JOB_TIMEOUT_MS", "60000"),
    ];
    let mut campaign = Campaign::start("clock jumps by ten minutes", &changes, &[]).await;
    for number in 0..jobs() {
        campaign.hand_in(&format!("job-{number}")).await;
        let jump = ["+600", "+0", "-600", "+0"][number % 4];
        std::fs::write(&clock, jump).unwrap();
        campaign.all_reported().await;
    }
    campaign.acknowledge().await;
    let times: Vec<String> = campaign.host.logged("job done").iter().map(|line| line["timestamp"].to_string()).collect();
    assert!(!times.is_sorted(), "the clock never jumped: {times:?}");
    report(&campaign.row());
}
