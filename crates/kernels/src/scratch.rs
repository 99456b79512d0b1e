//! Memory that a task works in.

use std::ops::{Deref, DerefMut};

/// Of a cache line, and of the widest vectors: one that lies in two lines costs two loads.
const LINE_BYTES: usize = 64;

/// Values whose first is the first of a cache line.
pub(crate) struct Scratch {
    values: Vec<f32>,
    start: usize,
}

impl Scratch {
    pub(crate) fn zeros(count: usize) -> Self {
        let mut values = vec![0.0_f32; count + LINE_BYTES / size_of::<f32>() - 1];
        let start = values.as_ptr().align_offset(LINE_BYTES);
        values.truncate(start + count);
        Self { values, start }
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.start..]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_begins_at_a_cache_line_and_is_as_long_as_it_was_asked_for() {
        for count in [0, 1, 15, 16, 17, 4_099, 1 << 20] {
            let mut scratch = Scratch::zeros(count);
            assert_eq!((scratch.len(), scratch.as_ptr().addr() % LINE_BYTES), (count, 0));
            scratch.fill(1.0);
            assert!(scratch.len() == count && scratch.iter().all(|value| value.to_bits() == 1.0_f32.to_bits()));
        }
    }
}
