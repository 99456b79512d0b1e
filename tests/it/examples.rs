//! The clients of `examples/`, run as they stand against real servers.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use atelier::job::Job;
use atelier::job::request::Defaults;
use atelier::notify::{Notifier, Settings};
use atelier::setting::Secret;
use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use serde_json::json;
use standardwebhooks::Webhook;
use tokio::task::spawn_blocking;

use crate::host::HostProcess;
use crate::host::sqs::Bench;
use crate::outbound::outbound;
use crate::servers::{left_out, python_or_skip, rabbitmq};
use crate::store::{job, record_of};

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDZ0Nb2pCDUvM=";
const PROMPT: &str = "a red mug on the beach";

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// What a publisher says and leaves, with the variables of its first lines set.
async fn published(venv: &Path, name: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(venv.join("bin/python"));
    command.arg(example(name)).arg(PROMPT).envs(variables.iter().copied()).stdin(Stdio::null());
    // A proxy of this machine is none for loopback.
    command.env("NO_PROXY", "127.0.0.1");
    spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// The id that a publisher printed, if all went well.
fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap().trim().to_owned()
}

fn assert_is_the_job(body: &[u8], id: &str) {
    let job = Job::from_json(body, &Defaults::default()).unwrap_or_else(|refusal| panic!("{}", refusal.error));
    assert_eq!(job.id.as_str(), id);
    assert!(String::from_utf8_lossy(body).contains(PROMPT));
}

#[tokio::test]
async fn a_job_is_published_to_rabbitmq() {
    let Some(venv) = python_or_skip("examples/publish/rabbitmq_pika.py") else { return };
    let Some(node) = rabbitmq::shared_or_skip("examples/publish/rabbitmq_pika.py").await else { return };
    let (_connection, channel) = node.peer().await;
    let port = node.port.to_string();
    let queue = "example-publisher";
    let variables = [("RABBITMQ_HOST", "127.0.0.1"), ("RABBITMQ_PORT", port.as_str()), ("RABBITMQ_QUEUE", queue)];
    // No one's queue would swallow the job in silence.
    let refused = published(&venv, "publish/rabbitmq_pika.py", &variables).await;
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("Unroutable"), "{refused:?}");

    channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
    let id = printed(&published(&venv, "publish/rabbitmq_pika.py", &variables).await);
    let message = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap().expect("a message");
    assert_is_the_job(&message.data, &id);
    assert_eq!(message.properties.delivery_mode(), &Some(2), "a restart of the broker would lose it");
}

#[tokio::test]
async fn a_job_is_published_to_sqs() {
    let Some(bench) = Bench::start("examples/publish/sqs_boto3.py").await else { return };
    let venv = python_or_skip("examples/publish/sqs_boto3.py").unwrap();
    for name in ["example", "example.fifo"] {
        let url = bench.queue(name, &[]).await;
        let server = bench.server();
        let variables = [
            ("SQS_QUEUE_URL", url.as_str()),
            ("AWS_ENDPOINT_URL", server.as_str()),
            ("AWS_REGION", "us-east-1"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ];
        let id = printed(&published(&venv, "publish/sqs_boto3.py", &variables).await);
        assert_is_the_job(bench.body(&url).await.as_bytes(), &id);
    }
}

#[tokio::test]
async fn a_job_is_sent_by_http_and_its_images_are_awaited() {
    let Some(venv) = python_or_skip("examples/publish/http_requests.py") else { return };
    let mut host = HostProcess::start(&[], &[]).await;
    host.wait_for("listening for HTTP", 1).await;
    let url = format!("http://{}", host.address());
    let variables = [("ATELIER_URL", url.as_str()), ("INTERNAL_API_TOKEN", crate::stage::TOKEN)];
    let urls = printed(&published(&venv, "publish/http_requests.py", &variables).await);
    assert!(urls.contains("/0.png") && urls.lines().count() == 1, "{urls}");
    let notified = host.backend.terminal().await;
    assert_eq!(notified.body["type"], "inference.complete", "{}", notified.body);

    let wrong = [variables[0], ("INTERNAL_API_TOKEN", "another token of 32 characters...")];
    let refused = published(&venv, "publish/http_requests.py", &wrong).await;
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("401"), "{refused:?}");
}

/// A server that listens and says where; killed when dropped.
pub(crate) struct Receiver {
    process: Child,
    said: std::io::Lines<BufReader<ChildStdout>>,
    pub(crate) url: String,
}

