//! What is deployed: the templates created in moto, their environment read by the configuration, the metrics that others name.

mod commands;
mod commit;
mod companions_page;
mod compose;
mod docs;
mod environment;
mod families;
mod flux2_page;
mod gguf_page;

mod image;
mod kubernetes;
mod licences;
mod metrics;
mod migrating;
mod models_page;
mod msrv;
mod one_build;
mod pages;
mod release;
mod sharing_page;
mod stacks;
mod workflow;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::servers::moto::Moto;
use crate::servers::python_or_skip;

/// A file of the repository.
fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What `create.py` says of a template's stack in a moto of its own; none without Python.
async fn created(template: &str, parameters: &Value) -> Option<Value> {
    let venv = python_or_skip("creating the templates in moto")?;
    let moto = Moto::start(&venv).await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(venv.join("bin/python"))
        .arg(root.join("tests/it/deploy/create.py"))
        .arg(root.join(template))
        .args([format!("http://{}", moto.address), parameters.to_string()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{template}: {}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// Of template.yaml, with every parameter that has no default.
async fn function_stack() -> Option<Value> {
    let parameters = serde_json::json!({
        "ImageUri": "123456789012.dkr.ecr.us-east-1.amazonaws.com/atelier:0.1.0", "SubnetIds": "", "SecurityGroupIds": "sg-1",
        "MaxEnvironments": "3", "BackendApiUrl": "https://backend.example", "InputBucket": "loras", "HttpUrl": "yes"
    });
    created("template.yaml", &parameters).await
}

async fn service_stack() -> Option<Value> {
    let parameters = serde_json::json!({ "ImageUri": "atelier:0.1.0", "SubnetIds": "", "VpcId": "" });
    created("deploy/ecs.yaml", &parameters).await
}
