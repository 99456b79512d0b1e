//! Clients that generators make of the OpenAPI document: they have a type for everything, and they work.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;

use crate::host::HostProcess;
use crate::servers::{environment, left_out, python_or_skip};
use crate::stage::TOKEN;

/// For generators and what they start, on a loaded machine.
const LIMIT: Duration = Duration::from_mins(5);

/// Uses the generated Python client as its users do.
const PYTHON: &str = r#"
import io, sys, time, typing
sys.path.insert(0, sys.argv[1])
from client import AuthenticatedClient
from client.api.jobs import cancel, generate, infer, job
from client.api.node import version
from client.models import Error, Generate, Problem, Job, JobState
from client.types import File, UNSET

api = AuthenticatedClient(base_url=sys.argv[2], token=sys.argv[3], timeout=60)
body = Generate(job_id="client-1", prompt="a red mug", steps=1, width=64, height=64)
assert body.negative_prompt is UNSET and "negative_prompt" not in body.to_dict(), "what was left out is not sent"
answer = generate.sync_detailed(client=api, body=body, idempotency_key="key-1", traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
assert answer.status_code == 202 and answer.parsed.job_id == "client-1", answer
deadline = time.time() + 60
while (seen := job.sync(client=api, id="client-1")).state is not JobState.COMPLETE:
    assert isinstance(seen, Job) and time.time() < deadline, seen
    time.sleep(0.05)
assert seen.result.image_urls[0].startswith("http") and seen.error is None, seen
image = infer.sync(client=api, body=Generate(job_id="client-2", prompt="a blue mug", steps=1, width=64, height=64))
assert isinstance(image, File) and image.payload.read(8) == b"\x89PNG\r\n\x1a\n", image
wrong = generate.sync(client=api, body=Generate(job_id="client-3", prompt="x", steps=0))
assert isinstance(wrong, Problem) and isinstance(wrong.error, Error), wrong
assert (wrong.error.code, wrong.error.field) == ("invalid_request", "steps"), wrong
gone = cancel.sync(client=api, id="client-1")
assert isinstance(gone, Problem) and gone.error.code == "already_ended", gone
stranger = AuthenticatedClient(base_url=sys.argv[2], token="wrong")
assert generate.sync(client=stranger, body=body).error.code == "unauthorized"
"#;

/// Does not compile where an error is no error, or a field has to be there that has not.
const TYPESCRIPT: &str = r#"
import type { components, paths } from "./types";
const least: components["schemas"]["Generate"] = { job_id: "a", prompt: "b" };
const tryon: components["schemas"]["TryOn"] = { job_id: "a", person: "s3://b/p", garments: ["s3://b/g"] };
const edit: components["schemas"]["Edit"] = { job_id: "a", prompt: "b", images: ["s3://b/p"] };
type Answers = paths["/infer"]["post"]["responses"];
const wrong: Answers[400]["content"]["application/json"] = { error: { code: "invalid_request", message: "steps", field: "steps" } };
const image: Answers[200]["content"]["image/png"] = "";
const header: NonNullable<paths["/generate"]["post"]["parameters"]["header"]>["traceparent"] = undefined;
const state: components["schemas"]["Job"]["error"] = null;
export default [least, tryon, edit, wrong, image, header, state];
"#;

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json")
}

/// What a program says that ends well, and in time.
pub(super) async fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(LIMIT, output).await.expect("it ends").expect("it starts");
    let texts = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success(), "{}\n{}", texts[0], texts[1]);
    output
}

#[tokio::test]
async fn a_generated_python_client_works_against_a_host() {
    let Some(venv) = python_or_skip("a generated Python client") else { return };
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.yaml");
    // Nobody has to read it: no formatter is run.
    std::fs::write(&config, "post_hooks: []\n").unwrap();
    let mut generator = Command::new(venv.join("bin/openapi-python-client"));
    generator.args(["generate", "--meta", "none", "--fail-on-warning", "--config"]).arg(&config);
    generator.arg("--path").arg(document()).arg("--output-path").arg(directory.path().join("client"));
    run(generator.current_dir(directory.path())).await;
    let mut host = HostProcess::start(&[], &[]).await;
    host.wait_for("a handler is ready", 1).await;
    let mut client = Command::new(venv.join("bin/python"));
    client.args(["-c", PYTHON]).arg(directory.path()).args([&format!("http://{}", host.address()), TOKEN]);
    run(client.env("PYTHONDONTWRITEBYTECODE", "1").env("no_proxy", "*")).await;
}

/// `ATELIER_TEST_NODE`: where `tests/run` has npm put the generator and the compiler.
#[tokio::test]
async fn generated_typescript_types_compile() {
    let Some(node) = environment("ATELIER_TEST_NODE").map(PathBuf::from) else {
        return left_out("TypeScript types of docs/openapi.json", "no npm; else tests/run sets ATELIER_TEST_NODE");
    };
    let directory = tempfile::tempdir().unwrap();
    let mut generator = Command::new(node.join("node_modules/.bin/openapi-typescript"));
    run(generator.arg(document()).arg("-o").arg(directory.path().join("types.d.ts"))).await;
    std::fs::write(directory.path().join("use.ts"), TYPESCRIPT).unwrap();
    let mut compiler = Command::new(node.join("node_modules/.bin/tsc"));
    run(compiler.args(["--strict", "--noEmit", "--skipLibCheck", "use.ts"]).current_dir(directory.path())).await;
}
