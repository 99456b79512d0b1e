//! softmax(query·keyᵀ/√D)·value: our own kernel on the CPU, flash attention on a GPU, candle's products in blocks anywhere else.

use atelier_kernels::attention::Attention;
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::device::flash_attention;
use super::layers::{is_ours, with_values};

/// The most scores that are computed at once (256 MiB in f32): the matrix of all of them is never made. At 1 MP a head of a try-on has
/// some 150 million; candle's kernels count values of one tensor in 32 bits, which all heads together would not fit into.
const MAX_SCORES: usize = 1 << 26;

/// Attention of each head over (B, T, heads·D), (B, S, heads·D), (B, S, heads·D). Returns (B, T, heads·D).
pub(super) fn attend(query: &Tensor, key: &Tensor, value: &Tensor, heads: usize) -> Result<Tensor> {
    attended(query, key, value, heads, false)
}

/// [`attend`] of tokens to each other. `joint`: (B, T, 3·heads·D), each token's query, key and value. Returns (B, T, heads·D).
pub(super) fn attend_joint(joint: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, channels) = joint.dims3()?;
    let parts = joint.reshape((batch, tokens, 3, heads, channels / 3 / heads))?;
    let part = |place: usize| parts.narrow(2, place, 1)?.squeeze(2);
    let query = part(0)?;
    let key = part(1)?;
    let value = part(2)?;
    match flash_attention(&query, &key, &value, false) {
        Some(attended) => attended?.flatten_from(2),
        None => attend(&query.flatten_from(2)?, &key.flatten_from(2)?, &value.flatten_from(2)?, heads),
    }
}

/// [`attend`] over as many queries as keys, of which each sees only those up to its own place.
pub(super) fn attend_causally(query: &Tensor, key: &Tensor, value: &Tensor, heads: usize) -> Result<Tensor> {
    attended(query, key, value, heads, true)
}

fn attended(query: &Tensor, key: &Tensor, value: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    if let Some(attended) = attend_on_cpu(query, key, value, heads, causal)? {
        return Ok(attended);
    }
    let by_head = |tensor: &Tensor| {
        let (batch, tokens, channels) = tensor.dims3()?;
        tensor.reshape((batch, tokens, heads, channels / heads))
    };
    match flash_attention(&by_head(query)?, &by_head(key)?, &by_head(value)?, causal) {
        Some(attended) => attended?.flatten_from(2),
        None => attend_in_blocks(query, key, value, heads, causal, MAX_SCORES),
    }
}

/// `None` where our kernel does not fit.
fn attend_on_cpu(query: &Tensor, key: &Tensor, value: &Tensor, heads: usize, causal: bool) -> Result<Option<Tensor>> {
    let (batch, tokens, channels) = query.dims3()?;
    let fits = key.dims() == value.dims() && (key.dim(0)?, key.dim(2)?) == (batch, channels);
    if !is_ours(query) || !fits || causal && key.dim(1)? != tokens {
        return Ok(None);
    }
    let output = with_values([Some(query), Some(key), Some(value), None], |[query, key, value, _]| {
        Attention { batch, channels, heads, causal }.run(query, key, value)
    })?;
    Tensor::from_vec(output, query.shape(), query.device()).map(Some)
}

/// The softmax is in f32 whatever the tensors are in.
fn attend_in_blocks(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    heads: usize,
    causal: bool,
    max_scores: usize,
) -> Result<Tensor> {
    let (batch, tokens, channels) = query.dims3()?;
    let by_head = |tensor: &Tensor| {
        let (batch, tokens, channels) = tensor.dims3()?;
        tensor.reshape((batch, tokens, heads, channels / heads))?.transpose(1, 2)?.flatten_to(1)?.contiguous()
    };
    let scale = ((channels / heads) as f64).sqrt().recip();
    let query = by_head(&(query * scale)?)?;
    let key = by_head(key)?;
    let value = by_head(value)?;
    let (count, places, _) = key.dims3()?;
    let rows = (max_scores / places).clamp(1, tokens);
    let at_once = (max_scores / (places * rows)).clamp(1, count);
    let mut attended = Vec::with_capacity(count.div_ceil(at_once));
    for first in (0..count).step_by(at_once) {
        let some = |tensor: &Tensor| tensor.narrow(0, first, at_once.min(count - first));
        let queries = some(&query)?;
        let keys = some(&key)?.transpose(1, 2)?;
        let values = some(&value)?;
        let mut blocks = Vec::with_capacity(tokens.div_ceil(rows));
        for row in (0..tokens).step_by(rows) {
            let block = queries.narrow(1, row, rows.min(tokens - row))?.contiguous()?;
            let scores = block.matmul(&keys)?.to_dtype(DType::F32)?;
            let scores =
                if causal { scores.broadcast_add(&causal_mask(row, block.dim(1)?, places, scores.device())?)? } else { scores };
            blocks.push(softmax_last_dim(&scores)?.to_dtype(value.dtype())?.matmul(&values)?);
        }
        attended.push(Tensor::cat(&blocks, 1)?);
    }
    let attended = Tensor::cat(&attended, 0)?.reshape((batch, heads, tokens, channels / heads))?;
    attended.transpose(1, 2)?.reshape((batch, tokens, channels))
}

/// What is added to the scores of `rows` queries, the first of which has the place `first`: nothing up to a query's own place, minus infinity
/// after it. Returns (rows, places), f32.
pub(super) fn causal_mask(first: usize, rows: usize, places: usize, device: &Device) -> Result<Tensor> {
    let place = |from: usize, count: usize| Tensor::arange(from as u32, (from + count) as u32, device);
    let after = place(0, places)?.unsqueeze(0)?.broadcast_gt(&place(first, rows)?.unsqueeze(1)?)?;
    let never = Tensor::full(f32::NEG_INFINITY, (rows, places), device)?;
    after.where_cond(&never, &never.zeros_like()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_attend_to_each_other_out_of_one_tensor() -> Result<()> {
        let joint = Tensor::randn(0.0_f32, 1.0, (2, 23, 36), &Device::Cpu)?;
        let part = |place: usize| joint.narrow(2, 12 * place, 12)?.contiguous();
        let apart = attend(&part(0)?, &part(1)?, &part(2)?, 3)?;
        let difference = (attend_joint(&joint, 3)? - apart)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(difference == 0.0, "{difference}");
        Ok(())
    }

    #[test]
    fn blocks_of_any_size_join_to_what_our_kernel_gives() -> Result<()> {
        let draw = || Tensor::randn(0.0_f32, 1.0, (2, 23, 12), &Device::Cpu);
        let query = draw()?;
        let key = draw()?;
        let value = draw()?;
        for causal in [false, true] {
            let whole = attended(&query, &key, &value, 3, causal)?;
            for max_scores in [1, 23 * 5, 23 * 23, 23 * 23 * 2, MAX_SCORES] {
                let blocks = attend_in_blocks(&query, &key, &value, 3, causal, max_scores)?;
                let difference = (&blocks - &whole)?.abs()?.max_all()?.to_scalar::<f32>()?;
                assert!(difference < 1e-6, "{difference} with {max_scores} scores at once, causal: {causal}");
            }
        }
        Ok(())
    }
}
