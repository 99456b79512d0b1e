//! What a generation needs next to the model, and how it is cut up so that it fits.

use candle_core::DType;

use super::ahead::STEPS_AHEAD;
use super::config::{UnetConfig, VaeConfig};
use super::tiling::Tiling;
use crate::EngineError;

/// Tensors of the widest layer at full size that the decoder holds at once: its input, normed, with a border, multiplied, joined.
const DECODER_LIVE: u64 = 6;
/// In bands: what goes into a layer and, of half the width, what comes out of its two convolutions.
const BANDED_LIVE: u64 = 2;
/// The bands themselves, as many as the decoder would hold at once.
const BANDS_BYTES: u64 = DECODER_LIVE << 24;
/// Tensors of the outermost width at full size that the UNet holds at once: what it keeps for its way up, a feed-forward layer
/// of eight times the width, and what a convolution copies.
const UNET_LIVE: u64 = 40;
/// The same of ControlNets: a sum of what they add, and what one more of them is about to.
const CONTROL_LIVE: u64 = 12;
/// Attention scores and their softmax: of several heads no more are computed at once.
const SCORES_BYTES: u64 = 2 << 28;
const HEADS: u64 = 8;
const MIB: u64 = 1 << 20;

/// What is generated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub(super) width_px: u32,
    pub(super) height_px: u32,
    /// Images, twice as many where there is guidance.
    pub(super) rows: usize,
    /// Of the longest text.
    pub(super) tokens: usize,
    /// Of all image prompts of a row.
    pub(super) image_tokens: usize,
    /// Numbers that all ControlNets of the work give before the first step, for a token and for a timestep; none: there are no ControlNets.
    pub(super) controls_ahead: Option<(usize, usize)>,
}

/// The sizes of the model that memory grows with.
#[derive(Debug, Clone, Copy)]
pub(super) struct MemoryEstimate {
    /// Bytes of a number.
    number: u64,
    /// The same of the VAE.
    decoder_number: u64,
    pixels_per_latent: u64,
    decoder_channels: u64,
    unet_channels: u64,
    /// Numbers that the UNet works out before the first step: for a token of each row, and for a timestep.
    ahead: (u64, u64),
    /// Whether it works out those of a timestep for each row (SDXL).
    times_a_row: bool,
    /// Latents of a side of the images that the VAE was trained on: smaller tiles would see too little.
    tile: usize,
}

impl MemoryEstimate {
    /// `dtypes`: what UNet and VAE compute in; `ahead`: numbers that the UNet works out for a token, and for a timestep.
    pub(super) fn new(unet: &UnetConfig, vae: &VaeConfig, dtypes: (DType, DType), ahead: (usize, usize)) -> Self {
        let widths = &vae.block_out_channels;
        let factor = vae.pixels_per_latent();
        Self {
            number: dtypes.0.size_in_bytes() as u64,
            decoder_number: dtypes.1.size_in_bytes() as u64,
            pixels_per_latent: factor as u64,
            // The last doubling leaves the width of the block before.
            decoder_channels: widths.get(1).or(widths.first()).copied().unwrap_or_default() as u64,
            unet_channels: unet.block_out_channels.first().copied().unwrap_or_default() as u64,
            ahead: (ahead.0 as u64, ahead.1 as u64),
            times_a_row: unet.is_xl(),
            tile: (vae.sample_size.height().min(vae.sample_size.width()) / factor).max(4),
        }
    }

    /// Everything that makes it smaller.
    pub(super) fn smallest(&self) -> Tiling {
        Tiling { banded: true, one_by_one: true, tile: Some(self.tile) }
    }

    /// From the fastest to the smallest.
    fn choices(&self) -> [Tiling; 4] {
        let banded = Tiling { banded: true, ..Tiling::default() };
        [Tiling::default(), banded, Tiling { one_by_one: true, ..banded }, self.smallest()]
    }

