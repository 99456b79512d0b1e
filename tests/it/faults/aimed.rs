//! Aimed faults: a process is held at a named point of a job's life, and something breaks exactly there.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atelier::fault_point::{POINTS, Process};
use futures::{StreamExt as _, stream};
use reqwest::{Client, StatusCode};
use rustix::process::Signal;

use super::campaign::{Campaign, body};
use super::{Row, keep};
use crate::bucket::Trouble;
use crate::host::sqs::Bench;
use crate::host::{is_alive, signal};
use crate::servers::proxy::Proxy;
use crate::servers::rabbitmq::{self, RabbitMq};

/// How long what is away stays away.
const AWAY: Duration = Duration::from_secs(2);
/// Longer than any job needs that is not lost.
const WAIT_LIMIT: Duration = Duration::from_mins(2);

/// What breaks while the process is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    HandlerKill9,
    HostKill9,
    StoreAway,
    ReceiverAway,
    BrokerAway,
}

/// Where the jobs wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    Spool,
    Sqs,
    RabbitMq,
}

const FAULTS: [Fault; 5] = [Fault::HandlerKill9, Fault::HostKill9, Fault::StoreAway, Fault::ReceiverAway, Fault::BrokerAway];
const QUEUES: [Queue; 3] = [Queue::Spool, Queue::Sqs, Queue::RabbitMq];

/// Every test run has these; `bench/faults --aimed` has all.
const SOME: [(&str, Fault, Queue); 8] = [
    ("before-send", Fault::HostKill9, Queue::Spool),
    ("after-send", Fault::HostKill9, Queue::Spool),
    ("before-record", Fault::HandlerKill9, Queue::Spool),
    ("before-record", Fault::StoreAway, Queue::RabbitMq),
    ("after-record", Fault::HandlerKill9, Queue::Spool),
    ("before-tell", Fault::ReceiverAway, Queue::Spool),
    ("after-tell", Fault::HostKill9, Queue::Sqs),
    ("after-tell", Fault::BrokerAway, Queue::RabbitMq),
];

/// The servers that queues need, once for all runs.
struct Brokers {
    sqs: Bench,
    node: Arc<RabbitMq>,
}

/// A queue that can be taken away from its host.
struct Line {
    changes: Vec<(&'static str, String)>,
    proxy: Option<Proxy>,
}

impl Brokers {
    async fn line(&self, queue: Queue, name: &str) -> Line {
        match queue {
            Queue::Spool => Line { changes: Vec::new(), proxy: None },
            Queue::Sqs => {
                let url = self.sqs.queue(name, &[]).await;
                let address = self.sqs.server().trim_start_matches("http://").to_owned();
                let proxy = Proxy::start(address.parse().unwrap()).await;
                let changes = vec![
                    ("SQS_QUEUE_URL", url.replace(&address, &proxy.address.to_string())),
                    ("ATELIER__SOURCES__SQS__WAIT_SECONDS", "1".into()),
                    ("ATELIER__SOURCES__SQS__VISIBILITY_SECONDS", "3".into()),
                ];
                Line { changes, proxy: Some(proxy) }
            }
            Queue::RabbitMq => {
                let proxy = Proxy::start(([127, 0, 0, 1], self.node.port).into()).await;
                let changes = vec![
                    ("RABBITMQ_HOST", "127.0.0.1".into()),
                    ("RABBITMQ_PORT", proxy.address.port().to_string()),
                    ("ATELIER__SOURCES__RABBITMQ__QUEUE", name.into()),
                    ("ATELIER__SOURCES__RABBITMQ__DECLARE", "true".into()),
                    ("ATELIER__SOURCES__RABBITMQ__HEARTBEAT_SECONDS", "5".into()),
                ];
                Line { changes, proxy: Some(proxy) }
            }
        }
    }
}

/// The point's file, as `atelier::fault_point` describes it.
pub(super) struct StoppedAt(PathBuf);

impl StoppedAt {
    pub(super) fn new(directory: &Path, point: &str) -> Self {
        Self(directory.join(point))
    }

    /// What arms the point.
    pub(super) fn armed(&self) -> String {
        self.0.display().to_string()
    }

