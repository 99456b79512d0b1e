//! Prompt lists: words and expressions that no prompt may have, each under a category.
//!
//! A list is a YAML file, an element a category:
//!
//! ```yaml
//! - category: minors
//!   terms: [some word, another]      # whole words, in whatever case; a blank is any white space
//!   patterns: ['some(thing)?\s+else'] # regular expressions (crate regex), in whatever case
//!   except: [a phrase that is fine]   # taken out of the prompt before it is looked at
//!   except_patterns: ['fine(ly)?']    # expressions that are, too
//! ```
//!
//! - Lists and prompts are compared in Unicode's compatibility form (NFKC), in lower case, without invisible characters and without the accents of
//!   Latin, Greek and Cyrillic letters.
//! - A prompt is looked at a second time without the marks of weighted prompts: `(nu)de` and `(nude:1.2)` are the word. And a third time with its
//!   words as tags have them: `nude_woman` and `nude2` have the word as well.
//! - What is misspelled on purpose, or written in another language than the list, is not found.

use std::fs;
use std::path::Path;

use icu_normalizer::{ComposingNormalizerBorrowed, DecomposingNormalizerBorrowed};
use regex::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use serde::Deserialize;

use super::checker::is_word;
use crate::shown;

/// What no instruction may ask for that changes an image of a person.
const UNDRESS: &str = include_str!("undress.yaml");
/// What no negative prompt of such an instruction may keep out of the image.
const UNCOVER: &str = include_str!("uncover.yaml");
/// Bytes of the compiled expressions of one category.
const MAX_COMPILED_BYTES: usize = 16 << 20;

/// A list that was read.
#[derive(Debug, Clone)]
pub struct PromptList(Vec<Entry>);

#[derive(Debug, Clone)]
struct Entry {
    category: String,
    except: Option<Regex>,
    found: RegexSet,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    category: String,
    #[serde(default)]
    terms: Vec<String>,
    #[serde(default)]
    patterns: Vec<String>,
    #[serde(default)]
    except: Vec<String>,
    #[serde(default)]
    except_patterns: Vec<String>,
}

impl PromptList {
    /// The list for try-ons and edits that this binary has.
    ///
    /// # Errors
    /// None, as a test shows.
    pub fn undress() -> Result<Self, String> {
        Self::parse(UNDRESS)
    }

    /// The list of what is not left out of a person's image.
    ///
    /// # Errors
    /// None, as a test shows.
    pub fn uncover() -> Result<Self, String> {
        Self::parse(UNCOVER)
    }

    /// # Errors
    /// Says which element of the file is wrong, and how.
    pub fn read(path: &Path) -> Result<(Self, String), String> {
        let text = fs::read_to_string(path)
            .map_err(|error| format!("{} cannot be read ({error})", shown::text(&path.display().to_string())))?;
        let list = Self::parse(&text).map_err(|problem| format!("{}: {problem}", path.display()))?;
        Ok((list, text))
    }

    /// # Errors
    /// As [`Self::read`].
    pub fn parse(yaml: &str) -> Result<Self, String> {
        let written: Option<Vec<Written>> =
            serde_saphyr::from_str(yaml).map_err(|error| format!("is no prompt list: {error}"))?;
        let written = written.unwrap_or_default();
        if written.is_empty() {
            return Err("has no element, and would find nothing; leave it out of safety.prompt_lists".into());
        }
        let entries = written.into_iter().enumerate();
        let entries = entries.map(|(place, written)| entry(written).map_err(|problem| format!("element {place}: {problem}")));
        entries.collect::<Result<_, _>>().map(Self)
    }

    /// The category of the first element that the prompt has something of.
    #[must_use]
    pub fn category_of(&self, prompt: &str) -> Option<&str> {
        let plain = plain(prompt);
        let unmarked = without_marks(&plain);
        let spread = spread(&unmarked);
        let found = self.0.iter().find(|entry| [&plain, &unmarked, &spread].into_iter().any(|prompt| entry.matches(prompt)));
        found.map(|entry| entry.category.as_str())
    }
}

impl Entry {
    fn matches(&self, prompt: &str) -> bool {
        match &self.except {
            Some(except) => self.found.is_match(&except.replace_all(prompt, " ")),
            None => self.found.is_match(prompt),
        }
    }
}

