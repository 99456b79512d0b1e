//! Emphasis in prompts: `(word)`, `[word]`, `(word:1.2)`, and a backslash before what is meant as it stands.
//!
//! The rules are those of AUTOMATIC1111's web interface (`parse_prompt_attention` in `modules/prompt_parser.py`). diffusers' community pipeline
//! `lpw_stable_diffusion` has them without `BREAK` and without blanks around a weight.

use super::foreign_syntax::find_word;
use crate::EngineError;

/// What round brackets multiply by, and square ones divide by.
const EMPHASIS: f64 = 1.1;
/// Beyond it text states are no states any more.
const LARGEST_WEIGHT: f64 = 10.0;

/// Ends a chunk, as a word of its own.
const BREAK: &str = "BREAK";
/// What AUTOMATIC1111 marks it with. In brackets it is multiplied like any weight, and then the word is text.
const BREAK_WEIGHT: f64 = -1.0;

/// Whose rules are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emphasis {
    Automatic,
    Lpw,
}

/// A run of text of one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    pub text: String,
    pub weight: f64,
}

impl Segment {
    /// Whether it ends a chunk instead of being text.
    #[must_use]
    pub fn is_break(&self) -> bool {
        self.text == BREAK && self.weight.to_bits() == BREAK_WEIGHT.to_bits()
    }
}

/// What AUTOMATIC1111 leaves of a prompt: from `#` to the end of its line is a comment (`modules/processing_scripts/comments.py`).
#[must_use]
pub fn without_comments(prompt: &str) -> String {
    let lines = prompt.split('\n').map(|line| line.split_once('#').map_or(line, |(text, _)| text));
    lines.collect::<Vec<_>>().join("\n")
}

/// Brackets that are never closed reach to the end; closing ones that were never opened are text.
///
/// # Errors
/// [`EngineError::Request`] when a weight is no number, or beyond ±10.
pub fn segments(prompt: &str, emphasis: Emphasis) -> Result<Vec<Segment>, EngineError> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut round = Vec::new();
    let mut square = Vec::new();
    let mut rest = prompt;
    while let Some(first) = rest.chars().next() {
        let mut taken = first.len_utf8();
        let closes = first == ':' && !round.is_empty();
        let closed_by = if closes { weight(&rest[taken..], emphasis)? } else { None };
        match first {
            '(' => round.push(segments.len()),
            '[' => square.push(segments.len()),
            ')' if !round.is_empty() => emphasize(&mut segments, round.pop(), EMPHASIS),
            ']' if !square.is_empty() => emphasize(&mut segments, square.pop(), EMPHASIS.recip()),
            ':' if closed_by.is_some() => {
                let (weight, length) = closed_by.unwrap_or_default();
                emphasize(&mut segments, round.pop(), weight);
                taken += length;
            }
            '\\' => {
                let escaped = rest[taken..].chars().next().filter(|next| matches!(next, '(' | ')' | '[' | ']' | '\\'));
                push(&mut segments, escaped.map(String::from).unwrap_or_default());
                taken += escaped.map_or(0, char::len_utf8);
            }
            _ => {
                let end = rest[taken..].find(['\\', '(', ')', '[', ']', ':']).map_or(rest.len(), |end| taken + end);
                push_text(&mut segments, &rest[..end], emphasis);
                taken = end;
            }
        }
        rest = &rest[taken..];
    }
    for start in round {
        emphasize(&mut segments, Some(start), EMPHASIS);
    }
    for start in square {
        emphasize(&mut segments, Some(start), EMPHASIS.recip());
    }
    checked(joined(segments))
}

