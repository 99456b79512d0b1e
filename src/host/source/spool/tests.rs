//! A spool on a real disk: what is damaged, late, deferred or gone.

use std::fs;

use super::*;

const MAX_PAUSE: Duration = Duration::from_mins(5);

fn open(directory: &std::path::Path) -> Spool {
    Spool::open(&Settings { directory: directory.to_owned(), keep_refused: false }, MAX_PAUSE).unwrap()
}

fn files(directory: &std::path::Path, state: &str) -> Vec<PathBuf> {
    fs::read_dir(directory.join(state)).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test]
async fn a_job_that_cannot_be_read_now_waits_on_and_comes_later() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(directory.path());
    spool.send("job-1", b"{}", None).await.unwrap();
    let file = files(directory.path(), "waiting").pop().unwrap();
    // As a lack of descriptors does: it can be moved, but not read.
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(matches!(spool.receive(1).await, Err(SourceError::Unavailable { .. })));
    assert!(files(directory.path(), "running").is_empty());
    fs::remove_dir(&file).unwrap();
    fs::write(&file, b"{}").unwrap();
    let messages = spool.receive(1).await.unwrap();
    assert_eq!((messages.len(), messages[0].attempt), (1, 1));
}

#[tokio::test]
async fn what_cannot_be_taken_out_of_the_dead_letters_holds_nothing_else_up() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    let again = directory.path().join("again");
    fs::create_dir_all(&again).unwrap();
    let [stuck, other] = ["job-1", "job-2"].map(|id| Name::new(id, None, SystemTime::now()).to_string());
    for name in [&stuck, &other] {
        fs::write(again.join(name), b"{}").unwrap();
    }
    // A file takes no directory's place.
    fs::create_dir(directory.path().join("waiting").join(&stuck)).unwrap();
    drop(open(directory.path()));
    assert_eq!(files(directory.path(), "again"), [again.join(&stuck)]);
    assert!(directory.path().join("waiting").join(&other).is_file());
}

#[tokio::test]
async fn what_was_half_written_is_no_job() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    let now = Name::new("job-1", None, SystemTime::now());
    fs::write(directory.path().join("waiting").join(format!("{now}{}", name::PARTIAL)), b"{\"job_id\":").unwrap();
    let spool = open(directory.path());
    assert_eq!(spool.depth().await.unwrap().waiting, 0);
    assert!(files(directory.path(), "waiting").is_empty());
    spool.send("job.partial", b"{}", None).await.unwrap();
    drop(spool);
    assert_eq!(open(directory.path()).depth().await.unwrap().waiting, 1, "a job may be called so");
}

#[tokio::test]
async fn a_retry_of_a_clock_that_was_ahead_waits_no_longer_than_any_other() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    let mut name = Name::new("job-1", None, SystemTime::now());
    name.due(later(SystemTime::now(), Duration::from_hours(10 * 365 * 24)));
    fs::write(directory.path().join("waiting").join(name.to_string()), b"{}").unwrap();
    let spool = open(directory.path());
    let left = spool.index().first().unwrap().due.saturating_duration_since(Instant::now());
    assert!(left <= MAX_PAUSE, "{left:?}");
}

#[tokio::test]
async fn what_is_deferred_survives_kill_9_as_the_same_attempt_and_waits_no_longer_than_it_may() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(directory.path());
    spool.send("job-1", b"{}", None).await.unwrap();
    spool.retry(&spool.receive(1).await.unwrap().remove(0), Duration::ZERO).await.unwrap();
    let message = spool.receive(1).await.unwrap().remove(0);
    assert_eq!((message.attempt, message.deferral), (2, None));
    spool.defer(&message, Duration::from_hours(20_000), DeferReason::StoreUnavailable).await.unwrap();
    assert!(files(directory.path(), "running").is_empty());
    drop(spool);

    let spool = open(directory.path());
    let left = spool.index().first().unwrap().due.saturating_duration_since(Instant::now());
    assert!(left <= MAX_PAUSE && left > Duration::from_mins(4), "{left:?}");
    let mut soon = spool.index().pop_first().unwrap();
    soon.due = Instant::now();
    spool.index().insert(soon);
    let again = spool.receive(1).await.unwrap().remove(0);
    let deferral = again.deferral.expect("why it waited");
    assert_eq!((again.attempt, deferral.reason), (2, DeferReason::StoreUnavailable));
    assert!(deferral.waited(SystemTime::now()) < Duration::from_mins(2));
    spool.defer(&again, Duration::ZERO, DeferReason::StoreUnavailable).await.unwrap();
    let third = spool.receive(1).await.unwrap().remove(0);
    assert_eq!((third.attempt, third.deferral), (2, Some(deferral)), "it has waited since then");
    spool.retry(&third, Duration::ZERO).await.unwrap();
    let failed = spool.receive(1).await.unwrap().remove(0);
    assert_eq!((failed.attempt, failed.deferral), (3, None));
    spool.dead_letter(&failed, "no luck").await.unwrap();
    assert_eq!(files(directory.path(), "dead").len(), 2);
}