fn entry(Written { category, terms, patterns, except, except_patterns }: Written) -> Result<Entry, String> {
    if !is_word(&category) {
        return Err(format!("category must be 1 to 32 of the characters a-z 0-9 _ -, got {}", shown::text(&category)));
    }
    if terms.is_empty() && patterns.is_empty() {
        return Err(format!("{category}: has neither terms nor patterns"));
    }
    if let Some(blank) = terms.iter().chain(&except).find(|term| plain(term).trim().is_empty()) {
        return Err(format!("{category}: {} is no word", shown::text(blank)));
    }
    let terms = terms.iter().map(|term| standalone(term));
    let patterns = patterns.iter().map(|pattern| without_accents(pattern));
    let found = RegexSetBuilder::new(terms.chain(patterns)).case_insensitive(true).size_limit(MAX_COMPILED_BYTES).build();
    let found = found.map_err(|error| format!("{category}: {error}"))?;
    // An expression that finds nothing at all in particular would block every prompt.
    if found.is_match("") {
        return Err(format!("{category}: one of its patterns matches an empty text, and so every prompt"));
    }
    let phrases = except.iter().map(|phrase| standalone(phrase));
    let phrases: Vec<String> = phrases.chain(except_patterns.iter().map(|pattern| without_accents(pattern))).collect();
    let except = (!phrases.is_empty()).then(|| {
        let all = format!("(?:{})", phrases.join(")|(?:"));
        RegexBuilder::new(&all).case_insensitive(true).size_limit(MAX_COMPILED_BYTES).build()
    });
    let except = except.transpose().map_err(|error| format!("{category}: {error}"))?;
    Ok(Entry { category, except, found })
}

/// An expression for a word or phrase that does not stand within a longer word; scripts without blanks have no such ends.
fn standalone(term: &str) -> String {
    let plain = plain(term);
    let parts: Vec<String> = plain.split_whitespace().map(regex::escape).collect();
    let end = |char: Option<char>| if char.is_some_and(has_word_ends) { r"\b" } else { "" };
    let first = end(plain.trim().chars().next());
    let last = end(plain.trim().chars().next_back());
    format!("{first}{}{last}", parts.join(r"\s+"))
}

/// Whether words of its script are set apart by blanks.
fn has_word_ends(char: char) -> bool {
    // Han, Hiragana, Katakana, Thai, Lao, Khmer and Burmese are not; Hangul takes endings.
    let runs_on = matches!(char, '\u{0E00}'..='\u{0EFF}' | '\u{1000}'..='\u{109F}' | '\u{1100}'..='\u{11FF}'
        | '\u{1780}'..='\u{17FF}' | '\u{3040}'..='\u{30FF}' | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}'
        | '\u{AC00}'..='\u{D7AF}' | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3FFFF}');
    char.is_alphanumeric() && !runs_on
}

/// In the form in which prompts are compared with lists.
fn plain(text: &str) -> String {
    // What is not seen goes first: it would keep a letter from its accent.
    let visible: String = text.chars().filter(|char| !is_invisible(*char)).collect();
    let composed = ComposingNormalizerBorrowed::new_nfkc().normalize(&visible);
    without_accents(&composed.to_lowercase())
}

/// Without the accents of Latin, Greek and Cyrillic letters, which many leave out; in other scripts they are what sets words apart.
fn without_accents(text: &str) -> String {
    let apart = DecomposingNormalizerBorrowed::new_nfd().normalize(text);
    let plain = apart.chars().filter(|char| !matches!(char, '\u{300}'..='\u{36F}')).map(|char| match char {
        'ı' => 'i',
        'ł' => 'l',
        'ø' => 'o',
        'đ' => 'd',
        other => other,
    });
    ComposingNormalizerBorrowed::new_nfc().normalize(&plain.collect::<String>()).into_owned()
}

/// With blanks where tags have none: for `_`, and between letters and digits.
fn spread(prompt: &str) -> String {
    let mut spread = String::with_capacity(prompt.len());
    let mut before = ' ';
    for char in prompt.chars() {
        let is_seam = before.is_alphabetic() && char.is_numeric() || before.is_numeric() && char.is_alphabetic();
        if is_seam {
            spread.push(' ');
        }
        before = if char == '_' { ' ' } else { char };
        spread.push(before);
    }
    spread
}

