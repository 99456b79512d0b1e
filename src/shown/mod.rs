//! How a value from outside is shown in a message: never more than 80 characters of it, and of no URL what may be a credential.

pub mod mismatch;

use std::error::Error as StdError;
use std::iter;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Characters of one value.
pub const MAX_CHARS: usize = 80;

/// A text in quotation marks.
#[must_use]
pub fn text(text: &str) -> String {
    // Cut first: what is quoted and escaped may be much longer than what is left of it.
    let start: String = text.chars().take(MAX_CHARS * 4).collect();
    let hidden = without_queries(&start);
    cut(&format!("{hidden:?}"), start.len() < text.len())
}

/// A value as JSON.
#[must_use]
pub fn json(value: &Value) -> String {
    match value {
        Value::String(string) => text(string),
        other => cut(&without_queries(&other.to_string()), false),
    }
}

/// A name that a caller gave, such as that of a field, as it is.
#[must_use]
pub fn name(name: &str) -> String {
    cut(&without_queries(name), false)
}

/// `message` without the queries, fragments and user names of the URLs in it, all of which may be credentials.
#[must_use]
pub fn without_queries(message: &str) -> String {
    let mut shown = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + "://".len());
        shown.push_str(before);
        let end = end_of_url(url);
        let (url, behind) = url.split_at(end);
        let authority_end = url.find(['/', '?', '#']).unwrap_or(url.len());
        let host = url[..authority_end].rfind('@').map_or(0, |at| at + 1);
        let open_end = url.find(['?', '#']).unwrap_or(url.len());
        shown.push_str(&url[host..open_end.max(host)]);
        if open_end < url.len() {
            shown.push_str("?...");
        }
        rest = behind;
    }
    shown.push_str(rest);
    without_bare_queries(&shown)
}

/// The same for what only looks like one: a URL that lacks its scheme, or has a blank in it.
fn without_bare_queries(message: &str) -> String {
    let mut shown = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(at) = rest.find('?') {
        let (before, query) = rest.split_at(at + 1);
        let end = end_of_url(query);
        shown.push_str(before);
        if query[..end].contains('=') {
            shown.push_str("...");
            rest = &query[end..];
        } else {
            rest = query;
        }
    }
    shown.push_str(rest);
    shown
}

/// Where a URL in a message ends that `rest` goes on with.
fn end_of_url(rest: &str) -> usize {
    rest.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '`')).unwrap_or(rest.len())
}

/// What `error` was caused by, from the nearest to the deepest.
pub fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    iter::successors(error.source(), |&cause| cause.source())
}

/// The deepest cause of `error`, or itself where it has none: libraries say the most there, and repeat an address further up.
pub fn deepest_cause<'a>(error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    causes(error).last().unwrap_or(error)
}

/// As of RFC 3339, in UTC; a number that is no moment stays one.
#[must_use]
pub fn moment(since_1970_s: u64) -> String {
    let moment = i64::try_from(since_1970_s).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let written = moment.and_then(|moment| moment.format(&Rfc3339).ok());
    written.unwrap_or_else(|| format!("{since_1970_s} s since 1970"))
}

/// On one line, whose control characters are blanks: what a stranger wrote steers no terminal.
#[must_use]
pub fn one_line(text: &str) -> String {
    let plain = text.replace(char::is_control, " ");
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A text of a caller, cut to `max_chars` characters: what is said of a value never grows with the value.
#[must_use]
pub fn clipped(text: String, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        None => text,
        Some(_) => text.chars().take(max_chars - 3).chain("...".chars()).collect(),
    }
}

fn cut(text: &str, shortened: bool) -> String {
    const DOTS: &str = "...";
    if text.chars().count() <= MAX_CHARS && !shortened {
        return text.to_owned();
    }
    text.chars().take(MAX_CHARS - DOTS.len()).chain(DOTS.chars()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json as value;

    use super::*;

    #[test]
    fn what_may_be_a_credential_is_left_out() {
        for (given, shown) in [
            ("https://host/key?X-Amz-Signature=s3cr3t", "https://host/key?..."),
            ("https://ada:s3cr3t@host/key#s3cr3t", "https://host/key?..."),
            ("no https://a/?s3cr3t, and 's3://b/k?s3cr3t'", "no https://a/?... and 's3://b/k?...'"),
            ("is it https://a/b", "is it https://a/b"),
            ("really? yes", "really? yes"),
            ("h.example/a?X-Amz-Signature=s3cr3t or", "h.example/a?... or"),
            ("https://h ost/a?sig=s3cr3t&x='", "https://h ost/a?...'"),
            ("what?? a=b", "what?? a=b"),
        ] {
            assert_eq!(without_queries(given), shown);
        }
        assert_eq!(json(&value!([{ "url": "https://h/k?s3cr3t" }])), r#"[{"url":"https://h/k?..."}]"#);
    }

    #[test]
    fn a_line_steers_no_terminal() {
        assert_eq!(one_line("two\n  lines\t\x1b[31mred\u{9b}2J"), "two lines [31mred 2J");
    }

    #[test]
    fn a_text_is_cut_by_characters() {
        assert_eq!(clipped("äöü".into(), 3), "äöü");
        assert_eq!(clipped("äöüäöü".into(), 5), "äö...");
    }

    proptest! {
        #[test]
        fn nothing_is_longer_than_eighty_characters(given in ".{0,400}") {
            prop_assert!(text(&given).chars().count() <= MAX_CHARS);
            prop_assert!(name(&given).chars().count() <= MAX_CHARS);
            let nested = value!({ "k": [given] });
            prop_assert!(json(&nested).chars().count() <= MAX_CHARS);
        }
    }
}
