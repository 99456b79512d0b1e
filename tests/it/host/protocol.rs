//! The Runtime API as it is written: held open, one at a time, limits, late and wrong answers.

use std::time::Duration;

use atelier::host::answer::{Answer, FunctionError};
use atelier::host::runtime_api::{Invocation, RuntimeApi, Started};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};

use crate::servers::DEADLINE;

struct Handler {
    client: Client,
    base: String,
}

impl Handler {
    fn of(api: &RuntimeApi) -> Self {
        let client = Client::builder().no_proxy().timeout(DEADLINE).build().unwrap();
        Self { client, base: format!("http://{}/2018-06-01/runtime", api.address) }
    }

    async fn next(&self) -> Response {
        self.client.get(format!("{}/invocation/next", self.base)).send().await.unwrap()
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<reqwest::Body>) -> StatusCode {
        let mut request = self.client.post(format!("{}/{path}", self.base)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap().status()
    }
}

fn invocation(event: Value) -> Invocation {
    Invocation { event, limit: Duration::from_mins(1), client_context: None, trace_id: None }
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn an_event_comes_with_its_headers_and_its_answer_comes_back() {
    let api = RuntimeApi::start("atelier").await.unwrap();
    let handler = Handler::of(&api);
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let mut answer = None;
    let (event, ()) = tokio::join!(handler.next(), async {
        assert_eq!(api.started().await, Started::Ready);
        let context = Some(r#"{"custom":{"atelier":"host"}}"#.to_owned());
        let trace_id = Some("Root=1-5759e988-bd862e3fe1be46a994272793".to_owned());
        answer = Some(api.invoke(Invocation { client_context: context, trace_id, ..invocation(json!({ "n": 1 })) }));
    });
    assert_eq!(event.status(), 200);
    let deadline_ms: u128 = header(&event, "lambda-runtime-deadline-ms").parse().unwrap();
    assert!((before + 59_000..before + 61_000 + DEADLINE.as_millis()).contains(&deadline_ms));
    assert_eq!(header(&event, "lambda-runtime-invoked-function-arn"), "arn:aws:lambda:local:000000000000:function:atelier");
    assert_eq!(header(&event, "lambda-runtime-trace-id"), "Root=1-5759e988-bd862e3fe1be46a994272793");
    assert_eq!(header(&event, "lambda-runtime-client-context"), r#"{"custom":{"atelier":"host"}}"#);
    let id = header(&event, "lambda-runtime-aws-request-id").to_owned();
    let echo = header(&event, "lambda-runtime-invocation-id").to_owned();
    assert_eq!(event.json::<Value>().await.unwrap(), json!({ "n": 1 }));

    let path = format!("invocation/{id}/response");
    assert_eq!(handler.post("invocation/another/response", &[], "1").await, StatusCode::BAD_REQUEST);
    assert_eq!(handler.post(&path, &[("lambda-runtime-invocation-id", "another")], "1").await, StatusCode::BAD_REQUEST);
    assert_eq!(handler.post(&path, &[("lambda-runtime-invocation-id", &echo)], "\"done\"").await, StatusCode::ACCEPTED);
    assert_eq!(answer.unwrap().await.unwrap(), Answer::Reply { body: "\"done\"".into(), http_stream: false });
    assert_eq!(handler.post(&path, &[], "2").await, StatusCode::BAD_REQUEST, "it was answered already");
}

/// Takes one event and returns its request id.
async fn take(api: &RuntimeApi, handler: &Handler) -> (String, tokio::sync::oneshot::Receiver<Answer>) {
    let answer = api.invoke(invocation(json!({})));
    let event = handler.next().await;
    (header(&event, "lambda-runtime-aws-request-id").to_owned(), answer)
}

#[tokio::test]
async fn next_is_in_flight_open_until_there_is_an_event() {
    let api = RuntimeApi::start("atelier").await.unwrap();
    let handler = Handler::of(&api);
    let next = handler.next();
    tokio::pin!(next);
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut next).await.is_err(), "answered without an event");
    assert!(api.was_taken(), "there is nothing to take");
    let _answer = api.invoke(invocation(json!({})));
    assert_eq!(next.await.status(), 200);
    assert!(api.was_taken());
}

#[tokio::test]
async fn replies_are_limited_and_streams_may_be_longer() {
    let api = RuntimeApi::start("atelier").await.unwrap();
    let handler = Handler::of(&api);
    let (id, answer) = take(&api, &handler).await;
    let path = format!("invocation/{id}/response");
    assert_eq!(handler.post(&path, &[], vec![b'x'; 6_291_557]).await, StatusCode::PAYLOAD_TOO_LARGE);
    let Answer::Error(error) = answer.await.unwrap() else { panic!("not an error") };
    assert_eq!(error.error_type, "Function.ResponseSizeTooLarge");
    assert!(error.message.contains("6291556"), "{error}");

    let (id, answer) = take(&api, &handler).await;
    let chunks = futures::stream::iter((0..16).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 1 << 20])));
    let headers = [
        ("lambda-runtime-function-response-mode", "streaming"),
        ("content-type", "application/vnd.awslambda.http-integration-response"),
    ];
    let body = reqwest::Body::wrap_stream(chunks);
    assert_eq!(handler.post(&format!("invocation/{id}/response"), &headers, body).await, StatusCode::ACCEPTED);
    let Answer::Reply { body, http_stream: true } = answer.await.unwrap() else { panic!("not a stream") };
    assert_eq!(body.len(), 16 << 20);
}

#[tokio::test]
async fn late_answers_are_reported_so() {
    let api = RuntimeApi::start("atelier").await.unwrap();
    let handler = Handler::of(&api);
    let (id, _answer) = take(&api, &handler).await;
    api.abandon();
    assert_eq!(handler.post(&format!("invocation/{id}/response"), &[], "1").await, StatusCode::GONE);
    let (id, answer) = take(&api, &handler).await;
    let error = json!({ "errorType": "Boom", "errorMessage": "it broke" }).to_string();
    assert_eq!(handler.post(&format!("invocation/{id}/error"), &[], error).await, StatusCode::ACCEPTED);
    assert_eq!(answer.await.unwrap(), Answer::Error(FunctionError::new("Boom", "it broke")), "the next one is not affected");
}

#[tokio::test]
async fn a_handler_that_asks_for_more_has_given_up_what_it_had() {
    let api = RuntimeApi::start("atelier").await.unwrap();
    let handler = Handler::of(&api);
    let (_id, answer) = take(&api, &handler).await;
    let (second, _more) = take(&api, &handler).await;
    assert!(answer.await.is_err(), "no one will answer it");
    assert!(!second.is_empty());
}

#[tokio::test]
async fn a_failed_start_is_reported_with_its_reason() {
    let api = RuntimeApi::start("atelier").await.unwrap();
    let handler = Handler::of(&api);
    let error = json!({ "errorType": "Atelier.Model", "errorMessage": "no weights" }).to_string();
    assert_eq!(handler.post("init/error", &[], error).await, StatusCode::ACCEPTED);
    assert_eq!(api.started().await, Started::Failed(FunctionError::new("Atelier.Model", "no weights")));
}
