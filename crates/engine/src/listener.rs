//! Who may want to see a generation, and how often: at most twice a second, and the device is not waited for in between.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two previews of a generation, at least.
const PAUSE: Duration = Duration::from_millis(500);

/// The first image of a generation after a denoising step. `I`: the image, by default (height, width, 3) bytes of RGB, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview<I = Vec<u8>> {
    /// The denoising step that it shows, of all.
    pub step: u32,
    pub steps: u32,
    /// As many pixels as the image has latents, and 128 a side at most.
    pub width_px: u32,
    pub height_px: u32,
    pub image: I,
}

/// Who may want to see a generation.
pub(crate) struct PreviewListener {
    wanted: Box<dyn Fn() -> bool + Send + Sync>,
    show: Box<dyn Fn(Preview) + Send + Sync>,
    pace: Mutex<PreviewPace>,
}

/// When the next preview is to be. A GPU is only told its steps: how long one takes is known where the host has waited for two of them.
#[derive(Debug, Default)]
pub(crate) struct PreviewPace {
    /// The step that was shown last, and when.
    last: Option<(u32, Instant)>,
    per_step: Option<Duration>,
    next_step: u32,
}

impl PreviewListener {
    pub(crate) fn new(
        wanted: impl Fn() -> bool + Send + Sync + 'static,
        show: impl Fn(Preview) + Send + Sync + 'static,
    ) -> Self {
        Self { wanted: Box::new(wanted), show: Box::new(show), pace: Mutex::default() }
    }

    pub(crate) fn is_wanted(&self) -> bool {
        (self.wanted)()
    }

    pub(crate) fn show(&self, preview: Preview) {
        (self.show)(preview);
    }

    /// A panic under the lock leaves nothing half done: these are values.
    pub(crate) fn with_pace<T>(&self, look: impl FnOnce(&mut PreviewPace) -> T) -> T {
        look(&mut self.pace.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl PreviewPace {
    pub(crate) fn is_due(&self, step: u32) -> bool {
        // A generation that begins anew begins with its first step.
        step >= self.next_step || self.last.is_some_and(|(last, _)| step <= last)
    }

    /// Whether enough time has passed, now that the device has done `step`; if not, the step is put off until it will have.
    pub(crate) fn may_show(&mut self, step: u32, now: Instant) -> bool {
        let Some((last, at)) = self.last else { return true };
        let passed = now.saturating_duration_since(at);
        self.per_step = step.checked_sub(last).filter(|steps| *steps > 0).map(|steps| passed / steps).or(self.per_step);
        self.next_step = step.saturating_add(self.steps_in(PAUSE.saturating_sub(passed)));
        passed >= PAUSE
    }

    pub(crate) fn shown(&mut self, step: u32, now: Instant) {
        self.last = Some((step, now));
        self.next_step = step.saturating_add(self.steps_in(PAUSE));
    }

    /// How many steps take so long, one at least.
    fn steps_in(&self, time: Duration) -> u32 {
        let steps = self.per_step.map_or(1.0, |per_step| (time.as_secs_f64() / per_step.as_secs_f64().max(1e-6)).ceil());
        (steps as u32).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_two_are_shown_a_second_however_long_a_step_takes() {
        let began = Instant::now();
        for step_ms in [1, 30, 170, 499, 500, 2_000] {
            let mut pace = PreviewPace::default();
            let mut shown: Vec<u64> = Vec::new();
            let mut waited = 0;
            for step in 1..=3_000 {
                if !pace.is_due(step) {
                    continue;
                }
                waited += 1;
                let at_ms = step_ms * u64::from(step);
                if pace.may_show(step, began + Duration::from_millis(at_ms)) {
                    pace.shown(step, began + Duration::from_millis(at_ms));
                    shown.push(at_ms);
                }
            }
            assert_eq!(shown[0], step_ms, "the first step is seen at once");
            assert!(
                shown.windows(2).all(|pair| (500..=500 + 2 * step_ms).contains(&(pair[1] - pair[0]))),
                "{step_ms}: {shown:?}"
            );
            assert!(waited <= shown.len() + 2, "{step_ms}: the device was waited for {waited} times for {}", shown.len());
        }
    }

    #[test]
    fn a_generation_that_begins_anew_is_seen_again() {
        let began = Instant::now();
        let mut pace = PreviewPace::default();
        pace.shown(40, began);
        assert!(pace.is_due(1) && pace.may_show(1, began + PAUSE));
        pace.shown(1, began + PAUSE);
        assert!(pace.is_due(2) && !pace.may_show(2, began + PAUSE));
    }
}
