//! A caller's trace goes with its job from every kind of event into every notification.

use serde_json::{Value, json};

use super::{body, http, one, sqs};
use crate::events::sample;
use crate::stage::Stage;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const XRAY: &str = "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent=00f067aa0ba902b7;Sampled=1";

fn from_sqs(body: Value) -> Value {
    let mut event = one(body, 1);
    event["Records"][0]["attributes"]["AWSTraceHeader"] = json!(XRAY);
    event
}

fn from_http(body: &Value) -> Value {
    let mut event = http(body);
    event["headers"]["traceparent"] = json!(PARENT);
    event
}

fn from_rabbitmq(body: &Value) -> Value {
    use base64::Engine as _;
    let mut event = sample("rabbitmq-lora.json");
    let mut message = event["rmqMessagesByQueue"].as_object().unwrap().values().next().unwrap()[0].clone();
    message["data"] = base64::engine::general_purpose::STANDARD.encode(body.to_string()).into();
    message["basicProperties"]["headers"]["traceparent"] = json!({ "bytes": PARENT.as_bytes() });
    event["rmqMessagesByQueue"] = json!({ "image_generation::/": [message] });
    event
}

#[tokio::test]
async fn every_notification_has_the_trace_of_its_message() {
    let mut stage = Stage::set().await;
    let mut refused = body("refused");
    refused["steps"] = json!(0);
    for event in [from_sqs(body("sqs")), from_http(&body("http")), from_rabbitmq(&body("rabbitmq")), from_sqs(refused)] {
        stage.handle(event).await.unwrap();
        let arrived = stage.backend.arrived();
        assert!(arrived.iter().any(|notification| !notification.path.ends_with("/progress")), "{arrived:?}");
        for notification in arrived {
            assert_eq!(notification.traceparent.as_deref(), Some(PARENT), "{notification:?}");
        }
    }
}

#[tokio::test]
async fn each_message_of_a_batch_has_its_own_trace_and_one_without_has_none() {
    let mut stage = Stage::set().await;
    let mut batch = sqs(&[(body("traced"), 1, None), (body("untraced"), 1, None), (body("broken"), 1, None)]);
    batch["Records"][0]["attributes"]["AWSTraceHeader"] = json!(XRAY);
    batch["Records"][2]["attributes"]["AWSTraceHeader"] = json!("Root=nonsense");
    stage.handle(batch).await.unwrap();
    let arrived = stage.backend.arrived();
    assert!(arrived.len() >= 3, "{arrived:?}");
    for notification in arrived {
        let expected = (notification.body["job_id"] == "traced").then_some(PARENT);
        assert_eq!(notification.traceparent.as_deref(), expected, "{notification:?}");
    }
}

#[tokio::test]
async fn a_notification_that_is_handed_to_the_host_keeps_its_trace() {
    let mut stage = Stage::set().await;
    let reply = stage.handle_for_host(from_sqs(body("later"))).await;
    assert_eq!(reply["jobs"][0]["notifications"][0]["trace"], PARENT);
    let settled = atelier::protocol::reply::decode(&reply).unwrap().remove(0);
    // Its progress came before.
    stage.backend.arrived();
    stage.notifier.send_all(&settled.notifications).await.unwrap();
    assert_eq!(stage.backend.terminal().await.traceparent.as_deref(), Some(PARENT));
}
