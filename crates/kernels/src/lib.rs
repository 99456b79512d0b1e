//! What the engine computes on a CPU: f32, threads of rayon's global pool, the processor's vectors chosen at run time; and the little
//! that candle lacks on a GPU.
//!
//! Every number of a result is summed in an order that depends on the layer alone, never on the batch, the threads or the place
//! in a block: an image is the same bit by bit whether it is generated alone or among others.

#![expect(clippy::inline_always, reason = "what is compiled for each kind of vectors has to be inlined there")]

pub mod attention;
#[cfg(not(feature = "cuda"))]
pub mod caching_allocator;
pub mod convolution;
mod convolve;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(all(feature = "cuda", not(feature = "cudart")))]
mod cuda_runtime;
pub mod elementwise;
pub mod gemm;
pub mod gguf;
pub mod norm;
mod scratch;
mod shared;
mod tile;
mod transpose;
mod vectors;
mod winograd;
