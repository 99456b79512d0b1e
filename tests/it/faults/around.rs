//! Faults around the host: the bucket, the webhooks' receiver, the spool's disk.

use std::process::Command;
use std::time::{Duration, Instant};

use reqwest::StatusCode;

use super::campaign::Campaign;
use super::{Row, jobs, report};
use crate::bucket::Trouble;
use crate::host::WAIT_LIMIT;

/// Half of the jobs meet the bucket in trouble, the rest come after.
async fn with_bucket(what: &'static str, trouble: Trouble, changes: &[(&str, &str)]) -> Row {
    let mut campaign = Campaign::start(what, changes, &[]).await;
    campaign.host.bucket.trouble(trouble);
    campaign.hand_in_all(jobs()).await;
    let deadline = Instant::now() + WAIT_LIMIT;
    while campaign.notified() < jobs() / 2 && trouble != Trouble::Slow(STALL) {
        assert!(Instant::now() < deadline, "no way through: {} notified\n{}", campaign.notified(), campaign.host.log());
        campaign.a_moment(50).await;
    }
    campaign.a_moment(2_000).await;
    campaign.host.bucket.trouble(Trouble::None);
    campaign.acknowledge().await;
    campaign.row()
}

/// Longer than the store waits for an answer in these campaigns.
const STALL: Duration = Duration::from_secs(3);

#[tokio::test]
async fn s3_errors() {
    report(&with_bucket("S3 answers 500", Trouble::Errors, &[]).await);
}

#[tokio::test]
async fn s3_slow() {
    report(&with_bucket("S3 is slow", Trouble::Slow(Duration::from_millis(150)), &[]).await);
}

#[tokio::test]
async fn s3_timeouts() {
    let short = [("ATELIER__STORE__ATTEMPT_TIMEOUT_MS", "200"), ("ATELIER__STORE__OPERATION_TIMEOUT_MS", "500")];
    report(&with_bucket("S3 times out", Trouble::Slow(STALL), &short).await);
}

async fn with_webhooks(what: &'static str, answer: Option<StatusCode>) -> Row {
    let mut campaign = Campaign::start(what, &[], &[]).await;
    campaign.host.backend.answer.send_replace(answer);
    campaign.hand_in_all(jobs()).await;
    while campaign.host.bucket.puts("/result.json") < jobs() / 2 {
        campaign.a_moment(50).await;
    }
    campaign.a_moment(1_000).await;
    assert_eq!(campaign.notified(), 0, "no one took a notification yet");
    campaign.host.backend.answer.send_replace(Some(StatusCode::OK));
    campaign.acknowledge().await;
    campaign.row()
}

#[tokio::test]
async fn webhook_errors() {
    report(&with_webhooks("webhook answers 500", Some(StatusCode::INTERNAL_SERVER_ERROR)).await);
}

#[tokio::test]
async fn webhook_hangs() {
    report(&with_webhooks("webhook never answers", None).await);
}

#[tokio::test]
async fn webhook_redirects() {
    report(&with_webhooks("webhook redirects", Some(StatusCode::FOUND)).await);
}

/// A file system of its own for the spool, which only root may make.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(directory.path());
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        if !mounted {
            crate::servers::left_out("a full disk", "mounting a file system needs root");
        }
        mounted.then_some(Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn spool_disk_full() {
    let Some(disk) = SmallDisk::mount() else { return };
    let spool = disk.0.path().join("spool").display().to_string();
    let mut campaign = Campaign::start("disk full for the spool", &[("ATELIER__SOURCES__SPOOL__DIRECTORY", &spool)], &[]).await;
    let ballast = disk.0.path().join("ballast");
    // Writes until there is no room any more.
    let _ = std::fs::write(&ballast, vec![b'x'; 1 << 20]);
    for number in 0..jobs() {
        let status = campaign.try_hand_in(&format!("refused-{number}")).await;
        assert_eq!(status, Some(StatusCode::SERVICE_UNAVAILABLE), "nothing is accepted that is not on the disk");
    }
    std::fs::remove_file(&ballast).unwrap();
    campaign.hand_in_all(jobs()).await;
    campaign.acknowledge().await;
    let row = campaign.row();
    assert_eq!(row.complete, jobs(), "and nothing of what was refused turned up");
    report(&row);
}