    /// Bytes next to the model at the worst moment.
    fn bytes(&self, work: Work, tiling: Tiling) -> u64 {
        let width = u64::from(work.width_px);
        let height = u64::from(work.height_px);
        let latents = |px: u64| px / self.pixels_per_latent;
        // Of one head, between all places of so many latents, before and after the softmax.
        let scores = |latents: u64, number: u64| 2 * latents * latents * number;
        let tile_px = tiling.tile.map_or(u64::MAX, |side| side as u64 * self.pixels_per_latent);
        let tile_width = width.min(tile_px);
        let tile_height = height.min(tile_px);
        let layer = tile_width * tile_height * self.decoder_channels * self.decoder_number;
        let at_once = layer * DECODER_LIVE;
        let layers = if tiling.banded { at_once.min(layer * BANDED_LIVE + BANDS_BYTES) } else { at_once };
        let image = 2 * width * height * 3 * self.decoder_number;
        let decode = layers + scores(latents(tile_width) * latents(tile_height), self.decoder_number) + image;
        let rows = if tiling.one_by_one { 1 } else { work.rows as u64 };
        let places = latents(width) * latents(height);
        let attention = (rows * HEADS * scores(places, self.number)).min(SCORES_BYTES.max(scores(places, self.number)));
        // One by one a row's are worked out at every step, and are gone after it.
        let steps = if tiling.one_by_one { 1 } else { STEPS_AHEAD as u64 };
        let times = steps * if self.times_a_row { rows } else { 1 };
        let (of_tokens, of_times) = work.controls_ahead.unwrap_or_default();
        let of_tokens = self.ahead.0 + of_tokens as u64;
        let of_times = self.ahead.1 + of_times as u64;
        // Only the UNet looks at image prompts.
        let of_images = work.image_tokens as u64 * self.ahead.0;
        let ahead = (rows * (work.tokens as u64 * of_tokens + of_images) + times * of_times) * self.number;
        let live = UNET_LIVE + if work.controls_ahead.is_some() { CONTROL_LIVE } else { 0 };
        let unet = rows * places * self.unet_channels * self.number * live + attention + ahead;
        decode.max(unet)
    }

    /// The first of the ways to cut `work` up that fits into `bytes`.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`] when none does: with what would fit.
    pub(super) fn within(&self, bytes: u64, work: Work) -> Result<Tiling, EngineError> {
        self.choices().into_iter().find(|tiling| self.bytes(work, *tiling) <= bytes).ok_or_else(|| {
            let needed = self.bytes(work, self.smallest()).div_ceil(MIB);
            let problem = format!(
                "{}x{} needs about {needed} MiB next to the model, and engine.memory_budget_mib leaves {}; {}",
                work.width_px,
                work.height_px,
                bytes / MIB,
                self.advice(work, Some(bytes))
            );
            EngineError::OutOfMemory { problem }
        })
    }

    /// What would fit into `bytes`, or into about a quarter of what `work` needs where no one knows how much there is.
    pub(super) fn advice(&self, work: Work, bytes: Option<u64>) -> String {
        let bytes = bytes.unwrap_or_else(|| self.bytes(work, self.smallest()) / 4);
        let side = |px: u32, part: u32| px * part / 16 / 8 * 8;
        let smaller = (1..16).rev().map(|part| (side(work.width_px, part), side(work.height_px, part)));
        let fitting = smaller.filter(|(width, height)| *width.min(height) >= 64).find(|(width_px, height_px)| {
            let work = Work { width_px: *width_px, height_px: *height_px, ..work };
            self.bytes(work, self.smallest()) <= bytes
        });
        match fitting {
            Some((width, height)) => format!("{width}x{height} would fit"),
            None => "no size would fit: give it more memory".into(),
        }
    }
}