    /// The process that came there.
    pub(super) async fn reached(&self) -> Option<u32> {
        let deadline = Instant::now() + WAIT_LIMIT;
        while Instant::now() < deadline {
            let pid = std::fs::read_to_string(self.0.with_extension("reached")).ok().and_then(|pid| pid.parse().ok());
            if pid.is_some() {
                return pid;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        None
    }

    pub(super) fn release(&self) {
        std::fs::write(self.0.with_extension("go"), "").unwrap();
    }
}

/// Hands in a job once; whether the host said that it has it.
pub(super) async fn hand_in(address: String, id: &'static str) -> bool {
    let client = Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().unwrap();
    let request = client.post(format!("http://{address}/generate")).header("x-internal-auth", crate::stage::TOKEN);
    request.json(&body(id)).send().await.is_ok_and(|answer| answer.status() == StatusCode::ACCEPTED)
}

fn kill_handlers(campaign: &Campaign) {
    for pid in campaign.host.handlers().into_iter().filter(|pid| is_alive(*pid)) {
        signal(Signal::KILL, pid);
    }
}

/// One job is held at the point while the fault happens, two more follow; the books of all three.
async fn aim((point, process): (&str, Process), fault: Fault, queue: Queue, brokers: &Brokers, run: usize) -> Row {
    let directory = tempfile::tempdir().unwrap();
    let stopped = StoppedAt::new(directory.path(), point);
    let line = brokers.line(queue, &format!("aimed-{}-{run}", std::process::id())).await;
    let armed = stopped.armed();
    let mut changes: Vec<(&str, &str)> = line.changes.iter().map(|(name, value)| (*name, value.as_str())).collect();
    changes.push(("ATELIER_FAULT_POINT", &armed));
    let mut campaign = Campaign::start("aimed", &changes, &[]).await;
    let asked = tokio::spawn(hand_in(campaign.host.address(), "job-0"));
    let reached = stopped.reached().await;
    let pid = reached.unwrap_or_else(|| panic!("{point} was not reached\n{}", campaign.host.log()));
    match fault {
        Fault::HandlerKill9 if process == Process::Handler => signal(Signal::KILL, pid),
        Fault::HandlerKill9 => kill_handlers(&campaign),
        Fault::HostKill9 => campaign.host.kill(),
        Fault::StoreAway => campaign.host.bucket.trouble(Trouble::Away),
        Fault::ReceiverAway => drop(campaign.host.backend.answer.send_replace(Some(StatusCode::SERVICE_UNAVAILABLE))),
        Fault::BrokerAway => line.proxy.as_ref().expect("a broker").go_away().await,
    }
    stopped.release();
    if fault == Fault::HostKill9 {
        campaign.host.restart();
    } else {
        tokio::time::sleep(AWAY).await;
    }
    campaign.host.bucket.trouble(Trouble::None);
    campaign.host.backend.answer.send_replace(Some(StatusCode::OK));
    line.proxy.iter().for_each(Proxy::come_back);
    // Whoever got no answer asks again, as every caller does.
    if asked.await.unwrap() {
        campaign.expect("job-0");
    } else {
        campaign.hand_in("job-0").await;
    }
    campaign.hand_in("job-1").await;
    campaign.hand_in("job-2").await;
    let is_up = campaign.ends_well(WAIT_LIMIT).await;
    let row = campaign.row();
    Row { what: title(point, fault, queue), hosts_down: usize::from(!is_up), ..row }
}

fn title(point: &str, fault: Fault, queue: Queue) -> String {
    format!("{point}: {fault:?} ({queue:?})")
}

/// What is asked for: [`SOME`], or of all those whose titles have the words of `ATELIER_FAULTS_AIMED`, where `all` are all.
fn aims() -> Vec<(&'static str, Fault, Queue)> {
    let Some(words) = crate::servers::environment("ATELIER_FAULTS_AIMED") else { return SOME.to_vec() };
    let words = words.into_string().unwrap();
    let mut aims = Vec::new();
    for (point, _) in POINTS {
        for fault in FAULTS {
            for queue in QUEUES {
                let can_be = fault != Fault::BrokerAway || queue != Queue::Spool;
                if can_be && (words == "all" || title(point, fault, queue).contains(&words)) {
                    aims.push((point, fault, queue));
                }
            }
        }
    }
    aims
}

#[tokio::test]
async fn at_points() {
    /// Most of a run is waiting.
    const AT_ONCE: usize = 3;
    let Some(sqs) = Bench::start("faults at points").await else { return };
    let Some(node) = rabbitmq::shared_or_skip("faults at points").await else { return };
    let brokers = &Brokers { sqs, node };
    let runs = aims().into_iter().enumerate().map(|(run, (name, fault, queue))| {
        let point = POINTS.into_iter().find(|(point, _)| *point == name).expect("a point of the code");
        aim(point, fault, queue, brokers, run)
    });
    let mut rows = std::pin::pin!(stream::iter(runs).buffer_unordered(AT_ONCE));
    let mut off = Vec::new();
    while let Some(row) = rows.next().await {
        keep(&row);
        if !row.is_clean() {
            off.push(row);
        }
    }
    assert!(off.is_empty(), "{off:#?}");
}

/// Every point of the list stands in the code once, and no other does.
#[test]
fn every_point_is_in_the_code() {
    let mut found = Vec::new();
    for file in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = std::fs::read_to_string(&file).unwrap();
        found.extend(text.split("fault_point!(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()));
    }
    found.sort();
    let mut listed: Vec<_> = POINTS.iter().map(|(point, _)| (*point).to_owned()).collect();
    listed.sort();
    assert_eq!(found, listed);
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// What the compiler makes of a point in a build without debug assertions: nothing, not even its name.
#[test]
fn a_release_build_has_no_points() {
    let directory = tempfile::tempdir().unwrap();
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/fault_point.rs");
    let program = format!(
        "#[path = {module:?}]\nmod fault_point;\nuse fault_point::fault_point;\nfn main() {{\n    fault_point!(\"a-point-of-the-test\");\n}}\n"
    );
    let source = directory.path().join("main.rs");
    std::fs::write(&source, program).unwrap();
    let binary = directory.path().join("release");
    let mut rustc = std::process::Command::new("rustc");
    rustc.args(["--edition", "2024", "-O", "-o"]).arg(&binary).arg(&source);
    let compiled = rustc.output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let bytes = std::fs::read(&binary).unwrap();
    let has = |name: &[u8]| bytes.windows(name.len()).any(|window| window == name);
    assert!(!has(b"a-point-of-the-test") && !has(b"before-record") && !has(b".reached"));
}