/// What stands between a colon and the bracket it closes, `1.2)`: the number and the length of all of it. Digits and points that are no
/// number end the job in both references, and digits of other scripts are a weight in both.
fn weight(rest: &str, emphasis: Emphasis) -> Result<Option<(f64, usize)>, EngineError> {
    let Some(end) = rest.find(')') else { return Ok(None) };
    let number = match emphasis {
        Emphasis::Automatic => rest[..end].trim(),
        Emphasis::Lpw => &rest[..end],
    };
    let written = number.strip_prefix(['+', '-']).unwrap_or(number);
    if written.is_empty() || !written.chars().all(|c| c.is_numeric() || c == '.') {
        return Ok(None);
    }
    if let Ok(number) = number.parse() {
        return Ok(Some((number, end + 1)));
    }
    let shown: String = number.chars().take(20).collect();
    let problem = format!("the weight {shown:?} is no number: write one such as 1.2, or \\: for the character");
    Err(EngineError::Request { field: "prompt", problem })
}

/// `text`, cut where it says `BREAK`; blanks around that go with it.
fn push_text(segments: &mut Vec<Segment>, text: &str, emphasis: Emphasis) {
    let mut rest = text;
    while let Some(place) = find_word(rest, BREAK).filter(|_| emphasis == Emphasis::Automatic) {
        push(segments, rest[..place].trim_end().to_owned());
        segments.push(Segment { text: BREAK.to_owned(), weight: BREAK_WEIGHT });
        rest = rest[place + BREAK.len()..].trim_start();
    }
    push(segments, rest.to_owned());
}

fn push(segments: &mut Vec<Segment>, text: String) {
    segments.push(Segment { text, weight: 1.0 });
}

fn emphasize(segments: &mut [Segment], start: Option<usize>, factor: f64) {
    for segment in segments.iter_mut().skip(start.unwrap_or_default()) {
        segment.weight *= factor;
    }
}

/// Neighbours of the same weight are one text, so that a word is not cut in two.
fn joined(segments: Vec<Segment>) -> Vec<Segment> {
    let mut joined: Vec<Segment> = Vec::new();
    for segment in segments {
        match joined.last_mut() {
            Some(last) if last.weight.to_bits() == segment.weight.to_bits() => last.text.push_str(&segment.text),
            _ => joined.push(segment),
        }
    }
    joined
}

