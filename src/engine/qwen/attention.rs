//! Attention over text and pictures together, in blocks of queries: the matrix of all scores is never made.

use candle_core::{Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use crate::engine::layers::attend_on_cpu;

/// The most scores that are computed at once (256 MiB in f32). At 1 MP a head has some 150 million; candle's kernels count numbers
/// of one tensor in 32 bits, which all heads together would not fit into.
const MAX_SCORES: usize = 1 << 26;

/// softmax(query·keyᵀ/√D)·value for each head. All (1, T, heads·D). Returns the same shape.
pub(super) fn attend(query: &Tensor, key: &Tensor, value: &Tensor, heads: usize) -> Result<Tensor> {
    match attend_on_cpu(query, key, value, heads, false)? {
        Some(attended) => Ok(attended),
        None => attend_in_blocks(query, key, value, heads, MAX_SCORES),
    }
}

fn attend_in_blocks(query: &Tensor, key: &Tensor, value: &Tensor, heads: usize, max_scores: usize) -> Result<Tensor> {
    let (batch, tokens, channels) = query.dims3()?;
    let by_head = |tensor: &Tensor| {
        let (batch, tokens, channels) = tensor.dims3()?;
        tensor.reshape((batch, tokens, heads, channels / heads))?.transpose(1, 2)?.contiguous()
    };
    let scale = ((channels / heads) as f64).sqrt().recip();
    let (query, key, value) = (by_head(&(query * scale)?)?, by_head(key)?, by_head(value)?);
    let places = key.dim(2)?;
    let rows = (max_scores / places).clamp(1, tokens);
    let at_once = (max_scores / (places * rows)).clamp(1, heads);
    let mut attended = Vec::with_capacity(heads.div_ceil(at_once));
    for first in (0..heads).step_by(at_once) {
        let count = at_once.min(heads - first);
        let keys = key.narrow(1, first, count)?.contiguous()?.transpose(2, 3)?;
        let values = value.narrow(1, first, count)?.contiguous()?;
        let mut blocks = Vec::with_capacity(tokens.div_ceil(rows));
        for row in (0..tokens).step_by(rows) {
            let queries = query.narrow(1, first, count)?.narrow(2, row, rows.min(tokens - row))?.contiguous()?;
            blocks.push(softmax_last_dim(&queries.matmul(&keys)?)?.matmul(&values)?);
        }
        attended.push(Tensor::cat(&blocks, 2)?);
    }
    Tensor::cat(&attended, 1)?.transpose(1, 2)?.reshape((batch, tokens, channels))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn blocks_of_any_size_join_to_what_the_whole_matrix_gives() -> Result<()> {
        let draw = || Tensor::randn(0.0_f32, 1.0, (1, 23, 12), &Device::Cpu);
        let (query, key, value) = (draw()?, draw()?, draw()?);
        let whole = attend(&query, &key, &value, 3)?;
        for max_scores in [1, 23 * 5, 23 * 23, 23 * 23 * 2, MAX_SCORES] {
            let blocks = attend_in_blocks(&query, &key, &value, 3, max_scores)?;
            let difference = (&blocks - &whole)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(difference < 1e-6, "{difference} with {max_scores} scores at once");
        }
        Ok(())
    }
}