/// Generates with `first`; when there is no memory, once more with `smallest`, unless that was it.
///
/// # Errors
/// The second attempt's, or the first's where there is no second.
pub(super) fn twice<T>(
    first: Tiling,
    smallest: Tiling,
    mut attempt: impl FnMut(Tiling) -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    match attempt(first) {
        // What the first attempt had is free again: its tensors went with it.
        Err(EngineError::OutOfMemory { problem }) if first != smallest => {
            tracing::warn!(problem, "out of memory: generated once more, in pieces");
            attempt(smallest)
        }
        ended => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stable Diffusion 1.5.
    const SD15: MemoryEstimate = MemoryEstimate {
        number: 4,
        decoder_number: 4,
        pixels_per_latent: 8,
        decoder_channels: 256,
        unet_channels: 320,
        ahead: (24_960, 20_160),
        times_a_row: false,
        tile: 64,
    };

    fn work(side_px: u32, rows: usize) -> Work {
        Work { width_px: side_px, height_px: side_px, rows, tokens: 77, image_tokens: 0, controls_ahead: None }
    }

    #[test]
    fn a_budget_picks_as_few_tiling_plan_as_it_can() {
        let within = |mib: u64, side: u32, rows| SD15.within(mib * MIB, work(side, rows)).expect("fits");
        assert_eq!(within(16_000, 512, 2), Tiling::default());
        let banded = Tiling { banded: true, ..Tiling::default() };
        assert_eq!(within(6_000, 1024, 2), banded);
        assert_eq!(within(1_700, 512, 8), Tiling { one_by_one: true, ..banded });
        assert_eq!(within(3_500, 1024, 8), SD15.smallest());
        assert_eq!(SD15.smallest(), Tiling { banded: true, one_by_one: true, tile: Some(64) });
    }

    #[test]
    fn what_is_worked_out_ahead_counts_for_all_rows_or_one() {
        let more = |estimate: MemoryEstimate, rows, tiling| {
            let short = work(512, rows);
            estimate.bytes(Work { tokens: 770, ..short }, tiling) - estimate.bytes(short, tiling)
        };
        let of_a_row = (770 - 77) * 24_960 * 4;
        assert_eq!(more(SD15, 8, Tiling { banded: true, ..Tiling::default() }), 8 * of_a_row);
        assert_eq!(more(SD15, 64, Tiling { tile: Some(8), ..SD15.smallest() }), of_a_row);
        let of_times = |estimate: MemoryEstimate| {
            let none = MemoryEstimate { ahead: (24_960, 0), ..estimate };
            let banded = Tiling { banded: true, ..Tiling::default() };
            estimate.bytes(work(512, 8), banded) - none.bytes(work(512, 8), banded)
        };
        assert_eq!(of_times(SD15), STEPS_AHEAD as u64 * 20_160 * 4);
        assert_eq!(of_times(MemoryEstimate { times_a_row: true, ..SD15 }), 8 * STEPS_AHEAD as u64 * 20_160 * 4);
    }

    #[test]
    fn controlnets_count_for_what_they_add_and_what_they_work_out() {
        let banded = Tiling { banded: true, ..Tiling::default() };
        let plain = work(512, 8);
        let more = |ahead| SD15.bytes(Work { controls_ahead: Some(ahead), ..plain }, banded) - SD15.bytes(plain, banded);
        let added = 8 * 64 * 64 * 320 * 4 * CONTROL_LIVE;
        assert_eq!(more((0, 0)), added);
        assert_eq!(more((1_000, 300)), added + (8 * 77 * 1_000 + STEPS_AHEAD as u64 * 300) * 4);
    }

    #[test]
    fn image_prompts_count_for_the_unet_alone() {
        let banded = Tiling { banded: true, ..Tiling::default() };
        let controlled = Work { controls_ahead: Some((1_000, 300)), ..work(512, 8) };
        for plain in [work(512, 8), controlled] {
            let prompted = Work { image_tokens: 16, ..plain };
            assert_eq!(SD15.bytes(prompted, banded) - SD15.bytes(plain, banded), 8 * 16 * 24_960 * 4);
        }
    }

    #[test]
    fn what_fits_in_no_way_is_reported_with_what_would() {
        let error = SD15.within(900 * MIB, work(2048, 2)).expect_err("too large");
        let message = error.to_string();
        assert!(message.contains("2048x2048 needs about") && message.contains("leaves 900"), "{message}");
        let side: u32 =
            message.rsplit_once("; ").and_then(|(_, fits)| fits.split_once('x')).expect("a size").0.parse().expect("a side");
        assert!(side >= 512 && SD15.within(900 * MIB, work(side, 2)).is_ok(), "{message}");
        assert!(SD15.within(MIB, work(512, 1)).expect_err("nothing").to_string().contains("no size would fit"));
    }

    #[test]
    fn a_second_attempt_is_made_once_and_only_for_memory() {
        let none = || EngineError::OutOfMemory { problem: "none".into() };
        let attempts = |first: Tiling, mut results: Vec<Result<u8, EngineError>>| {
            let mut tried = Vec::new();
            let ended = twice(first, SD15.smallest(), |tiling| {
                tried.push(tiling);
                results.remove(0)
            });
            (tried, ended)
        };
        let (tried, ended) = attempts(Tiling::default(), vec![Err(none()), Ok(1)]);
        assert_eq!((tried, ended.expect("the second")), (vec![Tiling::default(), SD15.smallest()], 1));
        let (tried, ended) = attempts(Tiling::default(), vec![Err(none()), Err(none())]);
        assert!(tried.len() == 2 && matches!(ended, Err(EngineError::OutOfMemory { .. })));
        let (tried, _) = attempts(SD15.smallest(), vec![Err(none())]);
        assert_eq!(tried.len(), 1, "there is nothing smaller");
        let (tried, _) = attempts(Tiling::default(), vec![Err(EngineError::Cancelled)]);
        assert_eq!(tried.len(), 1);
    }
}
