//! Our typed clients (`clients/`): their types are those of the document, and they do against a host what their READMEs say.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use super::openapi_clients::run;
use crate::host::{HostProcess, eventually, job};
use crate::servers::http::{Answer, HttpServer};
use crate::servers::{environment, left_out, python_or_skip};
use crate::stage::TOKEN;

const MODELS: (&str, &str) = ("ATELIER__HOST__MODELS", "[{name: tiny-sd, handlers: 1}, {name: tiny-edit, handlers: 1}]");
const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDZ0Nb2pCDUvM=";
/// What a reader of the README has in his program already.
const BEFORE_TYPESCRIPT: &str = r"
declare const process: {
  argv: string[];
  env: Record<string, string | undefined>;
  getBuiltinModule(name: 'fs'): { readFileSync(path: string, encoding: 'utf8'): string };
};
";
/// Calls the README's receiver with webhooks of a host, and with others.
const AFTER_PYTHON: &str = r#"
import json
import pathlib
import sys

for one in json.loads(pathlib.Path(sys.argv[1]).read_text())["sent"]:
    assert receive(one["body"].encode(), one["headers"]) == 204
    assert receive(one["body"].encode() + b" ", one["headers"]) == 401
"#;
const AFTER_TYPESCRIPT: &str = r#"
const text = process.getBuiltinModule("fs").readFileSync(process.argv[2] ?? "", "utf8");
for (const { headers, body } of (JSON.parse(text) as { sent: { headers: Record<string, string>; body: string }[] }).sent) {
  const statuses = [body, `${body} `].map(async (sent) => {
    return (await receive(new Request("http://receiver.example/", { method: "POST", headers, body: sent }))).status;
  });
  if (String(await Promise.all(statuses)) !== "204,401") throw new Error(`${body}: ${await Promise.all(statuses)}`);
}
"#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `ATELIER_TEST_NODE`: where `tests/run` has npm put the generator and the compiler.
fn node_or_skip(what: &str) -> Option<PathBuf> {
    let node = environment("ATELIER_TEST_NODE").map(PathBuf::from);
    if node.is_none() {
        left_out(what, "no npm; else tests/run sets ATELIER_TEST_NODE");
    }
    node
}

/// The blocks of a client's README in its language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(page)).unwrap();
    let begin = format!("```{language}\n");
    let blocks = text.split(&begin).skip(1);
    blocks.map(|rest| rest.split_once("```").expect("its end").0.to_owned()).collect()
}

/// Compares a generated file with what `clients/generate` would write now.
async fn is_generated(language: &str, name: &str, variable: &str, tools: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let mut generate = Command::new(root().join("clients/generate"));
    run(generate.arg("--into").arg(directory.path()).arg(language).env(variable, tools)).await;
    let written = fs::read_to_string(directory.path().join(name)).unwrap();
    let committed = fs::read_to_string(root().join("clients").join(name)).unwrap();
    let line = written.lines().zip(committed.lines()).position(|(one, other)| one != other);
    assert!(written == committed, "clients/{name} is old (line {line:?} from 0): run clients/generate {language}");
}

#[tokio::test]
async fn the_python_types_are_those_of_the_document() {
    let Some(venv) = python_or_skip("the generated types of clients/python") else { return };
    is_generated("python", "python/src/atelier_client/models.py", "ATELIER_TEST_VENV", &venv).await;
}

#[tokio::test]
async fn the_typescript_types_are_those_of_the_document() {
    let Some(node) = node_or_skip("the generated types of clients/typescript") else { return };
    is_generated("typescript", "typescript/src/schema.ts", "ATELIER_TEST_NODE", &node).await;
}

/// The Python package as pip installs it, in a directory with the scripts and the README's programs.
async fn python_package(venv: &Path) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut pip = Command::new(venv.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]);
    pip.arg("--no-build-isolation").arg("--target").arg(directory.path()).arg(root().join("clients/python"));
    run(pip.env("PYTHONDONTWRITEBYTECODE", "1")).await;
    assert!(directory.path().join("atelier_client/py.typed").exists(), "type checkers would not look at it");
    copy_scripts("py", directory.path());
    let [jobs, webhooks] = blocks("clients/python/README.md", "python").try_into().expect("two programs");
    fs::write(directory.path().join("readme_jobs.py"), jobs).unwrap();
    fs::write(directory.path().join("readme_webhooks.py"), webhooks + AFTER_PYTHON).unwrap();
    directory
}

/// The TypeScript package as npm would install it, with the scripts and the README's programs, which its types have to allow.
async fn typescript_package(node: &Path) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let package = directory.path().join("node_modules/atelier-client");
    let compiler = node.join("node_modules/.bin/tsc");
    let mut build = Command::new(&compiler);
    run(build.arg("-p").arg(root().join("clients/typescript")).arg("--outDir").arg(package.join("dist"))).await;
    fs::copy(root().join("clients/typescript/package.json"), package.join("package.json")).unwrap();
    copy_scripts("mts", directory.path());
    let [jobs, webhooks] = blocks("clients/typescript/README.md", "ts").try_into().expect("two programs");
    fs::write(directory.path().join("readme_jobs.mts"), format!("{BEFORE_TYPESCRIPT}{jobs}")).unwrap();
    fs::write(directory.path().join("readme_webhooks.mts"), format!("{BEFORE_TYPESCRIPT}{webhooks}{AFTER_TYPESCRIPT}"))
        .unwrap();
    let mut check = Command::new(&compiler);
    check.args(["--strict", "--noUncheckedIndexedAccess", "--module", "NodeNext", "--target", "ES2022"]);
    check.args(["--lib", "ES2022,DOM,DOM.AsyncIterable"]);
    check.args(["against_host.mts", "webhooks.mts", "readme_jobs.mts", "readme_webhooks.mts"]);
    run(check.current_dir(directory.path())).await;
    directory
}

