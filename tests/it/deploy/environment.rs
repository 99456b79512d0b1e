//! The templates' environment is what the configuration reads: every name is known, and no name that matters is missing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use atelier::config::{BUILT_IN, Config, Environment};
use serde_json::Value;

use super::{function_stack, service_stack};

/// What config.yaml names and a stack leaves out, and why.
const LEFT_OUT_BY_THE_FUNCTION: [&str; 14] = [
    // Lambda has no such thing, or sets it itself.
    "HOSTNAME",
    "ECS_AGENT_URI",
    "AWS_EC2_METADATA_DISABLED",
    // Queues of `atelier host`; here AWS takes the jobs out of the queue.
    "SQS_QUEUE_URL",
    "AWS_ENDPOINT_URL_SQS",
    "RABBITMQ_HOST",
    "RABBITMQ_PORT",
    "RABBITMQ_USER",
    "RABBITMQ_PASS",
    "MAX_CONCURRENT_GENERATIONS",
    // A function pulls no model: its image has one.
    "HF_ENDPOINT",
    "HF_TOKEN",
    // Try-on's own services: those who have them add them.
    "ASSET_CALLBACK_URL",
    "LOAD_BALANCER_URL",
];

/// The names between `${` and `}` in config.yaml.
fn named_in_config() -> BTreeSet<String> {
    let references = BUILT_IN.split("${").skip(1).map(|rest| rest.split('}').next().unwrap());
    references.map(|reference| reference.split(":-").next().unwrap().to_owned()).filter(|name| name != "NAME").collect()
}

/// The names that the sources ask the environment for themselves.
fn named_in_sources(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            named_in_sources(&path, names);
        } else {
            let text = fs::read_to_string(&path).unwrap();
            let asked = text.split("environment.get(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
            names.extend(asked);
        }
    }
}

fn known() -> BTreeSet<String> {
    let mut names = named_in_config();
    named_in_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut names);
    assert!(names.contains("LOG_LEVEL") && names.contains("AWS_STORAGE_BUCKET_NAME"), "{names:?}");
    names
}

/// Every variable is read by someone, and together they are a configuration.
pub(super) fn is_read(variables: &Environment) -> Config {
    let known = known();
    for name in variables.keys() {
        assert!(known.contains(name) || name.starts_with("ATELIER__"), "nothing reads {name}");
    }
    Config::parse("the template's environment", "", variables).unwrap()
}

pub(super) fn environment(variables: &Value) -> Environment {
    let variables = variables.as_object().unwrap().iter().map(|(name, value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        (name.clone(), text)
    });
    variables.collect()
}

#[tokio::test]
async fn the_functions_environment_is_the_configurations() {
    let Some(stack) = function_stack().await else { return };
    let variables = environment(&stack["function"]["Environment"]["Variables"]);
    let config = is_read(&variables);
    assert_eq!(config.runtime.max_attempts, 8);
    assert_eq!(config.model.name.as_str(), "sd15");
    assert!(config.notify.signing_secret.is_some() && config.security.internal_auth_token.is_some());
    // And back: what config.yaml names is set here, or left out for a reason.
    for name in named_in_config() {
        let left_out = LEFT_OUT_BY_THE_FUNCTION.contains(&name.as_str());
        assert_ne!(variables.contains_key(&name), left_out, "{name}: set it in template.yaml, or say here why not");
    }
}

#[tokio::test]
async fn the_services_environment_is_the_configurations() {
    let Some(stack) = service_stack().await else { return };
    let container = &stack["template"]["Resources"]["Task"]["Properties"]["ContainerDefinitions"][0];
    let set = container["Environment"].as_array().unwrap().iter().chain(container["Secrets"].as_array().unwrap());
    // Where it is only there under a condition: what it is then.
    let set = set.map(|variable| variable["Fn::If"].get(1).unwrap_or(variable));
    let names: Vec<&str> = set.map(|variable| variable["Name"].as_str().unwrap()).collect();
    for needed in [
        "ATELIER_MODEL",
        "AWS_STORAGE_BUCKET_NAME",
        "BACKEND_API_URL",
        "SQS_QUEUE_URL",
        "WEBHOOK_SIGNING_SECRET",
        "CONTENT_CREDENTIALS_CERTIFICATE",
        "CONTENT_CREDENTIALS_PRIVATE_KEY",
        "CONTENT_CREDENTIALS_KMS_KEY",
        "CONTENT_CREDENTIALS_TIMESTAMP_URL",
        "SAFETY_MODERATOR_URL",
        "SAFETY_MODERATOR_TOKEN",
    ] {
        assert!(names.contains(&needed), "{needed} is missing");
    }
    let values = names.iter().map(|name| {
        ((*name).to_owned(), if name.ends_with("BUCKETS") { "[a]".into() } else { "https://a.example/b-b-b-b".into() })
    });
    let mut variables: Environment = values.collect();
    variables.insert("ATELIER_MODEL".into(), "sd15".into());
    let config = is_read(&variables);
    assert!(config.sources.sqs.queue_url.is_some());
    assert!(!config.store.bucket.is_empty());
    assert!(config.content_credentials.names_signer());
}
