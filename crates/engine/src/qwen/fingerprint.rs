//! Which image this is: images are the same when all of their bytes are.

use image::RgbImage;
use sha2::{Digest, Sha256};

/// Size and content of an image.
pub(super) type Fingerprint = (u32, u32, [u8; 32]);

pub(super) fn fingerprint(image: &RgbImage) -> Fingerprint {
    (image.width(), image.height(), Sha256::digest(image.as_raw()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_in_another_size_are_another_image() {
        let image = RgbImage::from_fn(2, 3, |x, y| image::Rgb([1, 2, (x + y) as u8]));
        let turned = RgbImage::from_raw(3, 2, image.clone().into_raw()).expect("as many bytes");
        assert_eq!(fingerprint(&image), fingerprint(&image.clone()));
        assert_ne!(fingerprint(&image), fingerprint(&turned));
    }
}
