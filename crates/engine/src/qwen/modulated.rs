//! Tokens of a flow's blocks as time changes them, by parts: a text's before an image's, the output's before the references'.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::layer_norm;

use crate::device;
use crate::layers::Linear;

/// Shift, 1 + scale and gate of one part of a block: each (width,).
pub(crate) struct Modulation {
    pub(crate) shift: Tensor,
    pub(crate) scale: Tensor,
    pub(crate) gate: Tensor,
}

/// How one half of a block modulates text, output and references.
pub(crate) type Parts<'a> = [&'a Modulation; 3];

/// How many tokens are the text's, and the output's; behind them stand the references'.
#[derive(Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) text: usize,
    pub(crate) output: usize,
}

impl Modulation {
    /// `layer`: of three outputs for each modulation; `time`: (1, width), after silu. As many as there is room for, one after the other.
    pub(crate) fn of(layer: &Linear, time: &Tensor, count: usize) -> Result<Vec<Self>> {
        let parts = layer.forward(time)?.flatten_all()?.chunk(3 * count, D::Minus1)?;
        let modulations = parts
            .chunks(3)
            .map(|parts| Ok(Self { shift: parts[0].clone(), scale: (&parts[1] + 1.0)?, gate: parts[2].clone() }));
        modulations.collect()
    }

    /// Layer norm without weights of its own, times 1 + scale, plus shift. `hidden`: (1, T, width).
    pub(crate) fn normed(&self, hidden: &Tensor, eps: f32) -> Result<Tensor> {
        layer_norm(&hidden.contiguous()?, &self.scale, &self.shift, eps)
    }

    /// `hidden` + gate · `change`.
    pub(crate) fn add_gated(&self, hidden: &Tensor, change: &Tensor) -> Result<Tensor> {
        let tokens = hidden.dim(1)?;
        device::add_gated(hidden, change, [tokens; 2], [&self.gate; 3])
            .unwrap_or_else(|| hidden + change.broadcast_mul(&self.gate)?)
    }
}

/// Layer norm without weights of its own, times 1 + scale, plus shift. `hidden`: (1, S + T, width).
pub(crate) fn modulate(hidden: &Tensor, counts: Counts, parts: Parts<'_>, eps: f32) -> Result<Tensor> {
    let changes = parts.map(|part| (&part.scale, &part.shift));
    device::modulate(hidden, counts.ends(), changes, eps).unwrap_or_else(|| {
        counts.by_part(hidden, parts, |place, tokens, modulation| {
            let part = hidden.narrow(1, place, tokens)?.contiguous()?;
            layer_norm(&part, &modulation.scale, &modulation.shift, eps)
        })
    })
}

/// `hidden` + gate · `change`, both (1, S + T, width).
pub(crate) fn add_gated(hidden: &Tensor, change: &Tensor, counts: Counts, parts: Parts<'_>) -> Result<Tensor> {
    device::add_gated(hidden, change, counts.ends(), parts.map(|part| &part.gate)).unwrap_or_else(|| {
        counts.by_part(hidden, parts, |place, tokens, modulation| {
            hidden.narrow(1, place, tokens)? + change.narrow(1, place, tokens)?.broadcast_mul(&modulation.gate)?
        })
    })
}

/// [`add_gated`] by the first of two halves, and [`modulate`] of that by the second.
pub(crate) fn add_gated_modulate(
    (hidden, change): (&Tensor, &Tensor),
    counts: Counts,
    [gated, modulated]: [Parts<'_>; 2],
    eps: f32,
) -> Result<[Tensor; 2]> {
    let gates = gated.map(|part| &part.gate);
    let changes = modulated.map(|part| (&part.scale, &part.shift));
    device::add_gated_modulate((hidden, change), counts.ends(), gates, changes, eps).unwrap_or_else(|| {
        let added = add_gated(hidden, change, counts, gated)?;
        let modulated = modulate(&added, counts, modulated, eps)?;
        Ok([added, modulated])
    })
}

impl Counts {
    /// Where the output's tokens begin, and the references'.
    fn ends(self) -> [usize; 2] {
        [self.text, self.text + self.output]
    }

    /// `compute`: of so many tokens from a place on, and what modulates them.
    fn by_part(
        self,
        hidden: &Tensor,
        parts: Parts<'_>,
        compute: impl Fn(usize, usize, &Modulation) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let [output, references] = self.ends();
        let places = [0, output, references, hidden.dim(1)?];
        let counted = parts.iter().zip(places.windows(2)).filter(|(_, ends)| ends[1] > ends[0]);
        let computed = counted.map(|(modulation, ends)| compute(ends[0], ends[1] - ends[0], modulation));
        Tensor::cat(&computed.collect::<Result<Vec<_>>>()?, 1)
    }
}
