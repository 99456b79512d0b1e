//! Every sample payload of `events/` is read as its kind, and replies have the shape that the platform reads.

use std::fs;
use std::path::Path;

use atelier::events::auth::Auth;
use atelier::events::http::{Response, Route};
use atelier::events::sqs::batch_reply;
use atelier::events::{Event, EventError};
use atelier::job::Job;
use atelier::protocol::reply::{JobOutcome, JobReport};
use atelier::setting::Secret;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use crate::requests::contract;

pub(crate) fn sample(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("events").join(name);
    serde_json::from_slice(&fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).unwrap()
}

pub(crate) fn parse(payload: &Value) -> Result<Event, EventError> {
    Event::parse(&to_raw_value(payload).unwrap())
}

#[test]
fn every_sample_is_of_a_known_kind() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("events");
    let mut seen = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            continue;
        }
        let name = entry.file_name().into_string().unwrap();
        let event = parse(&sample(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let kind = match event {
            Event::Sqs(_) => "sqs-",
            Event::RabbitMq(_) => "rabbitmq-",
            Event::Http(_) => "http-",
            Event::Direct(_) => "job-",
        };
        assert!(name.starts_with(kind), "{name} was read as {kind}");
        seen += 1;
    }
    assert!(seen >= 5, "only {seen} samples");
}

#[test]
fn a_rabbitmq_message_is_a_job_with_its_attempt() {
    let mut payload = sample("rabbitmq-lora.json");
    payload["rmqMessagesByQueue"]["image_generation::/"][0]["basicProperties"]["headers"]["x-delivery-count"] = json!(2);
    let Ok(Event::RabbitMq(batch)) = parse(&payload) else { panic!("not a RabbitMQ batch") };
    let [delivery] = batch.deliveries.as_slice() else { panic!("not one delivery") };
    assert_eq!((delivery.message_id.as_str(), delivery.attempt), ("demo-lora", 3));
    let job = Job::from_json(&delivery.body, &contract()).expect("a job");
    assert_eq!(job.watermark.expect("a watermark").text, "© Ada");
}

#[test]
fn the_host_names_the_messages_that_it_wants_to_find_again() {
    let mut payload = sample("rabbitmq-lora.json");
    let message = payload["rmqMessagesByQueue"]["image_generation::/"][0].clone();
    let mut named = message.clone();
    named["basicProperties"]["headers"]["x-atelier-message-id"] = json!("host-1");
    let mut nameless = message.clone();
    nameless["basicProperties"]["messageId"] = json!(null);
    payload["rmqMessagesByQueue"]["image_generation::/"] = json!([named, message, nameless]);
    let Ok(Event::RabbitMq(batch)) = parse(&payload) else { panic!("not a RabbitMQ batch") };
    let ids: Vec<_> = batch.deliveries.iter().map(|delivery| delivery.message_id.as_str()).collect();
    assert_eq!(ids, ["host-1", "demo-lora", "image_generation::/#2"]);
}

#[test]
fn a_classic_queue_only_knows_whether_it_redelivers() {
    let mut payload = sample("rabbitmq-lora.json");
    let message = &mut payload["rmqMessagesByQueue"]["image_generation::/"][0];
    message["basicProperties"]["headers"] = json!({});
    message["redelivered"] = json!(true);
    let Ok(Event::RabbitMq(batch)) = parse(&payload) else { panic!("not a RabbitMQ batch") };
    assert_eq!(batch.deliveries[0].attempt, 2);
}

#[test]
fn an_sqs_reply_holds_only_what_is_to_come_back() {
    let settled = |id: &str, outcome| JobReport {
        message_id: id.into(),
        job_id: None,
        outcome,
        replayed: false,
        error: None,
        notifications: Vec::new(),
        measured: None,
    };
    let jobs = [
        settled("a", JobOutcome::Complete),
        settled("b", JobOutcome::Retry),
        settled("c", JobOutcome::Failed),
        settled("d", JobOutcome::DeadLetter),
    ];
    let back = json!({ "batchItemFailures": [{ "itemIdentifier": "b" }, { "itemIdentifier": "d" }] });
    assert_eq!(batch_reply(&jobs), back);
    assert_eq!(batch_reply(&jobs[..1]), json!({ "batchItemFailures": [] }));
}

