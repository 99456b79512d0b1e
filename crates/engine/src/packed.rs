//! Weights that stay packed in ggml's blocks, and are made whole for as long as a layer multiplies with them.

use std::collections::HashMap;

use atelier_kernels::gguf::BlockFormat;
use candle_core::{DType, Error, Result, Storage, Tensor};
use candle_nn::VarBuilder;

use super::device;

/// What the name of a weight goes on with where LoRAs have matrices next to it: down (rank, in) and up (out, rank).
const LOW_RANK: [&str; 2] = ["low_rank_down", "low_rank_up"];

/// A layer's weight in blocks, with the matrices of LoRAs next to it, which cannot be merged.
pub(super) struct PackedWeight {
    /// (out, bytes of a row), u8.
    blocks: Tensor,
    format: BlockFormat,
    /// Down (rank, in) and up (out, rank); alpha and scale are in the latter.
    low_rank: Option<[Tensor; 2]>,
}

/// What blocks of a weight are called.
pub(super) fn packed_name(weight: &str, format: BlockFormat) -> String {
    format!("{weight}.{}", format.name())
}

/// The weight and the format that [`packed_name`] made a name of, if it did.
pub(super) fn unpacked_name(name: &str) -> Option<(&str, BlockFormat)> {
    let (weight, end) = name.rsplit_once('.')?;
    BlockFormat::ALL.into_iter().find(|format| format.name() == end).map(|format| (weight, format))
}

/// Whether a layer has this beside a whole weight, or in its place.
pub(super) fn is_beside(name: &str) -> bool {
    unpacked_name(name).is_some() || LOW_RANK.iter().any(|end| name.ends_with(end))
}

/// Whether a weight is there in blocks.
pub(super) fn is_packed(tensors: &HashMap<String, Tensor>, weight: &str) -> bool {
    BlockFormat::ALL.into_iter().any(|format| tensors.contains_key(&packed_name(weight, format)))
}

/// Name and shape of a tensor as a model has them: of blocks those of the weight.
pub(super) fn whole_shape(name: &str, tensor: &Tensor) -> (String, Vec<usize>) {
    let packed = unpacked_name(name).and_then(|(weight, format)| Some((weight, sides(tensor, format)?)));
    packed.map_or_else(|| (name.to_owned(), tensor.dims().to_vec()), |(weight, sides)| (weight.to_owned(), sides.to_vec()))
}

/// Of the weight that these blocks are: (out, in).
fn sides(blocks: &Tensor, format: BlockFormat) -> Option<[usize; 2]> {
    let [rows, bytes] = blocks.dims() else { return None };
    Some([*rows, bytes / format.bytes() * format.values()])
}

/// Adds matrices to those that `overlay` has beside a weight, which is in blocks: down (rank, in) and up (out, rank).
///
/// # Errors
/// When there is no memory.
pub(super) fn add_low_rank(overlay: &mut HashMap<String, Tensor>, weight: &str, pair: (Tensor, Tensor)) -> Result<()> {
    for (dimension, (end, matrix)) in LOW_RANK.into_iter().zip([pair.0, pair.1]).enumerate() {
        let name = format!("{weight}.{end}");
        // One product of both is the sum of theirs.
        let all = match overlay.get(&name) {
            Some(before) => Tensor::cat(&[before, &matrix], dimension)?,
            None => matrix,
        };
        overlay.insert(name, all.contiguous()?);
    }
    Ok(())
}

/// `blocks` of a weight, (out, bytes of a row), u8, made whole: (out, in), in the format `dtype`.
///
/// # Errors
/// When there is no memory.
pub(super) fn unpacked(blocks: &Tensor, format: BlockFormat, dtype: DType) -> Result<Tensor> {
    if let Some(whole) = device::unpacked(blocks, format, dtype) {
        return whole;
    }
    let (rows, bytes) = blocks.dims2()?;
    let (storage, layout) = blocks.storage_and_layout();
    let (Storage::Cpu(storage), Some((first, end))) = (&*storage, layout.contiguous_offsets()) else {
        return Err(Error::msg("blocks of weights lie in order, on the device that computes"));
    };
    let values = format.unpack(&storage.as_slice::<u8>()?[first..end]);
    Tensor::from_vec(values, (rows, bytes / format.bytes() * format.values()), blocks.device())?.to_dtype(dtype)
}

impl PackedWeight {
    /// What `vb` has for a layer's weight (out, in), where that is in blocks.
    pub(super) fn of(out_features: usize, in_features: usize, vb: &VarBuilder) -> Result<Option<Self>> {
        let Some(format) = BlockFormat::ALL.into_iter().find(|format| vb.contains_tensor(&packed_name("weight", *format)))
        else {
            return Ok(None);
        };
        let blocks = vb.get_unchecked_dtype(&packed_name("weight", format), DType::U8)?;
        if sides(&blocks, format) != Some([out_features, in_features]) {
            // Who asks for it whole is told what it has.
            return Ok(None);
        }
        let [down, up] = LOW_RANK.map(|end| format!("weight.{end}"));
        let has_both = vb.contains_tensor(&down) && vb.contains_tensor(&up);
        let low_rank = if has_both { Some([vb.get_unchecked(&down)?, vb.get_unchecked(&up)?]) } else { None };
        Ok(Some(Self { blocks, format, low_rank }))
    }

    /// Its rows from `first` on, where they lie.
    ///
    /// # Errors
    /// When it has fewer.
    pub(super) fn rows(&self, first: usize, count: usize) -> Result<Self> {
        let low_rank = self.low_rank.as_ref().map(|[down, up]| Ok::<_, Error>([down.clone(), up.narrow(0, first, count)?]));
        Ok(Self { blocks: self.blocks.narrow(0, first, count)?, format: self.format, low_rank: low_rank.transpose()? })
    }

    /// The weight, (out, in), in the format `dtype`: it takes memory of its own until it is dropped.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn weight(&self, dtype: DType) -> Result<Tensor> {
        unpacked(&self.blocks, self.format, dtype)
    }

    /// Down and up matrices of LoRAs.
    pub(super) fn low_rank(&self) -> Option<&[Tensor; 2]> {
        self.low_rank.as_ref()
    }
}
