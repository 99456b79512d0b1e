//! One job at two hosts: the first is held at a point of the job's life, and meanwhile the other brings it to an end of its own.

use std::time::Duration;

use atelier::fault_point::{POINTS, Process};
use rustix::process::Signal;

use super::aimed::{StoppedAt, hand_in};
use super::campaign::{Campaign, DEFAULT_VALUE};
use super::{Row, keep};
use crate::host::signal;
use crate::host::twins::beside;

/// Longer than any job needs that is not lost.
const WAIT_LIMIT: Duration = Duration::from_mins(2);
/// Longer than a host waits for a record once it has noted a failure.
const AFTERWARDS: Duration = Duration::from_secs(3);

/// What becomes of the job at the other host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    Completes,
    /// Its handler dies before the record, in the only attempt that the job has.
    Fails,
}

/// Every test run has these; `bench/faults --aimed` has all.
const SOME: [(&str, Other); 3] =
    [("before-images", Other::Completes), ("before-record", Other::Fails), ("after-record", Other::Fails)];

/// Both hosts have a spool of their own, and one bucket and one backend together.
async fn aim((point, process): (&str, Process), other: Other) -> Row {
    let directory = tempfile::tempdir().unwrap();
    let held = StoppedAt::new(directory.path(), point);
    let armed = held.armed();
    let once = ("ATELIER__RUNTIME__MAX_ATTEMPTS", "1");
    let mut campaign = Campaign::start("twins", &[once, ("ATELIER_FAULT_POINT", &armed)], &[]).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let dies = StoppedAt::new(elsewhere.path(), "before-record");
    let armed = dies.armed();
    let mut changes = [&DEFAULT_VALUE[..], &[once]].concat();
    if other == Other::Fails {
        changes.push(("ATELIER_FAULT_POINT", &armed));
    }
    let mut second = beside(&campaign.host, &changes).await;
    let asked = tokio::spawn(hand_in(campaign.host.address(), "twin"));
    let reached = held.reached().await;
    reached.unwrap_or_else(|| panic!("{point} was not reached by {process:?}\n{}", campaign.host.log()));
    assert!(hand_in(second.address(), "twin").await, "{}", second.log());
    campaign.expect("twin");
    if other == Other::Fails
        // Where the record is there already, the other host generates nothing.
        && let Ok(Some(pid)) = tokio::time::timeout(AFTERWARDS, dies.reached()).await
    {
        signal(Signal::KILL, pid);
    }
    tokio::time::sleep(AFTERWARDS).await;
    held.release();
    asked.await.unwrap();
    let is_reported = campaign.are_reported_within(WAIT_LIMIT).await;
    // Whatever else is to be said of the job is said by now.
    tokio::time::sleep(AFTERWARDS).await;
    second.terminate();
    let second_ended = second.ended().await.success();
    let is_up = campaign.ends_well(WAIT_LIMIT).await && second_ended && is_reported;
    let row = campaign.row();
    // Both run at once: the images of the one that is late lie beside a record for a moment, and are dropped.
    let attempts_again = row.attempts_again + row.regenerated;
    Row {
        what: format!(
            "{point}: the other host's attempt {} (two spools)",
            if other == Other::Fails { "fails" } else { "completes" }
        ),
        hosts_down: usize::from(!is_up),
        regenerated: 0,
        attempts_again,
        ..row
    }
}

#[tokio::test]
async fn at_points() {
    let asked = crate::servers::environment("ATELIER_FAULTS_AIMED").is_some();
    let all = POINTS.iter().flat_map(|(point, _)| [(*point, Other::Completes), (*point, Other::Fails)]);
    let aims: Vec<_> = if asked { all.collect() } else { SOME.to_vec() };
    let mut off = Vec::new();
    for (name, other) in aims {
        let point = POINTS.into_iter().find(|(point, _)| *point == name).expect("a point of the code");
        let row = aim(point, other).await;
        keep(&row);
        if !row.is_clean() {
            off.push(row);
        }
    }
    assert!(off.is_empty(), "{off:#?}");
}
