//! A result that tasks write side by side.

/// Places of a result, for tasks that each have their own of them.
pub(crate) struct Shared {
    start: *mut f32,
    length: usize,
}

// SAFETY: the tasks of a kernel write to places of their own: each has its columns of an image and its rows.
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) fn new(out: &mut [f32]) -> Self {
        Self { start: out.as_mut_ptr(), length: out.len() }
    }

    /// `change` gets the values at `at..at + count`, which no other task may touch meanwhile.
    #[inline(always)]
    pub(crate) fn with(&self, at: usize, count: usize, change: impl FnOnce(&mut [f32])) {
        assert!(at + count <= self.length, "outside the result");
        // SAFETY: in bounds; no other task touches these places.
        change(unsafe { std::slice::from_raw_parts_mut(self.start.add(at), count) });
    }
}
