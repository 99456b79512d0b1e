//! What XMP is found by in a file (XMP specification, part 3).

/// What an application's segment of a JPEG starts with that holds XMP (section 1.1.3).
pub const XMP_IN_JPEG: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
/// The keyword of XMP in a PNG (section 1.1.5).
pub const XMP_IN_PNG: &str = "XML:com.adobe.xmp";
