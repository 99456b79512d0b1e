//! The change that an adapter makes to one weight, out of the small tensors that stand for it.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::original_layers::rows_of;

/// A change before alpha and scale. `…` stands for the height and width of a convolution's kernel.
pub(super) enum Delta {
    /// LoRA and `LoCon`: `up·down`. Down (rank, in, …), up (out, rank, …); or down (rank, in, 1, 1) and mid (rank, rank, …).
    LowRank { down: Tensor, up: Tensor, mid: Option<Tensor> },
    /// `LoHa` (Hyeon-Woo et al. 2021, arXiv 2108.06098): the product of both, number by number.
    Hadamard(LowRank, LowRank),
    /// `LoKr` (Yeh et al. 2023, arXiv 2309.14859): the Kronecker product of both.
    Kronecker(Factor, Factor),
    /// The change itself.
    Full(Tensor),
    /// Rows of a change of a weight of the shape `of`.
    Rows { joint: Arc<Delta>, of: Vec<usize>, rows: Vec<Range<usize>> },
}

/// `a·b`, (rows, rank) by (rank, columns); with a core (rank, rank, …) the sum over both ranks, a being (rank, rows) then.
pub(super) struct LowRank {
    pub(super) a: Tensor,
    pub(super) b: Tensor,
    pub(super) core: Option<Tensor>,
}

pub(super) enum Factor {
    /// (rows, columns) or (rows, columns, …).
    Whole(Tensor),
    LowRank(LowRank),
}

impl Delta {
    /// All that it is made of.
    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::LowRank { down, up, mid } => [down, up].into_iter().chain(mid).collect(),
            Self::Hadamard(first, second) => first.tensors().chain(second.tensors()).collect(),
            Self::Kronecker(first, second) => [first.tensors(), second.tensors()].concat(),
            Self::Full(change) => vec![change],
            Self::Rows { joint, .. } => joint.tensors(),
        }
    }

    /// These rows of a change of a weight of the shape `of`, which it [fits](Self::fits).
    pub(super) fn rows(self: &Arc<Self>, rows: &[Range<usize>], of: &[usize]) -> Result<Self> {
        Ok(match &**self {
            Self::LowRank { down, up, mid } => Self::LowRank { down: down.clone(), up: rows_of(up, rows)?, mid: mid.clone() },
            Self::Full(change) => Self::Full(rows_of(change, rows)?),
            Self::Hadamard(..) | Self::Kronecker(..) | Self::Rows { .. } => {
                Self::Rows { joint: Arc::clone(self), of: of.to_vec(), rows: rows.to_vec() }
            }
        })
    }

    /// What alpha is divided by; none where the change is whole.
    pub(super) fn rank(&self) -> Option<usize> {
        match self {
            Self::LowRank { down, .. } => down.dims().first().copied(),
            Self::Hadamard(first, _) | Self::Kronecker(Factor::LowRank(first), _) => first.rank(),
            Self::Kronecker(_, Factor::LowRank(second)) => second.rank(),
            Self::Kronecker(Factor::Whole(_), Factor::Whole(_)) | Self::Full(_) => None,
            Self::Rows { joint, .. } => joint.rank(),
        }
    }

    /// Whether this is a change of a tensor of this shape.
    pub(super) fn fits(&self, weight: &[usize]) -> bool {
        let [out, rest @ ..] = weight else { return false };
        let matrix = Some((*out, rest.iter().product()));
        match self {
            Self::LowRank { down, up, mid: None } => low_rank_fits(down.dims(), up.dims(), weight),
            Self::LowRank { down, up, mid: Some(mid) } => tucker_size(mid, up.dims(), down.dims(), false) == matrix,
            Self::Hadamard(first, second) => first.size() == matrix && second.size() == matrix,
            Self::Kronecker(first, second) => {
                let size = first.size().zip(second.size());
                size.map(|(first, second)| (first.0 * second.0, first.1 * second.1)) == matrix
            }
            Self::Rows { of, rows, .. } => {
                rows.iter().map(ExactSizeIterator::len).sum::<usize>() == *out && of.get(1..) == Some(rest)
            }
            Self::Full(change) => change.elem_count() == weight.iter().product::<usize>() && change.dims().first() == Some(out),
        }
    }

    /// The change in the shape `weight`, which it [fits](Self::fits).
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn weight(&self, weight: &[usize]) -> Result<Tensor> {
        let change = match self {
            Self::LowRank { down, up, mid: None } => up.flatten_from(1)?.matmul(&down.flatten_from(1)?)?,
            Self::LowRank { down, up, mid: Some(mid) } => tucker(mid, &up.flatten_from(1)?.t()?, &down.flatten_from(1)?)?,
            Self::Hadamard(first, second) => (first.matrix()? * second.matrix()?)?,
            Self::Kronecker(first, second) => kronecker(&first.matrix()?, &second.matrix()?)?,
            Self::Full(change) => change.clone(),
            Self::Rows { joint, of, rows } => rows_of(&joint.weight(of)?, rows)?,
        };
        change.reshape(weight)
    }
}

