//! What needs the `standardwebhooks` package of PyPI: another implementation verifies what we sign.

use serde_json::json;

use super::{SECRET, complete, notifier, settings};
use crate::servers::http::{Answer, HttpServer};
use crate::servers::{ask_python, python_or_skip};
use crate::store::job;

const VERIFY: &str = "
import json, sys
from standardwebhooks.webhooks import Webhook
request = json.load(sys.stdin)
print(Webhook(request['secret']).verify(request['body'], request['headers'])['job_id'])
";

#[tokio::test]
async fn another_implementation_accepts_the_signature() {
    let Some(venv) = python_or_skip("the signature check by PyPI's standardwebhooks") else { return };
    let backend = HttpServer::start(&[Answer::status(200)]).await;
    let job = job(&json!({ "callback": { "metadata": { "name": "Ada – Zoë" } } }));
    complete(&notifier(&settings(&backend)), &job).await.expect("delivered");
    let [request] = &backend.requests()[..] else { panic!("one request") };
    let headers: Vec<_> = ["webhook-id", "webhook-timestamp", "webhook-signature"]
        .map(|name| (name, request.header(name).expect("a header")))
        .into();
    let headers: serde_json::Map<_, _> = headers.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
    let body = String::from_utf8(request.body.clone()).expect("text");
    let question = json!({ "secret": SECRET, "headers": headers, "body": body });
    assert_eq!(ask_python(&venv, VERIFY, &question).trim(), "job-1");
}
