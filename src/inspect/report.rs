//! What was found in an image, as lines or as JSON.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::content_credentials::verify::{Credentials, State, UNTRUSTED};
use crate::image_file::notes::Notes;
use crate::invisible_mark::Found;
use crate::shown;

/// Characters of a text that a line shows.
const SHOWN_CHARS: usize = 200;

#[derive(Serialize)]
pub(super) struct Report {
    bytes: usize,
    #[serde(flatten)]
    notes: Notes,
    mark: Mark,
    /// None: there is none that is known, or the pixels cannot be read.
    invisible_mark: Option<Found>,
    /// Why the pixels cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable_pixels: Option<String>,
    /// None: there are none, or they cannot be read.
    content_credentials: Option<Credentials>,
    /// Why they cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<String>,
}

/// What the XMP says of how the image was made.
#[derive(Serialize)]
struct Mark {
    digital_source_type: Option<String>,
    creator_tool: Option<String>,
}

impl Report {
    pub(super) fn new(
        bytes: usize,
        notes: Notes,
        invisible_mark: Result<Option<Found>, String>,
        credentials: Result<Option<Credentials>, String>,
    ) -> Self {
        let named = |name: &str| notes.xmp.as_deref().and_then(|xmp| property(xmp, name));
        let mark = Mark { digital_source_type: named("Iptc4xmpExt:DigitalSourceType"), creator_tool: named("xmp:CreatorTool") };
        let (content_credentials, unreadable) = match credentials {
            Ok(credentials) => (credentials, None),
            Err(problem) => (None, Some(problem)),
        };
        let (invisible_mark, unreadable_pixels) = match invisible_mark {
            Ok(found) => (found, None),
            Err(problem) => (None, Some(problem)),
        };
        Self { bytes, notes, mark, invisible_mark, unreadable_pixels, content_credentials, unreadable }
    }
}

/// A simple property, as an attribute or as an element.
fn property(xmp: &str, name: &str) -> Option<String> {
    // What ends an attribute or an element, and nothing behind a place does, is not looked for again behind that place.
    let last_quote = xmp.rfind('"').unwrap_or(0);
    let last_tag = xmp.rfind('<').unwrap_or(0);
    let values = xmp.match_indices(name).filter_map(|(at, _)| {
        let rest = &xmp[at + name.len()..];
        let (rest, end) = match rest.strip_prefix("=\"") {
            Some(rest) if last_quote > at + name.len() + 1 => (rest, '"'),
            None if last_tag > at => (rest.strip_prefix('>')?, '<'),
            _ => return None,
        };
        rest.split_once(end).map(|(value, _)| value)
    });
    values.map(str::trim).find(|value| !value.is_empty()).map(str::to_owned)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "file         {}, {} bytes", self.notes.format, self.bytes)?;
        match (&self.content_credentials, &self.unreadable) {
            (Some(credentials), _) => write_credentials(f, credentials)?,
            (None, Some(problem)) => writeln!(f, "credentials  unreadable: {}", one_line(problem))?,
            (None, None) => writeln!(f, "credentials  none")?,
        }
        match (&self.mark.digital_source_type, &self.notes.xmp) {
            (Some(source), _) => writeln!(f, "mark         {}", one_line(source))?,
            (None, Some(_)) => writeln!(f, "mark         none; there is XMP without Iptc4xmpExt:DigitalSourceType")?,
            (None, None) => writeln!(f, "mark         none; there is no XMP")?,
        }
        if let Some(tool) = &self.mark.creator_tool {
            writeln!(f, "made by      {}", one_line(tool))?;
        }
        match (&self.invisible_mark, &self.unreadable_pixels) {
            (Some(found), _) => writeln!(f, "invisible    {found}")?,
            (None, Some(problem)) => writeln!(f, "invisible    the pixels cannot be read: it {}", one_line(problem))?,
            (None, None) => writeln!(f, "invisible    none that is known")?,
        }
        for text in &self.notes.texts {
            writeln!(f, "text         {}: {}", one_line(&text.keyword), one_line(&text.text))?;
        }
        if let Some(more) = self.notes.texts_left_out {
            writeln!(f, "text         {more} more, which are too long to show")?;
        }
        if !self.notes.chunks.is_empty() {
            let chunks: Vec<String> = self.notes.chunks.iter().map(|chunk| format!("{} {}", chunk.name, chunk.bytes)).collect();
            writeln!(f, "chunks       {}", one_line(&chunks.join(", ")))?;
        }
        Ok(())
    }
}

