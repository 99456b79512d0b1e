//! How much there is to parse in a JSON body, found without parsing it.

/// Bytes outside of texts, at most. A text takes as much memory as it is long; a value in between takes up to fifty times as
/// much, so that 60 MiB of `[],[],` would be 8 GiB.
pub const MAX_BYTES: usize = 1_000_000;

/// # Errors
/// Says what is allowed where the body has more to parse.
pub fn check(json: &[u8]) -> Result<(), String> {
    let mut outside = 0;
    let mut in_text = false;
    let mut escaped = false;
    for byte in json {
        outside += usize::from(!in_text || *byte == b'"');
        if outside > MAX_BYTES {
            return Err(format!("it must have at most {MAX_BYTES} bytes outside of its texts"));
        }
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_text,
            b'"' => in_text = !in_text,
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_outside_of_texts_weighs() {
        assert!(check(format!("[\"{}\"]", "[],".repeat(MAX_BYTES)).as_bytes()).is_ok());
        assert!(check(format!("[\"\\\"{}\"]", "[],".repeat(MAX_BYTES)).as_bytes()).is_ok(), "an escaped quotation mark");
        assert!(check(format!("[{}1]", "[],".repeat(MAX_BYTES / 3)).as_bytes()).is_err());
        assert!(check(format!("[{}1]", "\"\",".repeat(MAX_BYTES / 3)).as_bytes()).is_err(), "empty texts");
        assert!(check(format!("[{}1]", "1,".repeat(MAX_BYTES / 2 - 2)).as_bytes()).is_ok());
    }
}