impl LowRank {
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.a, &self.b].into_iter().chain(&self.core)
    }

    fn rank(&self) -> Option<usize> {
        self.b.dims().first().copied()
    }

    /// Rows, and columns times kernel.
    fn size(&self) -> Option<(usize, usize)> {
        match &self.core {
            Some(core) => tucker_size(core, self.a.dims(), self.b.dims(), true),
            None => match (self.a.dims(), self.b.dims()) {
                ([rows, rank], [same, rest @ ..]) if rank == same => Some((*rows, rest.iter().product())),
                _ => None,
            },
        }
    }

    /// (rows, columns) or (rows, columns, kernel).
    fn matrix(&self) -> Result<Tensor> {
        match &self.core {
            Some(core) => tucker(core, &self.a, &self.b),
            None => self.a.matmul(&self.b.flatten_from(1)?),
        }
    }
}

impl Factor {
    fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::Whole(factor) => vec![factor],
            Self::LowRank(product) => product.tensors().collect(),
        }
    }

    fn size(&self) -> Option<(usize, usize)> {
        match self {
            Self::Whole(factor) => match factor.dims() {
                [rows, columns, kernel @ ..] => Some((*rows, columns * kernel.iter().product::<usize>())),
                _ => None,
            },
            Self::LowRank(product) => product.size(),
        }
    }

    fn matrix(&self) -> Result<Tensor> {
        match self {
            Self::Whole(factor) if factor.rank() > 2 => factor.flatten_from(2),
            Self::Whole(factor) => Ok(factor.clone()),
            Self::LowRank(product) => product.matrix(),
        }
    }
}

/// Linear layers and convolutions: up (out, rank[, 1, 1]), down (rank, in[, height, width]); a 1x1 convolution may be
/// adapted as a linear layer.
fn low_rank_fits(down: &[usize], up: &[usize], weight: &[usize]) -> bool {
    let ([rank, down_rest @ ..], [out, up_rank, up_rest @ ..]) = (down, up) else { return false };
    let [weight_out, weight_rest @ ..] = weight else { return false };
    let without_ones = |dims: &[usize]| dims.iter().copied().rev().skip_while(|dim| *dim == 1).collect::<Vec<_>>();
    rank == up_rank
        && out == weight_out
        && *rank > 0
        && up_rest.iter().all(|dim| *dim == 1)
        && without_ones(down_rest) == without_ones(weight_rest)
}

/// Size of what [`tucker`] makes: (rows, columns times kernel). `a` is (rank, rows), or (rows, rank) of a `LoCon`.
fn tucker_size(core: &Tensor, a: &[usize], b: &[usize], a_is_turned: bool) -> Option<(usize, usize)> {
    let ([first, second, kernel @ ..], [a0, a1, a_rest @ ..], [b0, b1, b_rest @ ..]) = (core.dims(), a, b) else { return None };
    let (a_rank, rows) = if a_is_turned { (a0, a1) } else { (a1, a0) };
    let flat = a_rest.iter().chain(b_rest).all(|dim| *dim == 1);
    (first == a_rank && second == b0 && flat && *first > 0).then(|| (*rows, b1 * kernel.iter().product::<usize>()))
}

/// `Σ core[i, j, …]·a[i, row]·b[j, column]`: core (I, J, …), a (I, rows), b (J, columns) to (rows, columns, kernel).
fn tucker(core: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let core = if core.rank() > 2 { core.flatten_from(2)? } else { core.unsqueeze(2)? };
    let (first, _, kernel) = core.dims3()?;
    let rows = a.dim(1)?;
    let columns = b.flatten_from(1)?.dim(1)?;
    let within = b.flatten_from(1)?.t()?.unsqueeze(0)?.broadcast_matmul(&core)?;
    let all = a.t()?.contiguous()?.matmul(&within.reshape((first, columns * kernel))?)?;
    all.reshape((rows, columns, kernel))
}

/// first (A, B) and second (C, D) or (C, D, kernel) to (A·C, B·D, kernel).
fn kronecker(first: &Tensor, second: &Tensor) -> Result<Tensor> {
    let (a, b) = first.dims2()?;
    let second = if second.rank() == 2 { second.unsqueeze(2)? } else { second.clone() };
    let (c, d, kernel) = second.dims3()?;
    let product = first.reshape((a, 1, b, 1, 1))?.broadcast_mul(&second.reshape((1, c, 1, d, kernel))?)?;
    product.reshape((a * c, b * d, kernel))
}
