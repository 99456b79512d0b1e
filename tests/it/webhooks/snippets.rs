//! The lines of docs/webhooks.md accept what we sign, and nothing else.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{SECRET, complete, notifier, settings};
use crate::servers::http::{Answer, HttpServer};
use crate::servers::{left_out, python_or_skip};
use crate::store::job;

const PYTHON: &str = "
import json, sys
asked = json.load(sys.stdin)
verify(asked['secret'], asked['headers'], asked['body'].encode())
";
const NODE: &str = "
import { readFileSync } from 'node:fs';
const asked = JSON.parse(readFileSync(0, 'utf8'));
verify(asked.secret, asked.headers, Buffer.from(asked.body));
";

/// The code of the one block in that language.
fn block(language: &str) -> String {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/webhooks.md")).unwrap();
    let (_, rest) = text.split_once(&format!("```{language}\n")).expect("a block");
    rest.split_once("\n```").expect("its end").0.to_owned()
}

/// A notification as it was sent, with the secret.
async fn sent() -> Value {
    let backend = HttpServer::start(&[Answer::status(200)]).await;
    let job = job(&json!({ "callback": { "metadata": { "name": "Ada – Zoë" } } }));
    complete(&notifier(&settings(&backend)), &job).await.expect("delivered");
    let [request] = &backend.requests()[..] else { panic!("one request") };
    let headers: serde_json::Map<_, _> = ["webhook-id", "webhook-timestamp", "webhook-signature"]
        .map(|name| (name.to_owned(), json!(request.header(name).expect("a header"))))
        .into_iter()
        .collect();
    json!({ "secret": SECRET, "headers": headers, "body": String::from_utf8(request.body.clone()).expect("text") })
}

fn accepts(program: &Path, arguments: &[&str], asked: &Value) -> bool {
    let mut process = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("an interpreter");
    process.stdin.take().expect("its stdin").write_all(asked.to_string().as_bytes()).expect("written");
    let ended = process.wait_with_output().expect("an end");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() || said.contains("does not match") || said.contains("too old"), "{said}");
    ended.status.success()
}

async fn verifies(program: &Path, arguments: &[&str]) {
    let good = sent().await;
    assert!(accepts(program, arguments, &good), "what atelier sent is refused");
    let mut changed = good.clone();
    changed["body"] = json!(good["body"].as_str().unwrap().replace("complete", "Complete"));
    assert_ne!(changed, good);
    assert!(!accepts(program, arguments, &changed), "another body is accepted");
    let mut old = good.clone();
    old["headers"]["webhook-timestamp"] = json!("1700000000");
    assert!(!accepts(program, arguments, &old), "an old notification is accepted");
}

#[tokio::test]
async fn the_python_lines_verify() {
    let Some(venv) = python_or_skip("the Python lines of docs/webhooks.md") else { return };
    let code = format!("{}\n{PYTHON}", block("python"));
    verifies(&venv.join("bin/python"), &["-c", &code]).await;
}

#[tokio::test]
async fn the_node_lines_verify() {
    let node = PathBuf::from("node");
    if Command::new(&node).arg("--version").output().is_err() {
        // Nothing else needs Node, so a machine without it is not made to install it.
        left_out("the Node lines of docs/webhooks.md", "no `node` on the PATH");
        return;
    }
    let code = format!("{}\n{NODE}", block("js"));
    verifies(&node, &["--input-type=module", "-e", &code]).await;
}