#[tokio::test]
async fn how_a_job_ended_goes_along_with_it_until_it_is_settled() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(directory.path());
    spool.send("job-1", b"{}", None).await.unwrap();
    let mut ended = EndedJob::complete(1);
    ended.waited(Duration::from_mins(5));
    let message = Message { ended: Some(ended.clone()), ..spool.receive(1).await.unwrap().remove(0) };
    spool.defer(&message, Duration::ZERO, DeferReason::NotificationUndelivered).await.unwrap();
    drop(spool);
    fs::write(directory.path().join("ended/of-another"), "{}").unwrap();
    let spool = open(directory.path());
    assert_eq!(files(directory.path(), "ended").len(), 1, "the other one's job is not there");
    let message = spool.receive(1).await.unwrap().remove(0);
    assert_eq!(message.ended, Some(ended));
    spool.dead_letter(&message, "webhook_failed").await.unwrap();
    assert_eq!(files(directory.path(), "ended").len(), 1, "it is told again when it is sent again");
    spool.send("job-2", b"{}", None).await.unwrap();
    let message = Message { ended: message.ended, ..spool.receive(1).await.unwrap().remove(0) };
    spool.defer(&message, Duration::ZERO, DeferReason::NotificationUndelivered).await.unwrap();
    spool.ack(&spool.receive(1).await.unwrap()[0]).await.unwrap();
    assert_eq!(files(directory.path(), "ended").len(), 1);
}

/// A disk that is full, read-only or broken for a moment, as the moves see it: `waiting/` takes nothing.
async fn held_back(
    settle: impl AsyncFnOnce(&Spool, &Message) -> Result<(), SourceError>,
) -> (Message, Spool, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(directory.path());
    spool.send("job-1", b"{}", None).await.unwrap();
    let message = spool.receive(1).await.unwrap().remove(0);
    let waiting = directory.path().join("waiting");
    fs::remove_dir(&waiting).unwrap();
    fs::write(&waiting, "no directory").unwrap();
    let error = settle(&spool, &message).await.unwrap_err();
    assert!(matches!(error, SourceError::Unavailable { .. }), "{error}");
    fs::remove_file(&waiting).unwrap();
    fs::create_dir(&waiting).unwrap();
    assert!(spool.trouble().unwrap().contains("os error"), "{:?}", spool.trouble());
    let again = tokio::time::timeout(Duration::from_mins(1), spool.receive(1)).await;
    let again = again.expect("without a restart").unwrap().remove(0);
    assert!(files(directory.path(), "waiting").iter().all(|file| file.to_string_lossy().ends_with(name::PARTIAL)));
    (again, spool, directory)
}

#[tokio::test]
async fn what_the_disk_does_not_put_back_now_comes_back_as_soon_as_it_does() {
    let soon = Duration::from_millis(1);
    let (again, spool, _directory) = held_back(async |spool, message| spool.retry(message, soon).await).await;
    assert_eq!((again.attempt, again.deferral), (2, None));
    let well = async {
        while let Some(trouble) = spool.trouble() {
            assert!(trouble.contains("retry: "), "{trouble}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), well).await.expect("a spool that can be used is ready");

    let (again, ..) = held_back(async |spool, message| spool.release(message).await).await;
    assert_eq!(again.attempt, 1);

    let ended = EndedJob::complete(1);
    let reason = DeferReason::NotificationUndelivered;
    let (again, ..) = held_back(async |spool, message| {
        let message = Message { ended: Some(ended.clone()), ..message.clone() };
        spool.defer(&message, soon, reason).await
    })
    .await;
    assert_eq!((again.attempt, again.deferral.map(|deferral| deferral.reason)), (1, Some(reason)));
    assert_eq!(again.ended, Some(ended));
}

/// Once its file name kept the attempts: sent again, it failed for good with its first.
#[tokio::test]
async fn a_dead_letter_that_is_sent_again_has_all_its_attempts() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(directory.path());
    spool.send("job-1", b"{}", None).await.unwrap();
    spool.retry(&spool.receive(1).await.unwrap()[0], Duration::ZERO).await.unwrap();
    let last = spool.receive(1).await.unwrap().remove(0);
    assert_eq!(last.attempt, 2);
    spool.dead_letter(&last, "it died").await.unwrap();
    drop(spool);
    for dead in files(directory.path(), "dead") {
        let name = dead.file_name().unwrap();
        if !name.to_string_lossy().starts_with("reason~") {
            fs::rename(&dead, directory.path().join("waiting").join(name)).unwrap();
        }
    }
    assert_eq!(open(directory.path()).receive(1).await.unwrap()[0].attempt, 1);
}

#[tokio::test]
async fn a_spool_that_is_gone_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(directory.path());
    spool.send("job-1", b"{}", None).await.unwrap();
    let message = spool.receive(1).await.unwrap().remove(0);
    fs::remove_dir_all(directory.path()).unwrap();
    for result in [spool.ack(&message).await, spool.send("job-2", b"{}", None).await] {
        let error = result.unwrap_err();
        assert!(error.to_string().contains("the directory was deleted while the host runs"), "{error}");
    }
}
