//! deploy/compose.yaml: what its services are given, and the same processes without containers, from a job in the queue to its webhook.

use std::collections::BTreeMap;
use std::path::Path;

use atelier::config::Environment;
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use serde_json::Value;

use super::environment::is_read;
use super::file;
use crate::examples::Receiver;
use crate::host::{HostProcess, job};
use crate::servers::moto::Moto;
use crate::servers::{python_or_skip, rabbitmq};
use crate::stage::TOKEN;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn compose() -> Value {
    serde_saphyr::from_str(&file("deploy/compose.yaml")).unwrap()
}

/// As Compose puts variables in: `${NAME:-default}`, and `${NAME:?message}` from a person's environment.
fn interpolated(text: &str) -> String {
    let Some((before, rest)) = text.split_once("${") else { return text.to_owned() };
    let (inside, after) = rest.split_once('}').expect("a variable ends");
    let value = match inside.split_once(":-") {
        Some((_, default)) => default,
        None if inside.starts_with("INTERNAL_API_TOKEN:?") => TOKEN,
        None if inside.starts_with("WEBHOOK_SIGNING_SECRET:?") => SECRET,
        None => panic!("{inside} has no default"),
    };
    format!("{before}{value}{}", interpolated(after))
}

fn environment_of(service: &str) -> Environment {
    let compose = compose();
    let variables = compose["services"][service]["environment"].as_object().unwrap().clone();
    variables.into_iter().map(|(name, value)| (name, interpolated(value.as_str().expect("a text")))).collect()
}

#[test]
fn the_hosts_environment_is_a_configuration_whose_servers_are_services() {
    let mut variables = environment_of("host");
    // Those that the AWS SDK reads itself.
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        assert!(variables.remove(name).is_some(), "{name}");
    }
    let config = is_read(&variables);
    assert!(config.server.has_page() && config.sources.rabbitmq.declare);
    let compose = compose();
    let services = compose["services"].as_object().unwrap();
    let urls = variables.values().filter_map(|value| value.strip_prefix("http://"));
    let hosts = urls.map(|url| url.split(':').next().unwrap()).chain([variables["RABBITMQ_HOST"].as_str()]);
    for host in hosts {
        assert!(host == "localhost" || services.contains_key(host), "no service is called {host}");
    }
    let grace =
        compose["services"]["host"]["stop_grace_period"].as_str().unwrap().trim_end_matches('s').parse::<u64>().unwrap();
    assert!(grace >= config.host.drain_seconds + 20, "{grace}");
}

#[test]
fn ports_are_of_this_machine_and_what_is_mounted_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    for name in ["deploy/compose.yaml", "deploy/compose.gpu.yaml"] {
        let compose: Value = serde_saphyr::from_str(&file(name)).unwrap();
        for (service, about) in compose["services"].as_object().unwrap() {
            let texts = |key: &str| about[key].as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned());
            for port in texts("ports") {
                assert!(port.starts_with("127.0.0.1:"), "{service}: {port}");
            }
            for volume in texts("volumes") {
                let from = volume.split(':').next().unwrap();
                let is_named = compose["volumes"].get(from).is_some();
                assert!(is_named || root.join(from).exists(), "{service}: {from} is not there");
            }
        }
    }
    let prometheus = file("deploy/monitoring/prometheus.yaml");
    assert!(prometheus.contains("targets: [\"host:8080\"]") && prometheus.contains("rule_files: [rules.yaml]"));
}

/// The programs of the services, with their environment and their commands; only their addresses are of this machine.
#[tokio::test]
async fn a_job_in_the_queue_ends_at_the_receiver() {
    let Some(venv) = python_or_skip("the services of deploy/compose.yaml") else { return };
    let Some(node) = rabbitmq::own_or_skip("the services of deploy/compose.yaml", "").await else { return };
    let moto = Moto::start(&venv).await;
    let storage = format!("http://{}", moto.address);
    let compose = compose();
    let services = &compose["services"];
    let [make_bucket] = services["bucket"]["command"].as_array().unwrap().as_slice() else { panic!("one program") };
    let mut python = tokio::process::Command::new(venv.join("bin/python"));
    python.arg("-c").arg(make_bucket.as_str().unwrap().replace("http://storage:5000", &storage));
    let made = python.envs(environment_of("bucket")).output().await.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let command = services["receiver"]["command"].as_array().unwrap();
    assert_eq!(command[..2], ["python", "/receiver.py"].map(Value::from));
    let for_receiver = environment_of("receiver");
    let for_receiver: Vec<_> = for_receiver.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut receiver = Receiver::start(&venv.join("bin/python"), "receive/receiver.py", &for_receiver);

    let mut variables: BTreeMap<String, String> = environment_of("host").into_iter().collect();
    for value in variables.values_mut() {
        *value = value.replace("http://storage:5000", &storage).replace("http://localhost:5000", &storage);
        *value = value.replace("http://receiver:9000", &receiver.url);
    }
    variables.insert("RABBITMQ_HOST".into(), "127.0.0.1".into());
    variables.insert("RABBITMQ_PORT".into(), node.port.to_string());
    // What tests set for a host where nobody sets it.
    variables.extend(["ATELIER__STORE__BUCKET", "ATELIER__SAFETY__MODE"].map(|name| (name.to_owned(), String::new())));
    let changes: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let host = HostProcess::start(&changes, &[]).await;
    host.ready().await;
    let (_connection, channel) = node.peer().await;
    let body = job("from-compose").to_string();
    let queue = "image_generation";
    let sent = channel.basic_publish(
        "".into(),
        queue.into(),
        BasicPublishOptions::default(),
        body.as_bytes(),
        BasicProperties::default(),
    );
    sent.await.unwrap().await.unwrap();
    let said = tokio::task::spawn_blocking(move || {
        let mut lines = std::iter::repeat_with(|| receiver.next_line());
        lines.find(|line| !line.starts_with("inference.progress")).unwrap()
    });
    let line = said.await.unwrap();
    assert!(line.starts_with("inference.complete from-compose"), "{line}\n{}", host.log());
    let url = line.split('\'').nth(1).expect("an address").to_owned();
    assert!(url.starts_with(&format!("{storage}/images/")), "{url}");
    let image = reqwest::get(url).await.unwrap().bytes().await.unwrap();
    assert!(image.starts_with(b"\x89PNG"), "the receiver's address is that of an image");
    let page = reqwest::get(format!("http://{}/", host.address())).await.unwrap();
    assert!(page.status().is_success(), "the page is on");
    let metrics = reqwest::get(format!("http://{}/metrics", host.address())).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("atelier_jobs_total{outcome=\"complete\",source=\"rabbitmq\"} 1"), "{metrics}");
}
