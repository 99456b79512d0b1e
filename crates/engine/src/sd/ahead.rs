//! What the UNet works out before the first step, once: keys and values of the texts, and what each residual block adds at each timestep.

use std::slice;
use std::vec;

use candle_core::{Error, Result, Tensor};

use super::attention::Context;

/// Timesteps that are worked out together: each takes 20 to 30 KiB in f16, with SDXL of every row.
pub(super) const STEPS_AHEAD: usize = 64;

/// Of the rows of a forward pass, and of S timesteps. All in the order in which a forward pass comes to them.
pub(super) struct Ahead {
    /// One for each attention to the text.
    contexts: Vec<Context>,
    /// One for each residual block: (S, R, channels). R is the rows where a model adds more than the timestep to each, else 1.
    raised: Vec<Tensor>,
}

/// What is taken from it in one forward pass.
pub(super) struct AtStep<'a> {
    contexts: slice::Iter<'a, Context>,
    raised: vec::IntoIter<Tensor>,
}

impl Ahead {
    pub(super) fn new(contexts: Vec<Context>, raised: Vec<Tensor>) -> Self {
        Self { contexts, raised }
    }

    /// # Errors
    /// When there are not so many timesteps.
    pub(super) fn at(&self, step: usize) -> Result<AtStep<'_>> {
        let raised = self.raised.iter().map(|raised| raised.get(step)).collect::<Result<Vec<_>>>()?;
        Ok(AtStep { contexts: self.contexts.iter(), raised: raised.into_iter() })
    }
}

impl<'a> AtStep<'a> {
    /// The next attention's.
    pub(super) fn context(&mut self) -> Result<&'a Context> {
        self.contexts.next().ok_or_else(|| Error::msg("an attention's keys and values were not worked out"))
    }

    /// The next residual block's: (R, channels).
    pub(super) fn raised(&mut self) -> Result<Tensor> {
        self.raised.next().ok_or_else(|| Error::msg("what a residual block adds was not worked out"))
    }
}