#[test]
fn sqs_attributes_become_attempt_and_group() {
    let mut payload = sample("sqs-plain.json");
    payload["Records"][0]["attributes"]["ApproximateReceiveCount"] = json!("4");
    payload["Records"][0]["attributes"]["MessageGroupId"] = json!("customer-9");
    let Ok(Event::Sqs(standard)) = parse(&payload) else { panic!("not an SQS batch") };
    assert_eq!(standard.deliveries[0].group, None, "a tenant among whom the queue is fair, not an order");
    payload["Records"][0]["eventSourceARN"] = json!("arn:aws:sqs:us-east-1:123456789012:image_generation.fifo");
    let Ok(Event::Sqs(batch)) = parse(&payload) else { panic!("not an SQS batch") };
    assert_eq!((batch.deliveries[0].attempt, batch.deliveries[0].group.as_deref()), (4, Some("customer-9")));
}

#[test]
fn http_requests_are_routed_and_answered_in_their_platforms_shape() {
    for name in [
        "http-four.json",
        "http-alb.json",
        "http-alb-multi-value.json",
        "http-apigw-v1.json",
        "http-apigw-v2.json",
        "http-function-url.json",
    ] {
        let Ok(Event::Http(exchange)) = parse(&sample(name)) else { panic!("{name} is no HTTP request") };
        let Ok(Route::Generate(body)) = exchange.route() else { panic!("{name} is not routed to generate") };
        Job::from_json(&body, &contract()).unwrap_or_else(|refusal| panic!("{name}: {}", refusal.error));
        let only = |token: &str| Auth::Token(Secret::new(token));
        assert!(exchange.authorize(&only("demo-token-demo-token-demo-token")).is_ok(), "{name}");
        let refused = exchange.authorize(&only("another-token")).expect_err("a wrong token");
        assert_eq!(refused.status, 401);
        let reply = exchange.reply(&refused);
        assert_eq!((&reply["statusCode"], &reply["isBase64Encoded"]), (&json!(401), &json!(false)), "{reply}");
        assert_eq!(reply["headers"]["content-type"], "application/json");
        assert!(reply["body"].as_str().unwrap().contains("X-Internal-Auth"), "{reply}");
    }
}

/// A load balancer reads the one form or the other, as it was set up; the payload format 2.0 knows one form.
#[test]
fn a_reply_has_its_headers_in_every_form_that_its_platform_reads() {
    for (name, lists, description) in [
        ("http-alb.json", json!(["Bearer"]), json!("401 Unauthorized")),
        ("http-alb-multi-value.json", json!(["Bearer"]), json!("401 Unauthorized")),
        ("http-apigw-v1.json", json!(["Bearer"]), json!(null)),
        ("http-apigw-v2.json", json!(null), json!(null)),
        ("http-function-url.json", json!(null), json!(null)),
    ] {
        let Ok(Event::Http(exchange)) = parse(&sample(name)) else { panic!("{name} is no HTTP request") };
        let reply = exchange.reply(&exchange.authorize(&Auth::Token(Secret::new("another"))).expect_err("a wrong token"));
        assert_eq!(reply["headers"]["www-authenticate"], "Bearer", "{name}");
        assert_eq!(reply["multiValueHeaders"]["www-authenticate"], lists, "{name}");
        assert_eq!(reply["statusDescription"], description, "{name}");
        // AWS's own types of the replies read them.
        if name.starts_with("http-alb") {
            let read: aws_lambda_events::alb::AlbTargetGroupResponse = serde_json::from_value(reply).unwrap();
            assert_eq!((read.status_code, read.headers.len(), read.multi_value_headers.len()), (401, 2, 2));
        } else if name == "http-apigw-v1.json" {
            let read: aws_lambda_events::apigw::ApiGatewayProxyResponse = serde_json::from_value(reply).unwrap();
            assert_eq!((read.status_code, read.headers.len(), read.multi_value_headers.len()), (401, 2, 2));
        }
    }
}

