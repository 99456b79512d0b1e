//! What a build without the feature `cuda` has in place of kernels: none. `channels_last.rs`, `convolution.rs`, `epilogue.rs`, `gated.rs`,
//! `modulation.rs`, `norm_rope.rs` and `matmul.rs` say what they do.

use atelier_kernels::elementwise::Gate;
use candle_core::{Result, Tensor};

pub(crate) fn convolution(
    _: &Tensor,
    _: &Tensor,
    _: usize,
    _: usize,
    _: Option<(&Tensor, Option<&Tensor>)>,
) -> Option<Result<Tensor>> {
    None
}

pub(crate) fn joined_last(_: &Tensor, _: &Tensor) -> Option<Result<Tensor>> {
    None
}

pub(crate) fn doubled_last(_: &Tensor) -> Option<Result<Tensor>> {
    None
}

pub(crate) fn add_bias(_: &Tensor, _: &Tensor, _: Option<&Tensor>, _: usize) -> Option<Result<()>> {
    None
}

pub(crate) fn geglu(_: &Tensor, _: &Tensor) -> Option<Result<Tensor>> {
    None
}

pub(crate) fn modulate(_: &Tensor, _: [usize; 2], _: [(&Tensor, &Tensor); 3], _: f32) -> Option<Result<Tensor>> {
    None
}

pub(crate) fn add_gated(_: &Tensor, _: &Tensor, _: [usize; 2], _: [&Tensor; 3]) -> Option<Result<Tensor>> {
    None
}

pub(crate) fn add_gated_modulate(
    _: (&Tensor, &Tensor),
    _: [usize; 2],
    _: [&Tensor; 3],
    _: [(&Tensor, &Tensor); 3],
    _: f32,
) -> Option<Result<[Tensor; 2]>> {
    None
}

pub(crate) fn norm_rope(
    _: &Tensor,
    _: (usize, [&Tensor; 2]),
    _: usize,
    _: f32,
    _: (&Tensor, &Tensor),
) -> Option<Result<Tensor>> {
    None
}

pub(crate) fn linear(_: &Tensor, _: &Tensor, _: Option<&Tensor>, _: Option<&Tensor>) -> Option<Result<Tensor>> {
    None
}

pub(crate) fn linear_gelu(_: (&Tensor, &Tensor, Option<&Tensor>)) -> Option<Result<Tensor>> {
    None
}

pub(crate) fn linears_joined(_: [(&Tensor, &Tensor, Option<&Tensor>); 2], _: bool) -> Option<Result<Tensor>> {
    None
}

pub(crate) fn gated(_: &[[(&Tensor, &Tensor, Option<&Tensor>); 2]], _: Gate) -> Option<Result<Tensor>> {
    None
}

pub(crate) fn opened(_: Gate, _: &Tensor, _: &Tensor) -> Option<Result<Tensor>> {
    None
}

pub(crate) fn layer_norm(_: &Tensor, _: &Tensor, _: &Tensor, _: f32) -> Option<Result<Tensor>> {
    None
}
