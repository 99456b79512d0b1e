//! What was computed last, so that it is not computed again.

use std::collections::VecDeque;

use image::RgbImage;
use sha2::{Digest, Sha256};

use crate::EngineError;

/// Size and content of an image: images are the same when all of their bytes are.
pub(super) type Fingerprint = (u32, u32, [u8; 32]);

pub(super) fn fingerprint(image: &RgbImage) -> Fingerprint {
    (image.width(), image.height(), Sha256::digest(image.as_raw()).into())
}

/// The values of the `capacity` keys that were asked for last.
pub(super) struct Recent<Key, Value> {
    /// The last used at the end.
    known: VecDeque<(Key, Value)>,
    capacity: usize,
}

impl<Key: PartialEq, Value: Clone> Recent<Key, Value> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { known: VecDeque::new(), capacity }
    }

    /// The value of `key`, or what `make` makes of it.
    pub(super) fn of(&mut self, key: Key, make: impl FnOnce() -> Result<Value, EngineError>) -> Result<Value, EngineError> {
        let found = self.known.iter().position(|(known, _)| *known == key);
        let value = match found.and_then(|place| self.known.remove(place)) {
            Some((_, value)) => value,
            None => make()?,
        };
        self.known.push_back((key, value.clone()));
        if self.known.len() > self.capacity {
            self.known.pop_front();
        }
        Ok(value)
    }

    pub(super) fn forget(&mut self) {
        self.known.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(recent: &mut Recent<u32, ()>, key: u32) -> bool {
        let mut was_made = false;
        let value = recent.of(key, || {
            was_made = true;
            Ok(())
        });
        value.expect("a value");
        was_made
    }

    #[test]
    fn a_value_is_made_once_until_many_others_were_asked_for() {
        let mut recent = Recent::new(3);
        assert!(made(&mut recent, 0) && !made(&mut recent, 0));
        for key in 1..3 {
            assert!(made(&mut recent, key));
            assert!(!made(&mut recent, 1), "what was used last stays");
        }
        assert!(!made(&mut recent, 0) && made(&mut recent, 4));
        assert!(!made(&mut recent, 1) && made(&mut recent, 2), "only the longest unused went");
        recent.forget();
        assert!(made(&mut recent, 1));
    }

    #[test]
    fn the_same_bytes_in_another_size_are_another_image() {
        let image = RgbImage::from_fn(2, 3, |x, y| image::Rgb([1, 2, (x + y) as u8]));
        let turned = RgbImage::from_raw(3, 2, image.clone().into_raw()).expect("as many bytes");
        assert_eq!(fingerprint(&image), fingerprint(&image.clone()));
        assert_ne!(fingerprint(&image), fingerprint(&turned));
    }
}
