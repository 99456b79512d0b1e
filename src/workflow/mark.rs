//! The machine-readable mark that a model made an image, as XMP: it stands in every file, whatever else is left out.
//!
//! - `Iptc4xmpExt:DigitalSourceType` of IPTC's Photo Metadata Standard, with a term of its `NewsCodes`: what platforms and search engines read.
//! - `xmp:CreatorTool`, and `dc:relation` with the address of the job's record, where there is one.

use crate::job::task::Task;

/// How much of an image a model made, in the terms of <https://cv.iptc.org/newscodes/digitalsourcetype/>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DigitalSource {
    /// All of it, out of words, and out of what ControlNets and IP-Adapters look at.
    TrainedAlgorithmicMedia,
    /// It was made from other images.
    CompositeWithTrainedAlgorithmicMedia,
}

/// What made the file.
pub const CREATOR_TOOL: &str = concat!("atelier ", env!("CARGO_PKG_VERSION"));
/// By which a reader of XMP knows that a packet is UTF-8.
const BYTE_ORDER_MARK: char = '\u{FEFF}';

impl DigitalSource {
    #[must_use]
    pub fn of(task: &Task) -> Self {
        match task {
            Task::Generate(generate) if generate.start.is_none() => Self::TrainedAlgorithmicMedia,
            Task::Generate(_) | Task::TryOn(_) | Task::Edit(_) => Self::CompositeWithTrainedAlgorithmicMedia,
        }
    }

    /// The term's address, which is its value in XMP and in C2PA.
    #[must_use]
    pub fn uri(self) -> &'static str {
        match self {
            Self::TrainedAlgorithmicMedia => "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
            Self::CompositeWithTrainedAlgorithmicMedia => {
                "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
            }
        }
    }
}

/// An XMP packet that is not to be edited in place (ISO 16684-1, section 7.3.2). `record_url`: where the job's record can be read.
#[must_use]
pub fn xmp(source: DigitalSource, record_url: Option<&str>) -> String {
    let relation =
        record_url.map(|url| format!("\n   <dc:relation><rdf:Bag><rdf:li>{}</rdf:li></rdf:Bag></dc:relation>", escaped(url)));
    format!(
        r#"<?xpacket begin="{BYTE_ORDER_MARK}" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/">
   <Iptc4xmpExt:DigitalSourceType>{}</Iptc4xmpExt:DigitalSourceType>
   <xmp:CreatorTool>{CREATOR_TOOL}</xmp:CreatorTool>{}
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"#,
        source.uri(),
        relation.unwrap_or_default(),
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_cannot_leave_its_element() {
        let packet = xmp(DigitalSource::TrainedAlgorithmicMedia, Some("https://cdn.example/?a=1&b=<x>"));
        assert!(packet.contains("<rdf:li>https://cdn.example/?a=1&amp;b=&lt;x&gt;</rdf:li>"), "{packet}");
    }

    #[test]
    fn the_mark_stands_without_an_address() {
        let packet = xmp(DigitalSource::CompositeWithTrainedAlgorithmicMedia, None);
        assert!(packet.contains("digitalsourcetype/compositeWithTrainedAlgorithmicMedia</Iptc4xmpExt:DigitalSourceType>"));
        assert!(packet.starts_with("<?xpacket begin=\"\u{FEFF}\"") && !packet.contains("relation"), "{packet}");
    }
}
