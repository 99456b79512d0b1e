//! What the UNet works out before the first step, once: keys and values of the texts, and what each residual block adds at each timestep.

use std::slice;

use candle_core::{Error, Result, Tensor};

use super::attention::Context;

/// Timesteps that are worked out together: each takes 20 to 30 KiB in f16, with SDXL of every row.
pub(super) const STEPS_AHEAD: usize = 64;

/// Of the rows of a forward pass, and of S timesteps. All in the order in which a forward pass comes to them.
pub(super) struct Ahead {
    /// A key and a value for each thing that each attention to the text looks at.
    contexts: Vec<Tensor>,
    /// How many things that are: the text, and what each IP-Adapter made of images.
    looks: usize,
    /// What all residual blocks add at a timestep, one after the other: (S, R·channels of all). R is the rows where a model adds more than the
    /// timestep to each, else 1.
    raised: Tensor,
    /// R and the channels of each residual block.
    sides: Vec<(usize, usize)>,
}

/// What is taken from it in one forward pass.
pub(super) struct AtStep<'a> {
    contexts: slice::Iter<'a, Tensor>,
    looks: usize,
    raised: Tensor,
    sides: slice::Iter<'a, (usize, usize)>,
    /// Where the next residual block's begins.
    place: usize,
}

impl Ahead {
    /// `raised`: (S, R, channels) of each residual block.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn new(contexts: Vec<Context>, raised: &[Tensor]) -> Result<Self> {
        let sides = raised.iter().map(|raised| raised.dims3().map(|(_, rows, channels)| (rows, channels)));
        let sides = sides.collect::<Result<Vec<_>>>()?;
        let flat = raised.iter().map(|raised| raised.flatten_from(1)).collect::<Result<Vec<_>>>()?;
        let contexts = contexts.into_iter().flat_map(|Context { key, value }| [key, value]).collect();
        Ok(Self { contexts, looks: 1, raised: Tensor::cat(&flat, 1)?, sides })
    }

    /// The same with what each of `prompts` has for every attention, to be looked at besides.
    ///
    /// # Errors
    /// When one of them has fewer or more than there are attentions.
    pub(super) fn with(self, prompts: Vec<Vec<Context>>) -> Result<Self> {
        let attentions = self.contexts.len() / (2 * self.looks);
        if prompts.iter().any(|contexts| contexts.len() != attentions) {
            return Err(Error::msg("an IP-Adapter has other layers than the UNet"));
        }
        let looks = self.looks + prompts.len();
        let mut prompts: Vec<_> = prompts.into_iter().map(Vec::into_iter).collect();
        let mut contexts = Vec::with_capacity(2 * looks * attentions);
        for of_text in self.contexts.chunks(2 * self.looks) {
            contexts.extend_from_slice(of_text);
            contexts.extend(prompts.iter_mut().filter_map(Iterator::next).flat_map(|Context { key, value }| [key, value]));
        }
        Ok(Self { contexts, looks, ..self })
    }

    /// All that a forward pass at place `step` of the timesteps looks at, as many tensors at every step.
    ///
    /// # Errors
    /// When there are not so many timesteps.
    pub(super) fn inputs(&self, step: usize) -> Result<Vec<Tensor>> {
        Ok([self.raised.get(step)?].into_iter().chain(self.contexts.iter().cloned()).collect())
    }

    /// How many [`Self::inputs`] there are.
    pub(super) fn input_count(&self) -> usize {
        1 + self.contexts.len()
    }

    /// As a forward pass takes it, of tensors such as [`Self::inputs`] gives.
    ///
    /// # Errors
    /// When there are none.
    pub(super) fn of<'a>(&'a self, inputs: &'a [Tensor]) -> Result<AtStep<'a>> {
        let Some((raised, contexts)) = inputs.split_first() else {
            return Err(Error::msg("a forward pass without what was worked out for it"));
        };
        let contexts = contexts.iter();
        Ok(AtStep { contexts, looks: self.looks, raised: raised.clone(), sides: self.sides.iter(), place: 0 })
    }
}

impl AtStep<'_> {
    /// What is left when only the last residual block comes, and so many attentions behind it.
    ///
    /// # Errors
    /// When there is not so much.
    pub(super) fn of_last(mut self, attentions: usize) -> Result<Self> {
        let contexts = self.contexts.as_slice();
        let first = contexts.len().checked_sub(2 * self.looks * attentions);
        let sides = self.sides.as_slice();
        let (Some(first), Some(((rows, channels), before))) = (first, sides.split_last()) else {
            return Err(Error::msg("a UNet without its last layer"));
        };
        self.contexts = contexts[first..].iter();
        self.sides = sides[before.len()..].iter();
        self.place = self.raised.elem_count() - rows * channels;
        Ok(self)
    }

    /// The next attention's: the text's, and then those of image prompts.
    pub(super) fn contexts(&mut self) -> Result<Vec<Context>> {
        let each = (0..self.looks).map(|_| match (self.contexts.next(), self.contexts.next()) {
            (Some(key), Some(value)) => Ok(Context { key: key.clone(), value: value.clone() }),
            _ => Err(Error::msg("an attention's keys and values were not worked out")),
        });
        each.collect()
    }

    /// The next residual block's: (R, channels).
    pub(super) fn raised(&mut self) -> Result<Tensor> {
        let side = self.sides.next().ok_or_else(|| Error::msg("what a residual block adds was not worked out"))?;
        let (rows, channels) = *side;
        let raised = self.raised.narrow(0, self.place, rows * channels)?;
        self.place += rows * channels;
        raised.reshape((rows, channels))
    }
}
