//! What a file is by its first bytes: a kind that is read, or one that is refused by its name.

/// What every refusal begins with.
pub(super) const ALLOWED: &str = "must be a PNG, JPEG or WebP image";

/// Bytes at the beginning of a file that [`Kind::of`] needs.
pub const FIRST_BYTES: usize = 1024;

/// The kinds of image files that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Png,
    Jpeg,
    WebP,
}

/// What files begin with that are often sent in an image's place, and their names. The longer prefix comes first.
const OTHERS: &[(&[u8], &str)] = &[
    (b"GIF8", "image/gif (GIF)"),
    (b"BM", "image/bmp (BMP)"),
    (b"II*\0", "image/tiff (TIFF, or a camera's raw file)"),
    (b"MM\0*", "image/tiff (TIFF, or a camera's raw file)"),
    (b"II+\0", "image/tiff (BigTIFF)"),
    (b"MM\0+", "image/tiff (BigTIFF)"),
    (b"8BPS", "a Photoshop file"),
    (b"\0\0\x01\0", "image/x-icon (ICO)"),
    (b"\xff\x0a", "image/jxl (JPEG XL)"),
    (b"\0\0\0\x0cJXL ", "image/jxl (JPEG XL)"),
    (b"\0\0\0\x0cjP  ", "image/jp2 (JPEG 2000)"),
    (b"\xff\x4f\xff\x51", "image/jp2 (JPEG 2000)"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a file compressed with gzip"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file that it stands for"),
    (b"iVBORw0KGgo", "an image's base64, not its bytes"),
    (b"/9j/", "an image's base64, not its bytes"),
    (b"UklGR", "an image's base64, not its bytes"),
    (b"data:", "a data: URL, not the bytes in it"),
];

/// Brands of ISO base media files (ISO/IEC 14496-12, 23008-12), and what they are called.
const BRANDS: &[(&[&[u8; 4]], &str)] = &[
    (&[b"avif", b"avis"], "image/avif (AVIF)"),
    (&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"], HEIC),
    (&[b"mif1", b"msf1"], HEIC),
    (&[b"crx "], "a camera's raw file (CR3)"),
];
const HEIC: &str = "image/heic (HEIC, which iPhones take photos in)";

impl Kind {
    /// `file`: the first [`FIRST_BYTES`] bytes or more.
    ///
    /// # Errors
    /// Names what the file is instead, where that can be seen.
    pub fn of(file: &[u8]) -> Result<Self, String> {
        let first = &file[..file.len().min(FIRST_BYTES)];
        if first.starts_with(b"\x89PNG\r\n\x1a\n") {
            return Ok(Self::Png);
        }
        if first.starts_with(b"\xff\xd8\xff") {
            return Ok(Self::Jpeg);
        }
        if first.starts_with(b"RIFF") && first.get(8..12) == Some(b"WEBP") {
            return Ok(Self::WebP);
        }
        match other(first) {
            Some(name) => Err(format!("{ALLOWED}, got {name}")),
            None => Err(format!("{ALLOWED}, and is none by its first bytes")),
        }
    }

    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::WebP => "image/webp",
        }
    }

    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::WebP => "webp",
        }
    }
}

fn other(first: &[u8]) -> Option<&'static str> {
    if first.is_empty() {
        return Some("an empty file");
    }
    let named = OTHERS.iter().find(|(prefix, _)| first.starts_with(prefix)).map(|(_, name)| *name);
    named.or_else(|| base_media(first)).or_else(|| markup(first))
}

/// A file in boxes, of which the first says what it is: its main brand, and all that it is compatible with.
fn base_media(first: &[u8]) -> Option<&'static str> {
    if first.get(4..8)? != b"ftyp" {
        return None;
    }
    let length = u32::from_be_bytes(first.get(..4)?.try_into().ok()?) as usize;
    let brands = first.get(8..length.min(first.len()))?;
    let named = BRANDS.iter().find(|(names, _)| brands.chunks_exact(4).any(|brand| names.iter().any(|name| brand == *name)));
    Some(named.map_or("a video or another file in MP4's form", |(_, name)| *name))
}

/// What a server answers with that has no image: pages and errors.
fn markup(first: &[u8]) -> Option<&'static str> {
    let text = String::from_utf8_lossy(first).to_ascii_lowercase();
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if text.starts_with("<svg") || (text.starts_with('<') && text.contains("<svg")) {
        return Some("image/svg+xml (SVG, which has no pixels)");
    }
    if ["<!doctype html", "<html", "<head", "<body", "<script"].iter().any(|tag| text.starts_with(tag)) {
        return Some("text/html (a web page)");
    }
    if text.starts_with("<?xml") || text.starts_with("<error>") {
        return Some("an XML document, such as a storage server's error");
    }
    (text.starts_with('{') && text.contains('"')).then_some("a JSON document")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(file: &[u8]) -> String {
        Kind::of(file).expect_err("must be refused")
    }

    #[test]
    fn what_is_no_image_that_is_read_is_called_by_its_name() {
        for (file, name) in [
            (&b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic"[..], "HEIC"),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
            (b"\0\0\0\x1cftypavis\0\0\0\0", "AVIF"),
            (b"\0\0\0\x18ftypisom\0\0\0\0isommp41", "video"),
            (b"II*\0\x08\0\0\0", "TIFF"),
            (b"BM\x36\x30", "BMP"),
            (b"  \n<!DOCTYPE HTML><title>404</title>", "web page"),
            (b"\xef\xbb\xbf<?xml version=\"1.0\"?><svg xmlns=\"x\"/>", "SVG"),
            (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "XML"),
            (b"{\"message\": \"gone\"}", "JSON"),
            (b"iVBORw0KGgoAAAANSUhEUg", "base64"),
            (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
            (b"", "an empty file"),
        ] {
            let problem = refusal(file);
            assert!(problem.starts_with("must be a PNG, JPEG or WebP image, got "), "{problem}");
            assert!(problem.contains(name), "{problem}: {name}");
        }
        assert!(refusal(b"\n\xff\xd8\xff\xe0").contains("is none by its first bytes"));
    }
}
