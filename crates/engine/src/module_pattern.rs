//! Patterns of module names as PEFT matches them: regular expressions of Python, mostly plain names.

use fancy_regex::{Regex, RegexBuilder};

/// A key of `rank_pattern` or `alpha_pattern`.
///
/// Fits as `re.match(rf"(.*\.)?({key})$", name)` does: all of a name, or its end after a dot (`get_pattern_key` in
/// PEFT 0.21's `utils/other.py`).
#[derive(Debug)]
pub(super) struct ModulePattern {
    written: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Letters, digits, `_` and dots, of which each stands for any character; `is_anchored`: it begins with `^`.
    Name {
        is_anchored: bool,
    },
    Expression(Regex),
}

impl ModulePattern {
    /// # Errors
    /// Says why `written` cannot be read.
    pub(super) fn new(written: &str) -> Result<Self, String> {
        /// Expressions of this size take milliseconds to be compiled.
        const MAX_BYTES: usize = 1 << 18;
        const MAX_CHARS: usize = 512;
        const MAX_BACKTRACKS: usize = 10_000;
        let name = written.strip_prefix('^');
        let bare = name.unwrap_or(written);
        if bare.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.')) {
            return Ok(Self { written: bare.to_owned(), kind: Kind::Name { is_anchored: name.is_some() } });
        }
        if written.chars().count() > MAX_CHARS {
            return Err(format!("at most {MAX_CHARS} characters are allowed"));
        }
        // In a set of characters Python takes them as they stand, and this library does not.
        if let Some(operator) = ["[[", "&&", "--", "~~"].into_iter().find(|operator| written.contains(operator)) {
            return Err(format!("{operator} is not supported in it"));
        }
        // The groups are Python's, so that references to them mean the same.
        let expression = RegexBuilder::new(&format!(r"\A(.*\.)?({written})$"))
            .delegate_size_limit(MAX_BYTES)
            .backtrack_limit(MAX_BACKTRACKS)
            .build();
        let expression = expression.map_err(|error| format!("it is no regular expression that is supported ({error})"))?;
        Ok(Self { written: written.to_owned(), kind: Kind::Expression(expression) })
    }

    pub(super) fn is_expression(&self) -> bool {
        matches!(self.kind, Kind::Expression(_))
    }

    /// Whether a module of this name, without its component's, is meant.
    ///
    /// # Errors
    /// When the expression takes too many steps.
    pub(super) fn fits(&self, name: &str) -> Result<bool, String> {
        match &self.kind {
            Kind::Name { is_anchored } => {
                let Some(before) = name.len().checked_sub(self.written.len()) else { return Ok(false) };
                let (head, tail) = name.as_bytes().split_at(before);
                let bounded = head.is_empty() || (!is_anchored && head.ends_with(b"."));
                Ok(bounded && self.written.bytes().zip(tail).all(|(wanted, found)| wanted == b'.' || wanted == *found))
            }
            Kind::Expression(expression) => {
                expression.is_match(name).map_err(|error| format!("the pattern {:?} cannot be matched ({error})", self.written))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every answer is that of PEFT 0.21.2's `get_pattern_key`.
    #[test]
    fn patterns_fit_as_they_do_in_peft() {
        let query = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
        for (pattern, name, fits) in [
            ("to_q", query, true),
            ("attn1.to_q", query, true),
            ("o_q", query, false),
            ("^to_q", query, false),
            ("^to_q", "to_q", true),
            (&format!("^{query}"), query, true),
            (query, &format!("{query}.0"), false),
            ("attn1Xto_q", query, false),
            ("attn1.to.q", query, true),
            (r"attn\d.to_(q|k)", query, true),
            (r"attn[2-9]\.to_q", query, false),
            ("to_q|to_v", query, true),
            ("^down_blocks.*", query, true),
            ("^(?!up_blocks).*to_q", query, true),
            ("^(?!down_blocks).*to_q", query, false),
            ("q", query, false),
            (".*q", query, true),
            ("", query, false),
            ("to_q$", query, true),
        ] {
            assert_eq!(ModulePattern::new(pattern).expect(pattern).fits(name), Ok(fits), "{pattern} and {name}");
        }
    }

    #[test]
    fn patterns_that_cannot_be_read_are_refused() {
        for (pattern, problem) in [
            ("to_(q", "no regular expression"),
            ("[[a]]", "[[ is not supported"),
            (&format!("({})", "a?".repeat(400)), "at most 512 characters"),
            ("((a{500}){500}){500}", "no regular expression"),
        ] {
            let error = ModulePattern::new(pattern).expect_err(pattern);
            assert!(error.contains(problem), "{pattern}: {error}");
        }
        let slow = ModulePattern::new("(a|b|ab)*(?=c)").expect("an expression");
        assert!(slow.fits(&"ab".repeat(40)).is_err(), "it backtracks for ever");
    }
}