/// What a reader does not see and a tokenizer mostly drops: soft hyphen, joiners, direction marks, variation selectors, tags.
fn is_invisible(char: char) -> bool {
    matches!(char, '\u{AD}' | '\u{34F}' | '\u{61C}' | '\u{115F}' | '\u{1160}' | '\u{3164}' | '\u{FFA0}' | '\u{180B}'..='\u{180F}' | '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}'
        | '\u{2060}'..='\u{206F}' | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}' | '\u{E0000}'..='\u{E0FFF}')
}

/// Without what weighted prompts emphasize by: brackets, backslashes, and the weight behind a colon.
fn without_marks(prompt: &str) -> String {
    let mut unmarked = String::with_capacity(prompt.len());
    let mut chars = prompt.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '(' | ')' | '[' | ']' | '{' | '}' | '\\' => {}
            ':' => while chars.next_if(|next| next.is_ascii_digit() || matches!(next, '.' | '-' | '+')).is_some() {},
            char => unmarked.push(char),
        }
    }
    unmarked
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r"
- category: minors
  terms: [some word, 未成年, ребёнок]
- category: weapons
  patterns: ['gun(s|fire)?\b']
  except: [hot glue gun]
";

    #[test]
    fn words_are_whole_and_in_whatever_case_and_form() {
        let list = PromptList::parse(LIST).unwrap();
        let found = [
            "a Some  Word here",
            "ｓｏｍｅ ｗｏｒｄ",
            "so\u{200B}me wo\u{AD}rd",
            "(some) word",
            "some (wo)rd",
            "[some word:0.8]",
            "一个未成年人",
            "РЕБЁНОК в саду",
            "ребе\u{308}нок",
        ];
        for prompt in found {
            assert_eq!(list.category_of(prompt), Some("minors"), "{prompt}");
        }
        for prompt in ["", "some words", "awesome word", "some sword", "成年人"] {
            assert_eq!(list.category_of(prompt), None, "{prompt}");
        }
    }

    #[test]
    fn exceptions_are_taken_out_first() {
        let list = PromptList::parse(LIST).unwrap();
        assert_eq!(list.category_of("gunfire at dawn"), Some("weapons"));
        assert_eq!(list.category_of("a hot glue gun"), None);
        assert_eq!(list.category_of("a hot glue gun and a gun"), Some("weapons"));
        assert_eq!(list.category_of("gunnera leaves"), None);
    }

    #[test]
    fn a_wrong_list_says_which_element_and_why() {
        let wrong = [
            ("- category: A b\n  terms: [x]", "element 0: category must be 1 to 32"),
            ("- category: a\n  terms: [x]\n- category: b", "element 1: b: has neither terms nor patterns"),
            ("- category: a\n  patterns: ['(']", "element 0: a: regex parse error"),
            ("- category: a\n  patterns: ['x*']", "element 0: a: one of its patterns matches an empty text"),
            ("- category: a\n  terms: [\"\u{200B}\"]", "element 0: a: \"\\u{200b}\" is no word"),
            ("- category: a\n  term: [x]", "is no prompt list: "),
            ("a", "is no prompt list: "),
            ("", "has no element"),
            ("# a comment", "has no element"),
            ("[]", "has no element"),
            ("- category: a\n  terms: [x]\n  except_patterns: [')']", "element 0: a: regex parse error"),
        ];
        for (yaml, problem) in wrong {
            let error = PromptList::parse(yaml).unwrap_err();
            assert!(error.contains(problem), "{yaml}: {error}");
        }
    }

    /// Sentences of `tests/fixtures/undress.yaml`.
    #[derive(Deserialize)]
    struct Sentences {
        refused: Vec<String>,
        fine: Vec<String>,
        negative_refused: Vec<String>,
        negative_fine: Vec<String>,
    }

    #[test]
    fn no_instruction_may_undress_and_clothes_may_be_changed() {
        let sentences: Sentences = serde_saphyr::from_str(include_str!("../../tests/fixtures/undress.yaml")).unwrap();
        let [undress, uncover] = [PromptList::undress(), PromptList::uncover()].map(Result::unwrap);
        let mut wrong = Vec::new();
        let Sentences { refused, fine, negative_refused, negative_fine } = &sentences;
        for (list, prompts, category) in [
            (&undress, refused, Some("undress")),
            (&undress, fine, None),
            (&uncover, negative_refused, Some("undress")),
            (&uncover, negative_fine, None),
        ] {
            wrong.extend(prompts.iter().filter(|prompt| list.category_of(prompt) != category));
        }
        assert_eq!(wrong, Vec::<&String>::new());
    }
}
