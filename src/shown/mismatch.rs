//! serde's words for a value of the wrong type, in words for the caller: no type of this program, no more of a value than is shown elsewhere.

use super::{name, text, without_queries};

/// What is allowed and what came, where serde says that a value has the wrong type; else its message, with its URLs' queries left out.
#[must_use]
pub fn in_words(message: &str) -> String {
    let kinds = ["invalid type: ", "invalid value: "];
    let found = kinds.into_iter().find_map(|kind| message.strip_prefix(kind)?.rsplit_once(", expected "));
    match found {
        Some((got, expected)) => format!("must be {}, got {}", allowed(expected), given(got)),
        None => without_queries(message),
    }
}

/// `expected`: as a visitor of serde, or of serde's derive, names what it takes.
fn allowed(expected: &str) -> &str {
    match expected {
        "a map" => "an object",
        "a sequence" => "a list",
        "a string" => "a text",
        "a boolean" => "true or false",
        "f64" | "f32" => "a number",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, not below 0",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        of_ours if ["struct ", "tuple struct "].iter().any(|kind| of_ours.starts_with(kind)) => "an object",
        other => other,
    }
}

/// `got`: as `serde::de::Unexpected` is displayed.
fn given(got: &str) -> String {
    if let Some(quoted) = got.strip_prefix("string ") {
        let unquoted: String = serde_json::from_str(quoted).unwrap_or_else(|_| quoted.trim_matches('"').to_owned());
        return text(&unquoted);
    }
    let number =
        ["integer `", "floating point `", "boolean `"].iter().find_map(|kind| got.strip_prefix(kind)?.strip_suffix('`'));
    match (got, number) {
        (_, Some(number)) => name(number),
        ("map", _) => "an object".to_owned(),
        ("sequence", _) => "a list".to_owned(),
        ("unit value" | "null", _) => "null".to_owned(),
        (other, _) => name(other),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Inner {
        #[serde(rename = "n")]
        _n: u32,
    }

    fn problem<T: DeserializeOwned + std::fmt::Debug>(value: Value) -> String {
        in_words(&serde_json::from_value::<T>(value).unwrap_err().to_string())
    }

    #[test]
    fn a_wrong_type_is_told_without_the_names_of_types() {
        let long = "x".repeat(10_000);
        let problems = [
            (problem::<Inner>(json!("text")), "must be an object, got \"text\""),
            (problem::<Inner>(json!({ "n": -1 })), "must be a whole number, not below 0, got -1"),
            (problem::<Inner>(json!({ "n": 1.5 })), "must be a whole number, not below 0, got 1.5"),
            (problem::<Vec<u8>>(json!({ "a": 1 })), "must be a list, got an object"),
            (problem::<String>(json!([1])), "must be a text, got a list"),
            (problem::<bool>(json!(null)), "must be true or false, got null"),
            (problem::<f64>(json!(true)), "must be a number, got true"),
            (
                problem::<BTreeMap<String, u8>>(json!("a \"b\", expected c")),
                "must be an object, got \"a \\\"b\\\", expected c\"",
            ),
            (in_words("unknown variant `x`"), "unknown variant `x`"),
        ];
        for (problem, expected) in problems {
            assert_eq!(problem, expected);
        }
        assert!(problem::<u8>(json!(long)).len() < 200);
    }
}