/// Every member of the sample but these, one after the other absent and null: still the same job.
fn stays_readable(name: &str, needed: &[&str], job_id: &str) {
    let whole = sample(name);
    let mut paths = Vec::new();
    members(&whole, "", &mut paths);
    let optional: Vec<_> = paths.iter().filter(|path| !needed.iter().any(|needed| needed.starts_with(path.as_str()))).collect();
    assert!(optional.len() > 5, "{name}: {optional:?}");
    for path in optional {
        let (parent, key) = path.rsplit_once('/').unwrap();
        let mut null = whole.clone();
        null.pointer_mut(parent).unwrap()[key] = json!(null);
        let mut absent = whole.clone();
        absent.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
        for payload in [null, absent] {
            let body = match parse(&payload) {
                Ok(Event::Sqs(batch)) => batch.deliveries[0].body.clone(),
                Ok(Event::RabbitMq(batch)) => batch.deliveries[0].body.clone(),
                Ok(Event::Http(exchange)) => match exchange.route() {
                    Ok(Route::Generate(body)) => body,
                    other => panic!("{name} without {path}: {other:?}"),
                },
                other => panic!("{name} without {path}: {other:?}"),
            };
            let job = Job::from_json(&body, &contract()).unwrap_or_else(|refusal| panic!("{path}: {}", refusal.error));
            assert_eq!(job.id.as_str(), job_id, "{name} without {path}");
        }
    }
}

/// The JSON pointers of all members of objects.
fn members(value: &Value, at: &str, paths: &mut Vec<String>) {
    if let Value::Array(items) = value {
        for (index, item) in items.iter().enumerate() {
            members(item, &format!("{at}/{index}"), paths);
        }
    }
    for (key, child) in value.as_object().into_iter().flatten() {
        let path = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
        members(child, &path, paths);
        if !key.contains('/') {
            paths.push(path);
        }
    }
}

#[test]
fn every_optional_field_of_an_event_may_be_null_or_absent() {
    let record = "/Records/0/messageId";
    stays_readable("sqs-plain.json", &[record, "/Records/0/body", "/Records/0/eventSource"], "demo-plain");
    let message = "/rmqMessagesByQueue/image_generation::~1/0/data";
    stays_readable("rabbitmq-nulls.json", &["/eventSource", message], "rmq-plain");
    stays_readable("rabbitmq-lora.json", &["/eventSource", message], "demo-lora");
    let v2 = ["/rawPath", "/body", "/requestContext/http/method"];
    stays_readable("http-four.json", &v2, "demo-four");
    stays_readable("http-function-url.json", &v2, "function-url");
    stays_readable("http-apigw-v2.json", &["/isBase64Encoded", v2[0], v2[1], v2[2]], "apigw-v2");
    let v1 = ["/path", "/body", "/httpMethod", "/requestContext"];
    stays_readable("http-apigw-v1.json", &v1, "apigw-v1");
    let alb = ["/path", "/body", "/httpMethod", "/requestContext/elb"];
    stays_readable("http-alb-multi-value.json", &alb, "alb-multi");
}

#[test]
fn an_unknown_path_or_method_says_what_there_is() {
    let mut payload = sample("http-four.json");
    payload["rawPath"] = json!("/nowhere");
    let Ok(Event::Http(exchange)) = parse(&payload) else { panic!("not HTTP") };
    assert_eq!(exchange.route().expect_err("no such path").status, 404);
    payload["rawPath"] = json!("/generate");
    payload["requestContext"]["http"]["method"] = json!("GET");
    let Ok(Event::Http(exchange)) = parse(&payload) else { panic!("not HTTP") };
    assert_eq!(exchange.route().expect_err("wrong method").status, 405);
    payload["rawPath"] = json!("/health");
    let Ok(Event::Http(exchange)) = parse(&payload) else { panic!("not HTTP") };
    assert_eq!(exchange.route(), Ok(Route::Health));
    assert_eq!(Response::health("n").body["status"], "ok");
}

#[test]
fn a_bare_job_is_a_direct_invocation() {
    let Ok(Event::Direct(body)) = parse(&sample("job-plain.json")) else { panic!("not a direct invocation") };
    assert_eq!(Job::from_json(&body, &contract()).expect("a job").id.as_str(), "direct-plain");
    // A job that is wrong otherwise is refused as a job.
    assert!(matches!(parse(&json!({ "job_id": 7, "task": "generate" })), Ok(Event::Direct(_))));
}

