//! What was used last, within a bound: what would exceed it lets go of what was not used for the longest time.

use std::hash::Hash;

use lru::LruCache;

/// Values by key, as many as weigh `max` together at most.
pub(crate) struct Recent<Key: Hash + Eq, Value> {
    known: LruCache<Key, Value>,
    max: usize,
    weigh: fn(&Key, &Value) -> usize,
}

impl<Key: Hash + Eq, Value> Recent<Key, Value> {
    /// `weigh`: what a value counts, such as 1 or its bytes. One that weighs more than `max` alone is not kept.
    pub(crate) fn new(max: usize, weigh: fn(&Key, &Value) -> usize) -> Self {
        Self { known: LruCache::unbounded(), max, weigh }
    }

    /// The value of `key`, which counts as a use.
    pub(crate) fn get(&mut self, key: &Key) -> Option<&Value> {
        self.known.get(key)
    }

    /// The value of `key`, for those who only look.
    pub(crate) fn peek(&self, key: &Key) -> Option<&Value> {
        self.known.peek(key)
    }

    /// The value of `key`, to be changed, which counts as a use.
    pub(crate) fn get_mut(&mut self, key: &Key) -> Option<&mut Value> {
        self.known.get_mut(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Lets go of what was not used for the longest time until so much more can be kept. Returns false, and keeps all, where it never can.
    pub(crate) fn make_room(&mut self, weight: usize) -> bool {
        let Some(max) = self.max.checked_sub(weight) else { return false };
        self.shrink(max);
        true
    }

    /// Lets go of those whose keys `stays` is false for.
    pub(crate) fn retain(&mut self, stays: impl Fn(&Key) -> bool)
    where
        Key: Clone,
    {
        let gone: Vec<Key> = self.known.iter().map(|(key, _)| key).filter(|key| !stays(key)).cloned().collect();
        for key in gone {
            self.known.pop(&key);
        }
    }

    pub(crate) fn put(&mut self, key: Key, value: Value) {
        self.known.put(key, value);
        self.shrink(self.max);
    }

    fn shrink(&mut self, max: usize) {
        while self.known.iter().map(|(key, value)| (self.weigh)(key, value)).sum::<usize>() > max {
            self.known.pop_lru();
        }
    }

    /// The value of `key`, or what `make` makes of it.
    ///
    /// # Errors
    /// Those of `make`; then nothing is kept.
    pub(crate) fn of<E>(&mut self, key: Key, make: impl FnOnce() -> Result<Value, E>) -> Result<Value, E>
    where
        Value: Clone,
    {
        if let Some(value) = self.get(&key) {
            return Ok(value.clone());
        }
        let value = make()?;
        self.put(key, value.clone());
        Ok(value)
    }

    pub(crate) fn forget(&mut self) {
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
            Ok::<(), ()>(())
        });
        value.expect("a value");
        was_made
    }

    #[test]
    fn a_value_is_made_once_until_many_others_were_asked_for() {
        let mut recent = Recent::new(3, |_, ()| 1);
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
    fn weights_count_and_looking_is_no_use() {
        let mut recent: Recent<&str, usize> = Recent::new(10, |_, weight| *weight);
        recent.put("a", 4);
        recent.put("b", 4);
        assert_eq!(recent.peek(&"a"), Some(&4));
        recent.put("c", 2);
        assert!(recent.peek(&"a").is_some(), "10 of 10");
        recent.put("d", 1);
        assert_eq!((recent.peek(&"a"), recent.peek(&"b")), (None, Some(&4)), "a was looked at, not used");
        assert_eq!(recent.get(&"b"), Some(&4));
        recent.put("e", 6);
        assert_eq!((recent.peek(&"c"), recent.peek(&"d"), recent.peek(&"b")), (None, None, Some(&4)));
        recent.put("f", 11);
        assert!(recent.peek(&"f").is_none(), "more than all there may be");
        recent.put("h", 3);
        recent.put("i", 3);
        assert!(!recent.make_room(11) && recent.len() == 2, "in vain, so all stay");
        assert!(recent.make_room(5) && recent.peek(&"h").is_none(), "3 + 5 of 10");
        recent.put("j", 1);
        recent.retain(|key| *key != "i");
        assert_eq!((recent.peek(&"i"), recent.peek(&"j")), (None, Some(&1)));
        recent.forget();
        assert!(recent.is_empty());
        assert_eq!(recent.of("g", || Err("no")), Err("no"));
        assert!(recent.peek(&"g").is_none());
    }
}