fn copy_scripts(extension: &str, directory: &Path) {
    for name in ["against_host", "webhooks"] {
        let name = format!("{name}.{extension}");
        fs::copy(root().join("tests/clients/typed").join(&name), directory.join(&name)).unwrap();
    }
}

/// What a script of a package says.
async fn said(program: &Path, package: &TempDir, script: &str, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(program);
    command.arg(package.path().join(script)).args(arguments).envs(variables.iter().copied());
    // A proxy of this machine is none for loopback.
    command.current_dir(package.path()).env("NO_PROXY", "*").env("PYTHONDONTWRITEBYTECODE", "1");
    String::from_utf8(run(&mut command).await.stdout).unwrap()
}

/// A client's script and the README's first program, against a host of both models.
async fn works_against_a_host(program: &Path, package: &TempDir, extension: &str) {
    let host = HostProcess::start(&[MODELS], &[]).await;
    host.ready().await;
    let url = format!("http://{}", host.address());
    let images = root().join("events/images").display().to_string();
    let script = said(program, package, &format!("against_host.{extension}"), &[&url, TOKEN, &images], &[]).await;
    assert_eq!(script.trim(), "all of it");
    let variables = [("ATELIER_URL", url.as_str()), ("INTERNAL_API_TOKEN", TOKEN)];
    let readme = said(program, package, &format!("readme_jobs.{extension}"), &[], &variables).await;
    assert!(readme.contains("complete 100") && readme.contains("/0.png"), "{readme}");
}

#[tokio::test]
async fn the_python_client_works_against_a_host() {
    let Some(venv) = python_or_skip("clients/python against a host") else { return };
    let package = python_package(&venv).await;
    works_against_a_host(&venv.join("bin/python"), &package, "py").await;
    let files = fs::read_dir(package.path()).unwrap().map(|entry| entry.unwrap().path());
    let image = files.into_iter().find(|file| file.extension().is_some_and(|extension| extension == "png"));
    image::open(image.expect("the README's image")).unwrap();
}

#[tokio::test]
async fn the_typescript_client_works_against_a_host() {
    let Some(node) = node_or_skip("clients/typescript against a host") else { return };
    let package = typescript_package(&node).await;
    works_against_a_host(Path::new("node"), &package, "mjs").await;
}

/// Package, scripts and README, as strictly as mypy can.
#[tokio::test]
async fn the_python_client_is_typed() {
    let Some(venv) = python_or_skip("the types of clients/python (mypy)") else { return };
    let package = python_package(&venv).await;
    let mut mypy = Command::new(venv.join("bin/python"));
    mypy.args(["-m", "mypy", "--strict", "--cache-dir", "cache", "atelier_client"]);
    mypy.args(["against_host.py", "webhooks.py", "readme_jobs.py", "readme_webhooks.py"]);
    run(mypy.current_dir(package.path())).await;
}

/// A secret, and what a host has sent that has it: progress, a job that is complete and one that was cancelled.
async fn webhooks_of_a_host() -> Value {
    let backend = HttpServer::start(&[Answer::status(200)]).await;
    let url = format!("http://{}", backend.address);
    let host = HostProcess::start(&[("BACKEND_API_URL", url.as_str()), ("WEBHOOK_SIGNING_SECRET", SECRET)], &[]).await;
    host.ready().await;
    for (id, steps) in [("complete", 2), ("cancelled", 200)] {
        let mut body = job(id);
        body["steps"] = json!(steps);
        body["callback"] = json!({ "metadata": { "user_id": "Ada – Zoë" } });
        host.post("/generate", &body).await;
    }
    host.is_generating("cancelled").await;
    host.cancel("cancelled").await;
    let ends = ["inference.complete", "inference.failed"];
    eventually("both ends are told", || {
        let requests = backend.requests();
        ends.iter().all(|kind| requests.iter().any(|request| request.json()["type"] == *kind))
    })
    .await
    .unwrap();
    let sent: Vec<Value> = backend
        .requests()
        .iter()
        .map(|request| {
            let headers = ["webhook-id", "webhook-timestamp", "webhook-signature"];
            let headers: serde_json::Map<String, Value> =
                headers.map(|name| (name.to_owned(), json!(request.header(name).expect("a header")))).into_iter().collect();
            json!({ "headers": headers, "body": String::from_utf8(request.body.clone()).unwrap() })
        })
        .collect();
    json!({ "secret": SECRET, "sent": sent })
}

/// A client's script and the README's second program, on webhooks of a host and on others.
async fn verifies(program: &Path, package: &TempDir, extension: &str) {
    let file = package.path().join("sent.json");
    fs::write(&file, webhooks_of_a_host().await.to_string()).unwrap();
    let file = file.display().to_string();
    let script = said(program, package, &format!("webhooks.{extension}"), &[&file], &[]).await;
    assert_eq!(script.trim(), "all of it");
    let variables = [("WEBHOOK_SIGNING_SECRET", SECRET)];
    let readme = said(program, package, &format!("readme_webhooks.{extension}"), &[&file], &variables).await;
    assert!(readme.contains("complete") && readme.contains("/0.png"), "{readme}");
}

#[tokio::test]
async fn the_python_client_verifies_webhooks_of_a_host() {
    let Some(venv) = python_or_skip("the webhook verifier of clients/python") else { return };
    verifies(&venv.join("bin/python"), &python_package(&venv).await, "py").await;
}

#[tokio::test]
async fn the_typescript_client_verifies_webhooks_of_a_host() {
    let Some(node) = node_or_skip("the webhook verifier of clients/typescript") else { return };
    verifies(Path::new("node"), &typescript_package(&node).await, "mjs").await;
}