/// Parsed and written again, a number that neither `u64` nor `f64` holds would be another one.
#[test]
fn a_bare_job_stays_as_it_was_written() {
    let text = r#"{"job_id": "a", "prompt": "x",  "callback": {"metadata": {"n": 18446744073709551616, "f": 1.10}}}"#;
    let Ok(Event::Direct(body)) = Event::parse(&RawValue::from_string(text.to_owned()).unwrap()) else { panic!("not a job") };
    assert_eq!(body, text.as_bytes());
    // What no `Value` holds, as it is and in an EventBridge event.
    for metadata in [
        r#"{"a": 1e999}"#.to_owned(),
        format!(r#"{{"a": {}1{}}}"#, "[".repeat(300), "]".repeat(300)),
        r#"{"a": "\ud800"}"#.into(),
    ] {
        let job = format!(
            r#"{{"job_id": "odd", "prompt": "x", "callback": {{"url": "https://x.example/", "metadata": {metadata}}}}}"#
        );
        let event = format!(r#"{{"detail-type": "job", "source": "backend", "detail": {job}}}"#);
        for text in [&job, &event] {
            let parsed = Event::parse(&RawValue::from_string(text.clone()).unwrap());
            let Ok(Event::Direct(body)) = parsed else { panic!("{text}: {:?}", parsed.err()) };
            let read =
                Job::from_message(&body, None, &contract()).unwrap_or_else(|refusal| panic!("{text}: {}", refusal.error));
            assert_eq!(read.callback.unwrap().metadata.as_str(), metadata);
        }
        // As the body of a queue's message.
        Job::from_message(event.as_bytes(), None, &contract()).unwrap_or_else(|refusal| panic!("{event}: {}", refusal.error));
    }
}

/// However deep an event nests what looks like one.
#[test]
fn events_in_events_end_soon() {
    let text = format!("{}1{}", r#"{"detail":"#.repeat(100_000), "}".repeat(100_000));
    assert!(Job::from_message(text.as_bytes(), None, &contract()).is_err());
}

/// As a queue's message has them, and as what invokes the function itself.
#[test]
fn envelopes_that_invoke_the_function_are_opened_or_refused_by_their_name() {
    let job = json!({ "job_id": "inner", "prompt": "a mug" });
    let sns = |message: String| {
        let notification = json!({ "Type": "Notification", "TopicArn": "arn", "Message": message });
        json!({ "Records": [{ "EventSource": "aws:sns", "Sns": notification }] })
    };
    let event = |detail: &Value| json!({ "detail-type": "job", "source": "backend", "detail": detail });
    for payload in [sns(job.to_string()), event(&job), sns(event(&job).to_string())] {
        let Ok(Event::Direct(body)) = parse(&payload) else { panic!("{payload}") };
        let job = Job::from_message(&body, None, &contract()).unwrap_or_else(|refusal| panic!("{}", refusal.error));
        assert_eq!(job.id.as_str(), "inner", "{payload}");
    }
    for (payload, name) in [
        (sns("hello".into()), "is an SNS notification"),
        (event(&json!({ "hello": 1 })), "is an EventBridge event"),
        (json!({ "Records": [{ "eventSource": "aws:s3", "s3": {} }] }), "is an S3 event notification"),
    ] {
        let Ok(Event::Direct(body)) = parse(&payload) else { panic!("{payload}") };
        let refusal = Job::from_message(&body, None, &contract()).expect_err("no job");
        assert!(refusal.error.to_string().contains(name), "{}", refusal.error);
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_job() {
    let body = format!("\u{feff}{}", json!({ "job_id": "marked", "prompt": "a mug" }));
    for read in [Job::from_message(body.as_bytes(), None, &contract()), Job::from_json(body.as_bytes(), &contract())] {
        assert_eq!(read.unwrap_or_else(|refusal| panic!("{}", refusal.error)).id.as_str(), "marked");
    }
}

#[test]
fn other_events_are_refused_with_what_is_taken() {
    for payload in [json!({}), json!(null), json!([1]), json!({ "job_id": "a" }), json!({ "Records": [] })] {
        let error = parse(&payload).expect_err("must be refused");
        assert!(matches!(error, EventError::Unknown { .. }), "{error}");
        assert!(error.to_string().contains("an SQS batch"), "{error}");
    }
    let mut payload = sample("http-alb.json");
    payload["body"] = json!("*** not base64 ***");
    let Ok(Event::Http(exchange)) = parse(&payload) else { panic!("not HTTP") };
    let response = exchange.route().expect_err("its body cannot be read");
    assert_eq!((response.status, &response.body["error"]["code"]), (400, &json!("invalid_request")));
    assert!(response.body.to_string().contains("not base64"), "{}", response.body);
    let mut payload = sample("sqs-plain.json");
    payload["Records"][0]["messageId"] = json!(null);
    let error = parse(&payload).expect_err("must be refused");
    assert!(error.to_string().contains("no messageId"), "{error}");
}