impl Receiver {
    pub(crate) fn start(program: &Path, name: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(program);
        command.arg(example(name)).arg("0").envs(variables.iter().copied());
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut said = BufReader::new(process.stdout.take().unwrap()).lines();
        let first = said.next().expect("where it listens").unwrap();
        let url = first.strip_prefix("listening on ").expect("where it listens").to_owned();
        Self { process, said, url }
    }

    pub(crate) fn next_line(&mut self) -> String {
        self.said.next().expect("a line").unwrap()
    }

    /// The status that a webhook with these headers is answered with.
    async fn post(&self, headers: &[(&str, &str)], body: &str) -> u16 {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut request = client.post(format!("{}/hook", self.url)).body(body.to_owned());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap().status().as_u16()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What atelier sends is handled once; what is not signed, or signed for something else, is not.
async fn receives(program: &Path, name: &str) {
    let mut receiver = Receiver::start(program, name, &[("WEBHOOK_SIGNING_SECRET", SECRET)]);
    let settings = Settings {
        backend_api_url: Some(receiver.url.clone()),
        internal_api_token: Some(Secret::new("an internal token of 32 characters")),
        signing_secret: Some(Secret::new(SECRET)),
        ..Settings::default()
    };
    let notifier = Notifier::new(&settings, outbound(&["127.0.0.1"])).expect("settings");
    let job = job(&json!({ "callback": { "metadata": { "name": "Ada – Zoë" } } }));
    let urls = ["https://cdn.example.com/0.png".to_owned()];
    let sent = notifier.complete(&job, &record_of(&job, Vec::new()), &urls).unwrap();
    // Twice, as after a redelivery.
    notifier.send_all(&sent).await.expect("delivered");
    notifier.send_all(&sent).await.expect("delivered again");
    let line = receiver.next_line();
    assert!(line.starts_with("inference.complete job-1") && line.contains("https://cdn.example.com/0.png"), "{line}");

    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let body = r#"{"type":"inference.progress","job_id":"job-2","progress":25}"#;
    let signature = Webhook::new(SECRET).unwrap().sign("id-2", i64::try_from(now).unwrap(), body.as_bytes()).unwrap();
    let stamp = now.to_string();
    let headers = [("webhook-id", "id-2"), ("webhook-timestamp", stamp.as_str()), ("webhook-signature", signature.as_str())];
    assert_eq!(receiver.post(&headers[..0], body).await, 401, "not signed");
    assert_eq!(receiver.post(&headers[..2], body).await, 401, "no signature");
    assert_eq!(receiver.post(&headers, &body.replace("25", "26")).await, 401, "another body");
    let mut other = headers;
    other[0].1 = "id-3";
    assert_eq!(receiver.post(&other, body).await, 401, "another id");
    assert_eq!(receiver.post(&headers, body).await, 204);
    // The next line that was said is this one: neither the repetition nor what was refused has been handled.
    let line = receiver.next_line();
    assert!(line.starts_with("inference.progress job-2") && line.contains("25"), "{line}");
}

#[tokio::test]
async fn the_python_receiver_handles_what_is_signed_and_only_once() {
    let Some(venv) = python_or_skip("examples/receive/receiver.py") else { return };
    receives(&venv.join("bin/python"), "receive/receiver.py").await;
}

#[tokio::test]
async fn the_node_receiver_handles_what_is_signed_and_only_once() {
    let node = PathBuf::from("node");
    if Command::new(&node).arg("--version").output().is_err() {
        // Nothing else needs Node, so a machine without it is not made to install it.
        left_out("examples/receive/receiver.mjs", "no `node` on the PATH");
        return;
    }
    receives(&node, "receive/receiver.mjs").await;
}

/// A receiver verifies with the lines of docs/webhooks.md, which tests of their own look at.
#[test]
fn the_receivers_have_the_documented_lines() {
    let read = |path: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let page = read("docs/webhooks.md");
    for (language, begins, name) in [("python", "def verify", "receiver.py"), ("js", "/** Throws unless", "receiver.mjs")] {
        let (_, block) = page.split_once(&format!("```{language}\n")).expect("a block");
        let block = block.split_once("\n```").expect("its end").0;
        let lines = &block[block.find(begins).expect("the function")..];
        assert!(read(&format!("examples/receive/{name}")).contains(lines), "{name} differs from docs/webhooks.md");
    }
}
