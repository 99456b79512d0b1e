//! A text encoder that stays in memory between jobs where the memory budget has room for it, and else is read again for every job.

/// None is loaded while it is in use, and between jobs where it does not stay.
pub(crate) struct KeptEncoder<E> {
    loaded: Option<E>,
    stays: bool,
}

impl<E> KeptEncoder<E> {
    /// `resident_bytes`: of all weights, its own among them.
    pub(crate) fn new(encoder: E, resident_bytes: u64, memory_budget: Option<u64>) -> Self {
        let stays = memory_budget.is_none_or(|budget| resident_bytes <= budget);
        if !stays {
            tracing::info!(resident_bytes, "the text encoder is read again for every job: engine.memory_budget_mib");
        }
        Self { loaded: Some(encoder).filter(|_| stays), stays }
    }

    pub(crate) fn stays(&self) -> bool {
        self.stays
    }

    pub(crate) fn loaded(&mut self) -> Option<&mut E> {
        self.loaded.as_mut()
    }

    pub(crate) fn take(&mut self) -> Option<E> {
        self.loaded.take()
    }

    pub(crate) fn keep(&mut self, encoder: E) {
        self.loaded = Some(encoder).filter(|_| self.stays);
    }
}
