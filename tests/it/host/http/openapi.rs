//! The OpenAPI document: it is the one in `docs/`, it says what the router does, and schemathesis finds no server that differs.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use atelier::host::job_service::Ending;
use atelier::job::Job;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::process::Command;

use super::{Front, assert_problem, read};
use crate::requests::contract;
use crate::servers::python_or_skip;
use crate::stage::TOKEN;

fn committed() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[tokio::test]
async fn the_document_has_the_routers_paths_and_methods() {
    let front = Front::open().await;
    let served = front.get("/openapi.json").await;
    assert_eq!(served, (StatusCode::OK, committed()));
    for (path, item) in committed()["paths"].as_object().unwrap() {
        let answer = front.anonymous(Method::TRACE, &path.replace("{id}", "job-1")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let allowed: BTreeSet<String> = answer.headers()["allow"]
            .to_str()
            .unwrap()
            .split(',')
            .map(str::to_lowercase)
            .filter(|name| name != "head")
            .collect();
        let documented: BTreeSet<String> =
            item.as_object().unwrap().keys().filter(|key| *key != "parameters").cloned().collect();
        assert_eq!(documented, allowed, "{path}");
    }
}

/// Every bound of a number in the document is the one that a job is read with.
#[test]
fn the_documents_bounds_are_those_of_the_reader() {
    let document = committed();
    let mut compared = 0;
    for (schema, least) in [
        // With the scheduler that reads every number there is.
        ("Generate", json!({ "job_id": "a", "prompt": "b", "scheduler": "ddim" })),
        ("TryOn", json!({ "job_id": "a", "task": "tryon", "person": "s3://b/p", "garments": ["s3://b/g"] })),
        ("Edit", json!({ "job_id": "a", "task": "edit", "prompt": "b", "images": ["s3://b/p"] })),
    ] {
        let properties = document["components"]["schemas"][schema]["properties"].as_object().unwrap();
        for (field, property) in properties {
            let (Some(minimum), Some(maximum)) = (property["minimum"].as_u64(), property["maximum"].as_u64()) else { continue };
            let step = property["multipleOf"].as_u64().unwrap_or(1);
            let taken = |value: Value| {
                let mut body = least.clone();
                body[field] = value;
                if field == "image_guidance_scale" {
                    // It means something only with an image.
                    body["init_image"] = json!({ "url": "s3://b/i" });
                }
                Job::from_json(body.to_string().as_bytes(), &contract()).is_ok()
            };
            assert!(taken(json!(minimum)) && taken(json!(maximum)), "{schema}.{field} within the document's bounds");
            assert!(!taken(json!(maximum + step)), "{schema}.{field} above the document's maximum");
            assert!(
                minimum == 0 || !taken(json!(minimum - step.min(minimum))),
                "{schema}.{field} below the document's minimum"
            );
            compared += 1;
        }
        let documented: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
        let mut unknown = least.clone();
        unknown["no_such_field"] = Value::Null;
        let refusal = Job::from_json(unknown.to_string().as_bytes(), &contract()).unwrap_err().error.to_string();
        let allowed: BTreeSet<&str> = refusal.split('`').skip(1).step_by(2).collect();
        assert_eq!(documented, allowed, "the fields of {schema}");
    }
    assert!(compared >= 8, "only {compared} bounds compared");
}

/// Code generators take a `default` for a field that is always there, and an object without a name for no type at all.
#[test]
fn no_schema_has_a_default_and_errors_and_metadata_have_names() {
    let document = committed();
    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["Problem"]["properties"]["error"]["$ref"], "#/components/schemas/Error");
    assert_eq!(schemas["Job"]["properties"]["error"]["anyOf"][0]["$ref"], "#/components/schemas/Error");
    assert_eq!(schemas["Callback"]["properties"]["metadata"]["anyOf"][0]["$ref"], "#/components/schemas/Metadata");
    assert_eq!(schemas["Error"]["required"], json!(["code", "message"]));
    for (name, schema) in schemas.as_object().unwrap() {
        assert!(!schema.to_string().contains("\"default\":"), "{name}");
    }
}

#[tokio::test]
async fn the_document_is_what_refusals_point_to() {
    let front = Front::open().await;
    let (_, body) = read(front.anonymous(Method::GET, "/nowhere")).await;
    assert_problem(&body, "not_found", None, "/openapi.json");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemathesis_finds_no_difference_between_document_and_server() {
    const SECONDS: u64 = 240;
    let Some(venv) = python_or_skip("the OpenAPI document against the server (schemathesis)") else { return };
    let mut front = Front::open_with(|http| http.job_service.max_waiting = u64::MAX / 2).await;
    let image = front.generate(&super::job_of(&super::generate("sample"))).await.images.remove(0);
    let body = json!({
        "timings_ms": { "infer": 1_200 },
        "images": [{
            "bucket": image.bucket, "key": image.key, "bytes": image.bytes, "content_type": image.content_type,
            "width": 8, "height": 8, "seed": 42,
        }],
    });
    let reply = json!({ "statusCode": 200, "body": body.to_string() });
    // A handler that has generated everything already.
    let (_idle, mut directs) = tokio::sync::mpsc::channel(1);
    std::mem::swap(&mut front.directs, &mut directs);
    tokio::spawn(async move {
        while let Some(direct) = directs.recv().await {
            let _ = direct.answer.send(Ending::Answer(reply.clone()));
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/host/http");
    let run = Command::new(venv.join("bin/st"))
        .arg("--config-file")
        .arg(tests.join("schemathesis.toml"))
        .args(["run", &format!("http://{}/openapi.json", front.address)])
        .arg("--no-color")
        .env("TOKEN", TOKEN)
        .env("SCHEMATHESIS_HOOKS", "schemathesis_hooks")
        .env("PYTHONPATH", tests)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(SECONDS), run).await.expect("schemathesis ends").unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
    assert!(front.shelf.taken().len() > 10, "too little was tried:\n{said}");
}
