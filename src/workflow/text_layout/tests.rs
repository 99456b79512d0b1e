//! What a line of text must hold: the built-in font sets what it promises, and names what it cannot set.

use super::*;

fn layout(text: &str) -> Result<TextLayout, TextLayoutError> {
    TextLayout::new(text, &Fonts::built_in())
}

fn refused(character: char) -> TextLayoutError {
    TextLayoutError::Character { character, of_directory: false }
}

#[test]
fn sets_the_alphabets_and_signs_it_promises() {
    for text in ["© Ada Lovelace ™ ® ½ €", "Ζωγραφιά", "Художник Ёж", "Tiếng Việt", "Հայ ქართ", "★ ♥ → ✓ № …", "Å ñ ø ß Ł ş"]
    {
        let mask = layout(text).unwrap().mask(24.0);
        assert!(mask.alpha.iter().any(|alpha| *alpha > 0.9), "{text}");
    }
}

#[test]
fn names_the_character_it_cannot_set() {
    for (text, character) in
        [("a😀", '😀'), ("אב", 'א'), ("مرحبا", 'م'), ("你好", '你'), ("हि", 'ह'), ("a\u{202E}b", '\u{202E}')]
    {
        assert_eq!(layout(text).unwrap_err(), refused(character));
    }
    let message = layout("a\u{1F600}").unwrap_err().to_string();
    assert!(
        message.contains("the built-in font cannot set: U+1F600 '😀'") && message.contains("workflow.watermark.fonts"),
        "{message}"
    );
}

#[test]
fn composes_accents_and_refuses_loose_ones() {
    assert_eq!(layout("Ame\u{301}lie").unwrap().mask(24.0), layout("Amélie").unwrap().mask(24.0));
    assert_eq!(layout("q\u{301}").unwrap_err(), refused('\u{301}'));
}

#[test]
fn refuses_text_without_ink() {
    for text in [" \u{A0}\u{2003}", "", "\u{200D}", "\u{FE0F} \u{200F}"] {
        assert_eq!(layout(text).unwrap_err(), TextLayoutError::Blank, "{text:?}");
    }
}

#[test]
fn sets_what_it_can_when_asked_to() {
    assert_eq!(TextLayout::lossy("a 😀\nAme\u{301}lie").unwrap().text, "a □ Amélie");
    assert!(TextLayout::lossy(" \n").is_none());
}

#[test]
fn kerns_pairs() {
    let width = |text| layout(text).unwrap().width_px(100.0);
    assert!(width("AVAVAV") < width("AAA") + width("VVV") - 10.0);
}

#[test]
fn breaks_between_words_and_loses_none() {
    let text = layout("a lighthouse at dusk and an extraordinarily long word").unwrap();
    let lines = text.in_lines(90.0, 16.0);
    assert!(lines.len() > 3 && lines.iter().all(|line| line.width_px(16.0) <= 90.0), "{lines:?}");
    let cut = lines.iter().filter(|line| line.text.ends_with('…'));
    assert_eq!(cut.count(), 1, "the one word that is too wide: {lines:?}");
    let [whole] = text.in_lines(1000.0, 16.0).try_into().unwrap();
    assert_eq!(whole.text, text.text);
    let all: Vec<String> = text.in_lines(200.0, 16.0).into_iter().map(|line| line.text).collect();
    assert_eq!(all.join(" "), text.text);
}

#[test]
fn cuts_with_an_ellipsis() {
    let text = layout("a lighthouse at dusk").unwrap();
    assert_eq!(text.cut_to(1000.0, 16.0).text, text.text);
    let cut = text.cut_to(80.0, 16.0);
    assert!(cut.text.ends_with('…') && cut.width_px(16.0) <= 80.0 && cut.text.chars().count() > 5, "{cut:?}");
    assert_eq!(text.cut_to(0.0, 16.0).text, "…");
}

#[test]
fn capitals_are_as_high_as_is_asked_for() {
    for height_px in [12.0_f32, 25.6, 100.0] {
        let drawn = layout("H").unwrap().size_px(line_px_of_capitals(height_px)).1;
        assert!((drawn - height_px).abs() <= 1.0, "{height_px}: {drawn}");
    }
}

#[test]
fn a_directory_without_fonts_is_named() {
    let home = tempfile::tempdir().unwrap();
    let problem = |directory: &std::path::Path| Fonts::load(Some(directory)).unwrap_err();
    assert!(problem(&home.path().join("none")).contains("none: cannot be read"), "{}", problem(&home.path().join("none")));
    std::fs::write(home.path().join("readme.txt"), "no font").unwrap();
    assert!(problem(home.path()).ends_with("has no file that ends in .ttf, .otf, .ttc, .otc"), "{}", problem(home.path()));
    std::fs::write(home.path().join("broken.TTF"), "no font").unwrap();
    assert!(problem(home.path()).ends_with("broken.TTF: is no TrueType or OpenType font"), "{}", problem(home.path()));
}
