//! Which way up an image is meant to be seen, from its EXIF or XMP, as Pillow's `exif_transpose` reads it.

use image::metadata::Orientation;

const ORIENTATION: u16 = 0x0112;
/// What PNG and WebP writers put before the EXIF block, although only JPEG has it there.
const PREFIX: &[u8] = b"Exif\0\0";

/// What a file says about its image, as it lies there.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    pub(super) exif: Vec<u8>,
    pub(super) xmp: Option<Vec<u8>>,
}

impl Metadata {
    /// Unreadable metadata turns nothing.
    pub(super) fn orientation(&self) -> Orientation {
        let stored = in_exif(&self.exif).or_else(|| self.xmp.as_deref().and_then(in_xmp));
        stored.and_then(|value| u8::try_from(value).ok()).and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
    }
}

/// Reads the orientation out of a TIFF block's first directory (TIFF 6.0, section 2).
fn in_exif(mut block: &[u8]) -> Option<u32> {
    while let Some(rest) = block.strip_prefix(PREFIX) {
        block = rest;
    }
    let little_endian = match block.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let block = Block { bytes: block, little_endian };
    let directory = block.u32(4)? as usize;
    let count = usize::from(block.u16(directory)?);
    let found = (0..count).map(|index| directory + 2 + 12 * index).find(|at| block.u16(*at) == Some(ORIENTATION))?;
    if block.u32(found + 4)? != 1 {
        return None;
    }
    // A single value lies in the entry itself: BYTE, SHORT, LONG and their signed kinds.
    match block.u16(found + 2)? {
        1 | 6 => block.bytes.get(found + 8).map(|value| u32::from(*value)),
        3 | 8 => block.u16(found + 8).map(u32::from),
        4 | 9 => block.u32(found + 8),
        _ => None,
    }
}

struct Block<'a> {
    bytes: &'a [u8],
    little_endian: bool,
}

impl Block<'_> {
    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = self.bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if self.little_endian { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if self.little_endian { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }
}

/// `tiff:Orientation="6"` as an attribute, or `<tiff:Orientation>6<` as an element.
fn in_xmp(xmp: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"tiff:Orientation";
    let places = xmp.windows(NAME.len()).enumerate().filter(|(_, window)| *window == NAME).map(|(at, _)| at + NAME.len());
    places.map(|at| &xmp[at..]).find_map(|rest| {
        let digit = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?.first()?;
        digit.is_ascii_digit().then(|| u32::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block with one entry before the orientation.
    fn block(little_endian: bool, kind: u16, value: u32) -> Vec<u8> {
        let u16 = |value: u16| if little_endian { value.to_le_bytes() } else { value.to_be_bytes() };
        let u32 = |value: u32| if little_endian { value.to_le_bytes() } else { value.to_be_bytes() };
        let mut block = if little_endian { b"II*\0".to_vec() } else { b"MM\0*".to_vec() };
        block.extend(u32(8));
        block.extend(u16(2));
        for (tag, kind, value) in [(0x0100, 4, 640), (ORIENTATION, kind, value)] {
            block.extend(u16(tag));
            block.extend(u16(kind));
            block.extend(u32(1));
            match kind {
                3 => block.extend(u16(value as u16).into_iter().chain([0, 0])),
                1 => block.extend([value as u8, 0, 0, 0]),
                _ => block.extend(u32(value)),
            }
        }
        block
    }

    fn orientation(exif: Vec<u8>, xmp: Option<&[u8]>) -> u8 {
        Metadata { exif, xmp: xmp.map(<[u8]>::to_vec) }.orientation().to_exif()
    }

    #[test]
    fn every_way_to_store_the_orientation_is_read() {
        for value in 1..=8_u8 {
            for (little_endian, kind) in [(true, 3), (false, 3), (true, 4), (false, 4), (true, 1)] {
                let block = block(little_endian, kind, value.into());
                assert_eq!(orientation(block.clone(), None), value, "{kind}");
                let prefixed: Vec<u8> = PREFIX.iter().copied().chain(block).collect();
                assert_eq!(orientation(prefixed, None), value, "{kind}, with a prefix");
            }
        }
        assert_eq!(orientation(Vec::new(), Some(br#"<rdf:Description tiff:Orientation="8"/>"#)), 8);
        assert_eq!(orientation(Vec::new(), Some(b"<tiff:Orientation>3</tiff:Orientation>")), 3);
        assert_eq!(orientation(block(true, 3, 6), Some(b"<tiff:Orientation>3</tiff:Orientation>")), 6, "EXIF counts first");
    }

    #[test]
    fn what_cannot_be_read_turns_nothing() {
        let good = block(true, 3, 6);
        for length in 0..good.len() - 4 {
            assert_eq!(orientation(good[..length].to_vec(), None), 1, "cut at {length}");
        }
        for value in [0, 9, 65_535] {
            assert_eq!(orientation(block(false, 3, value), None), 1);
        }
        let mut far = block(true, 3, 6);
        far[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(orientation(far, None), 1);
        assert_eq!(orientation(block(true, 5, 6), None), 1, "a fraction is no orientation");
    }
}
