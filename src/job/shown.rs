//! A caller's value in an error message.

use serde_json::Value;

/// A value as JSON, cut so that an error message stays readable.
pub(crate) fn shown(value: &Value) -> String {
    clipped(value.to_string(), 80)
}

/// A text of a caller, cut to `max_chars` characters: what is said of a value never grows with the value.
pub(crate) fn clipped(text: String, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        None => text,
        Some(_) => text.chars().take(max_chars - 3).chain("...".chars()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_by_characters() {
        assert_eq!(clipped("äöü".into(), 3), "äöü");
        assert_eq!(clipped("äöüäöü".into(), 5), "äö...");
        assert_eq!(shown(&Value::from("x".repeat(1_000))).len(), 80);
    }
}