fn checked(segments: Vec<Segment>) -> Result<Vec<Segment>, EngineError> {
    match segments.iter().find(|segment| !(-LARGEST_WEIGHT..=LARGEST_WEIGHT).contains(&segment.weight)) {
        None => Ok(segments),
        Some(Segment { text, weight }) => {
            let problem = format!("the weight of {text:?} must be from -{LARGEST_WEIGHT} to {LARGEST_WEIGHT}, got {weight}");
            Err(EngineError::Request { field: "prompt", problem })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(prompt: &str) -> Vec<(String, f64)> {
        read_by(prompt, Emphasis::Automatic)
    }

    fn read_by(prompt: &str, emphasis: Emphasis) -> Vec<(String, f64)> {
        let segments = segments(prompt, emphasis).expect("a prompt");
        segments.into_iter().map(|Segment { text, weight }| (text, (weight * 1e6).round() / 1e6)).collect()
    }

    fn of(pairs: &[(&str, f64)]) -> Vec<(String, f64)> {
        pairs.iter().map(|(text, weight)| ((*text).to_owned(), *weight)).collect()
    }

    /// The examples that the reference states in its documentation, and the corners it leaves out.
    #[test]
    fn brackets_mean_what_they_mean_elsewhere() {
        assert_eq!(read("normal text"), of(&[("normal text", 1.0)]));
        assert_eq!(read("an (important) word"), of(&[("an ", 1.0), ("important", 1.1), (" word", 1.0)]));
        assert_eq!(read("(unbalanced"), of(&[("unbalanced", 1.1)]));
        assert_eq!(read("\\(literal\\]"), of(&[("(literal]", 1.0)]));
        assert_eq!(read("(unnecessary)(parens)"), of(&[("unnecessaryparens", 1.1)]));
        let nested = [
            ("a ", 1.0),
            ("house", 1.573),
            (" ", 1.1),
            ("on", 1.0),
            (" a ", 1.1),
            ("hill", 0.55),
            (", sun, ", 1.1),
            ("sky", 1.4641),
            (".", 1.1),
        ];
        assert_eq!(read("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky)))."), of(&nested));
        assert_eq!(read("[[far] away"), of(&[("far", 0.826_446), (" away", 0.909_091)]));
        assert_eq!(read("a) b] 3:4 (c:d) e:1.5)"), of(&[("a) b] 3:4 ", 1.0), ("c:d", 1.1), (" e:1.5)", 1.0)]));
        assert_eq!(read("(off:0)(down:-.5)(up:+2)"), of(&[("off", 0.0), ("down", -0.5), ("up", 2.0)]));
        assert_eq!(read("a:1.2.3)"), of(&[("a:1.2.3)", 1.0)]));
        for emphasis in [Emphasis::Automatic, Emphasis::Lpw] {
            for wrong in ["(a:1.2.3)", "(wait:...)", "(a:１.４)", "(a:٢)"] {
                let error = segments(wrong, emphasis).expect_err("no number").to_string();
                assert!(error.contains("is no number"), "{error}");
            }
        }
        assert_eq!(read("back\\\\slash\\n"), of(&[("back\\slashn", 1.0)]));
        assert_eq!(read(""), of(&[]));
    }

    #[test]
    fn a_comment_reaches_to_the_end_of_its_line() {
        assert_eq!(without_comments("a cat # on a mat\n# all of it\nb#"), "a cat \n\nb");
        assert_eq!(without_comments("no comment"), "no comment");
    }

    #[test]
    fn a_weight_may_have_blanks_around_it_in_one_of_the_two() {
        let prompt = "a (red: 1.4) cat, (blue :1.5), (green:\t+.5 )";
        let weighted = [("a ", 1.0), ("red", 1.4), (" cat, ", 1.0), ("blue ", 1.5), (", ", 1.0), ("green", 0.5)];
        assert_eq!(read(prompt), of(&weighted));
        let text = [("a ", 1.0), ("red: 1.4", 1.1), (" cat, ", 1.0), ("blue ", 1.5), (", ", 1.0), ("green:\t+.5 ", 1.1)];
        assert_eq!(read_by(prompt, Emphasis::Lpw), of(&text));
    }

    /// As AUTOMATIC1111 has it, down to its quirk: in brackets the word is text, for its mark is weighted too.
    #[test]
    fn a_break_is_a_word_of_its_own_outside_of_brackets() {
        assert_eq!(read("a BREAK b"), of(&[("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]));
        assert_eq!(read("a (b) \n BREAK\n"), of(&[("a ", 1.0), ("b", 1.1), ("", 1.0), ("BREAK", -1.0), ("", 1.0)]));
        let twice = [("", 1.0), ("BREAK", -1.0), ("", 1.0), ("BREAK", -1.0), ("a", 1.0)];
        assert_eq!(read("BREAK BREAK a"), of(&twice));
        assert_eq!(read("a BREAKING OUTBREAK break"), of(&[("a BREAKING OUTBREAK break", 1.0)]));
        let bracketed = segments("(a BREAK b)", Emphasis::Automatic).expect("a prompt");
        assert!(bracketed.iter().all(|segment| !segment.is_break()) && bracketed[1].text == "BREAK", "{bracketed:?}");
        assert_eq!(read_by("a BREAK b", Emphasis::Lpw), of(&[("a BREAK b", 1.0)]));
    }

    #[test]
    fn a_weight_beyond_all_measure_is_refused() {
        let segments = |prompt: &str| segments(prompt, Emphasis::Automatic);
        let error = segments("a (big:10.5) cat").expect_err("10.5");
        assert_eq!(error.to_string(), "prompt: the weight of \"big\" must be from -10 to 10, got 10.5");
        assert!(segments(&"(".repeat(30)).is_ok(), "nothing is weighted");
        assert!(segments(&format!("{}cat", "(".repeat(30))).is_err());
    }
}
