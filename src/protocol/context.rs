//! What the host says in an invocation: in the Lambda client context that it delivers the notifications, in a message its name.

use std::collections::HashMap;
use std::hash::BuildHasher;

use serde_json::{Value, json};

const CONTEXT: &str = "atelier";
const HOST: &str = "host";
/// The name by which the host finds a message again in the reply: a RabbitMQ message's own id may be missing or doubled.
const MESSAGE_ID: &str = "x-atelier-message-id";

/// The client context, as JSON: the handler is to leave its terminal notifications to the host.
#[must_use]
pub fn encode() -> String {
    json!({ "custom": { CONTEXT: HOST } }).to_string()
}

/// Whether the host delivers the notifications. `custom`: the part of the client context that is not Lambda's own.
#[must_use]
pub fn decode<S: BuildHasher>(custom: &HashMap<String, String, S>) -> bool {
    custom.get(CONTEXT).is_some_and(|who| who == HOST)
}

/// Names a record of a RabbitMQ event.
pub fn encode_message_id(record: &mut Value, id: &str) {
    record["basicProperties"]["headers"][MESSAGE_ID] = id.into();
}

/// The name that a record was given. `headers`: those of its `basicProperties`.
#[must_use]
pub fn decode_message_id(headers: &Value) -> Option<&str> {
    headers[MESSAGE_ID].as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_read_as_it_was_written() {
        assert_eq!(encode(), r#"{"custom":{"atelier":"host"}}"#);
        let written: Value = serde_json::from_str(&encode()).unwrap();
        assert!(decode(&serde_json::from_value::<HashMap<String, String>>(written["custom"].clone()).unwrap()));
        assert!(!decode(&HashMap::new()));
        assert!(!decode(&HashMap::from([("atelier".to_owned(), "other".to_owned())])));
    }

    #[test]
    fn a_message_has_the_name_that_it_was_given() {
        let mut record = json!({ "basicProperties": { "headers": { "tier": { "bytes": [1] } }, "messageId": "own" } });
        encode_message_id(&mut record, "3:17");
        let headers = &record["basicProperties"]["headers"];
        assert_eq!(decode_message_id(headers), Some("3:17"));
        assert_eq!(headers.as_object().map(serde_json::Map::len), Some(2));
        assert_eq!(decode_message_id(&json!({})), None);
    }
}
