//! What AUTOMATIC1111 reads in a prompt and we do not: refused by name, for as plain text it would give another image in silence.

use crate::EngineError;

/// Characters of a prompt that a message repeats.
const SHOWN: usize = 40;

/// Refuses prompt editing `[a:b:0.5]`, alternation `[a|b]`, extra networks `<lora:name:1>` and, unless `negative`, composition `AND`, which
/// AUTOMATIC1111 takes as text in a negative prompt.
///
/// # Errors
/// [`EngineError::Request`] for the field `prompt` names the first of them, and says what to do.
pub fn refuse_foreign_syntax(prompt: &str, negative: bool) -> Result<(), EngineError> {
    let refused = |found: &str, name: &str, advice: &str| {
        let shown: String = found.chars().take(SHOWN).collect();
        let problem = format!("{shown:?} is {name}, which is not supported: {advice}");
        Err(EngineError::Request { field: "prompt", problem })
    };
    if let Some(found) = extra_network(prompt) {
        return refused(found, "an extra network", "give LoRAs in the job's field lora, textual inversions in embeddings");
    }
    match in_square_brackets(prompt) {
        Some((found, Bracketed::Alternating)) => {
            return refused(found, "alternation between prompts", "write one of them, or \\| for the character");
        }
        Some((found, Bracketed::Scheduled)) => {
            return refused(found, "a prompt that changes between steps", "write one of them, or \\: for the character");
        }
        None => {}
    }
    if !negative && let Some(place) = find_word(prompt, "AND") {
        return refused(&prompt[place..], "composition of prompts", "write one prompt, or `and` in small letters");
    }
    Ok(())
}

enum Bracketed {
    Alternating,
    Scheduled,
}

/// `<lora:name:1>`, `<hypernet:name>` and the like.
fn extra_network(prompt: &str) -> Option<&str> {
    prompt.match_indices('<').find_map(|(start, _)| {
        let found = &prompt[start..=start + prompt[start..].find('>')?];
        let (name, arguments) = found[1..found.len() - 1].split_once(':')?;
        (is_word(name) && !arguments.is_empty()).then_some(found)
    })
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// A bracket that is open.
struct Open {
    is_square: bool,
    start: usize,
    has_bar: bool,
    after_colon: Option<usize>,
}

/// The first closed pair of square brackets that AUTOMATIC1111's grammar reads as more than emphasis.
fn in_square_brackets(prompt: &str) -> Option<(&str, Bracketed)> {
    let mut open: Vec<Open> = Vec::new();
    let mut characters = prompt.char_indices();
    while let Some((place, character)) = characters.next() {
        match character {
            '\\' => {
                characters.next();
            }
            '(' | '[' => {
                open.push(Open { is_square: character == '[', start: place, has_bar: false, after_colon: None });
            }
            ':' | '|' => {
                if let Some(open) = open.last_mut() {
                    open.has_bar |= character == '|';
                    open.after_colon = (character == ':').then_some(place + 1).or(open.after_colon);
                }
            }
            ')' | ']' => match open.pop() {
                Some(Open { is_square: true, start, has_bar, after_colon }) if character == ']' => {
                    let found = &prompt[start..=place];
                    if has_bar {
                        return Some((found, Bracketed::Alternating));
                    }
                    if after_colon.is_some_and(|colon| is_number(prompt[colon..place].trim())) {
                        return Some((found, Bracketed::Scheduled));
                    }
                }
                Some(Open { is_square: false, .. }) if character == ')' => {}
                // What is not closed by its own kind is text, and so is all around it.
                _ => open.clear(),
            },
            _ => {}
        }
    }
    None
}

fn is_number(text: &str) -> bool {
    text.parse::<f64>().is_ok() && text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte))
}

/// Where `word` stands by itself.
pub(super) fn find_word(text: &str, word: &str) -> Option<usize> {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word)
        .map(|(place, _)| place)
        .find(|place| !is_part(text[..*place].chars().next_back()) && !is_part(text[place + word.len()..].chars().next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(prompt: &str) -> Option<String> {
        refuse_foreign_syntax(prompt, false).err().map(|error| error.to_string())
    }

    #[test]
    fn what_another_program_would_read_is_refused_by_name() {
        for (prompt, shown, name) in [
            ("a [mountain:lake:0.25] view", "[mountain:lake:0.25]", "changes between steps"),
            ("a [b:3]", "[b:3]", "changes between steps"),
            ("a [b : c : .5 ] d", "[b : c : .5 ]", "changes between steps"),
            ("[ in foreground::0.6]", "[ in foreground::0.6]", "changes between steps"),
            ("[(a:2):3]", "[(a:2):3]", "changes between steps"),
            ("((a][:b:c [d:3]", "[d:3]", "changes between steps"),
            ("a [cow|horse] in a field", "[cow|horse]", "alternation"),
            ("[a|(b:1.1)]", "[a|(b:1.1)]", "alternation"),
            ("a cat AND a dog", "AND a dog", "composition"),
            ("a cat :1.2 AND\na dog :0.5", "AND", "composition"),
            ("a cat <lora:style-7:0.8>", "<lora:style-7:0.8>", "extra network"),
            ("<hypernet:x>", "<hypernet:x>", "extra network"),
        ] {
            let error = refused(prompt).expect(prompt);
            assert!(error.starts_with("prompt: ") && error.contains(shown) && error.contains(name), "{prompt}: {error}");
        }
        assert!(refused(&format!("[{}|b]", "a".repeat(500))).expect("refused").len() < 200);
    }

    #[test]
    fn what_only_looks_like_it_is_text() {
        for prompt in [
            "a [cat] and (dog:1.2)",
            "[unbalanced:0.5",
            "a | b",
            "3:4",
            "SAND, ANDROID, and AND_more",
            "\\[a:0.5\\]",
            "[a\\|b]",
            "[a:b:c]",
            "[a (b:0.5]",
            "[a) b:0.5]",
            "a <mood> cat, 2 < 3: yes > no",
            "<:x> <lora:>",
            "(a|b:1.3)",
        ] {
            assert_eq!(refused(prompt), None, "{prompt}");
        }
        assert!(refuse_foreign_syntax("ugly AND blurry", true).is_ok(), "AUTOMATIC1111 splits no negative prompt");
        assert!(refuse_foreign_syntax("[a|b]", true).is_err());
    }
}