/// What credentials came to.
pub(super) fn in_words(state: State) -> &'static str {
    match state {
        State::Trusted => "trusted: unchanged since they were signed, by a signer of a trusted root",
        State::Valid => "valid: unchanged since they were signed, by a signer of no root that was named as trusted",
        State::Invalid => "invalid: changed since they were signed, or never right",
    }
}

fn write_credentials(f: &mut fmt::Formatter<'_>, credentials: &Credentials) -> fmt::Result {
    writeln!(f, "credentials  {}", in_words(credentials.state))?;
    for failure in credentials.failures.iter().filter(|failure| failure.code != UNTRUSTED) {
        writeln!(f, "  failure    {}: {}", one_line(&failure.code), one_line(&failure.explanation))?;
    }
    let active = credentials.manifests["active_manifest"].as_str().unwrap_or_default();
    let manifest = &credentials.manifests["manifests"][active];
    let signature = &manifest["signature_info"];
    writeln!(f, "  signed by  {} ({})", text_of(&signature["common_name"]), text_of(&signature["issuer"]))?;
    for generator in manifest["claim_generator_info"].as_array().into_iter().flatten() {
        writeln!(f, "  generator  {} {}", text_of(&generator["name"]), text_of(&generator["version"]))?;
    }
    let assertions = manifest["assertions"].as_array().into_iter().flatten();
    let actions = assertions.filter(|assertion| text_of(&assertion["label"]).starts_with("c2pa.actions"));
    for action in actions.flat_map(|assertion| assertion["data"]["actions"].as_array().into_iter().flatten()) {
        let parts = [&action["action"], &action["when"], &action["softwareAgent"]["name"], &action["digitalSourceType"]];
        let parts: Vec<String> = parts.into_iter().map(text_of).filter(|part| !part.is_empty()).collect();
        writeln!(f, "  action     {}", parts.join(", "))?;
    }
    for ingredient in manifest["ingredients"].as_array().into_iter().flatten() {
        let has_manifest = if ingredient["active_manifest"].is_string() { ", with credentials of its own" } else { "" };
        writeln!(f, "  input      {} ({}){has_manifest}", text_of(&ingredient["title"]), text_of(&ingredient["relationship"]))?;
    }
    Ok(())
}

fn text_of(value: &Value) -> String {
    one_line(value.as_str().unwrap_or_default())
}

/// The texts are a stranger's: nothing of them steers a terminal, and none fills it.
fn one_line(text: &str) -> String {
    let mut shown = shown::one_line(text);
    if let Some((end, _)) = shown.char_indices().nth(SHOWN_CHARS) {
        shown.truncate(end);
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_read_as_elements_and_as_attributes() {
        for xmp in ["<xmp:CreatorTool>a tool</xmp:CreatorTool>", "<rdf:Description xmp:CreatorTool=\"a tool\"/>"] {
            assert_eq!(property(xmp, "xmp:CreatorTool").as_deref(), Some("a tool"));
        }
        assert_eq!(property("xmlns:xmp:CreatorTool <xmp:CreatorTool>", "xmp:CreatorTool"), None);
    }

    #[test]
    fn what_steers_a_terminal_is_not_shown() {
        assert_eq!(one_line("a\u{1b}[31m\r\nb"), "a [31m b");
        assert_eq!(one_line(&"x".repeat(300)).chars().count(), SHOWN_CHARS + 1);
    }
}
