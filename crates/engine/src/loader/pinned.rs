//! A ring of pinned buffers between files and a GPU.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use atelier_kernels::cuda::pinned;
use bytemuck::Pod;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaSlice, DeviceRepr, PinnedHostSlice, ValidAsZeroBits};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage};
use candle_core::op::BackpropOp;
use candle_core::{DType, Device, Error, Storage, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;

use crate::EngineError;
use crate::stored::Stored;

/// Of one buffer.
const BUFFER_BYTES: usize = 8 << 20;
/// As many threads read at most.
const BUFFERS: usize = 8;

trait Element: Pod + DeviceRepr + ValidAsZeroBits + CudaDType {}
impl<T: Pod + DeviceRepr + ValidAsZeroBits + CudaDType> Element for T {}

/// A part of a tensor that fits into a buffer: `count` of its values, after `from` others.
struct Chunk {
    /// The tensor's, in the list of those that are brought.
    place: usize,
    from: usize,
    count: usize,
}

struct Buffer<T> {
    memory: PinnedHostSlice<T>,
    /// When what it held last is on the GPU.
    copied: Option<CudaEvent>,
}

pub(super) fn upload(stored: &[Stored<'_>], dtype: DType, cuda: &CudaDevice) -> Result<Vec<Tensor>, EngineError> {
    let mut tensors: HashMap<usize, Tensor> = HashMap::new();
    for kept in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let mut keep = |place: usize, storage: CudaStorage| {
            let shape = stored[place].info.shape.as_slice();
            let tensor = Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false);
            tensors.insert(place, tensor.to_dtype(dtype)?);
            Ok(())
        };
        let places = (0..stored.len()).filter(|place| stored[*place].info.dtype == kept);
        let counts: Vec<(usize, usize)> = places.map(|place| (place, stored[place].count())).collect();
        match kept {
            _ if counts.is_empty() => {}
            Dtype::F16 => upload_as::<f16>(stored, &counts, cuda, &mut keep)?,
            Dtype::BF16 => upload_as::<bf16>(stored, &counts, cuda, &mut keep)?,
            _ => upload_as::<f32>(stored, &counts, cuda, &mut keep)?,
        }
    }
    let device = Device::Cuda(cuda.clone());
    let taken = (0..stored.len()).map(|place| match tensors.remove(&place) {
        Some(tensor) => Ok(tensor),
        None if stored[place].count() == 0 => Ok(Tensor::zeros(stored[place].info.shape.as_slice(), dtype, &device)?),
        None => Err(stored[place].unsupported()),
    });
    taken.collect()
}

/// What is done with a tensor, given by its place, when all of it is on its way.
type Keep<'a> = &'a mut dyn FnMut(usize, CudaStorage) -> Result<(), EngineError>;

/// Brings those tensors whose values are `T`, given by their places and how many values they have.
fn upload_as<T: Element>(
    stored: &[Stored<'_>],
    counts: &[(usize, usize)],
    cuda: &CudaDevice,
    keep: Keep<'_>,
) -> Result<(), EngineError> {
    let stream = cuda.cuda_stream();
    let most = BUFFER_BYTES / size_of::<T>();
    let pieces: Vec<Chunk> = (counts.iter())
        .flat_map(|&(place, all)| (0..all).step_by(most).map(move |from| Chunk { place, from, count: most.min(all - from) }))
        .collect();
    let (give_back, buffers) = mpsc::channel();
    for _ in 0..BUFFERS {
        let memory = pinned::<T>(stream.context(), most).map_err(Error::wrap)?;
        // Its receiver is alive.
        let _ = give_back.send(Buffer { memory, copied: None });
    }
    let buffers = Mutex::new(buffers);
    let next = AtomicUsize::new(0);
    let (filled, arriving) = mpsc::channel();
    let brought = thread::scope(|scope| {
        for _ in 0..rayon::current_num_threads().min(BUFFERS) {
            let filled = filled.clone();
            let pieces = &pieces;
            let buffers = &buffers;
            let next = &next;
            scope.spawn(move || {
                while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let buffer = buffers.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    // Without a buffer or a taker someone else has failed.
                    let Ok(buffer) = buffer else { return };
                    if filled.send(filled_with(buffer, piece, &stored[piece.place]).map(|buffer| (piece, buffer))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(filled);
        let copied = copy(counts, arriving, &give_back, cuda, keep);
        // If that failed, this wakes those who wait for a buffer.
        drop(give_back);
        copied
    });
    // Nothing is copied out of the buffers any more when they go.
    stream.synchronize().map_err(Error::wrap)?;
    brought
}

fn filled_with<T: Element>(mut buffer: Buffer<T>, piece: &Chunk, stored: &Stored<'_>) -> Result<Buffer<T>, EngineError> {
    if let Some(copied) = buffer.copied.take() {
        copied.synchronize().map_err(Error::wrap)?;
    }
    let memory = buffer.memory.as_mut_slice().map_err(Error::wrap)?;
    let bytes = bytemuck::cast_slice_mut(&mut memory[..piece.count]);
    stored.file.read_at(stored.info, piece.from * size_of::<T>(), bytes)?;
    Ok(buffer)
}

/// Has everything copied that arrives.
fn copy<T: Element>(
    counts: &[(usize, usize)],
    arriving: mpsc::Receiver<Result<(&Chunk, Buffer<T>), EngineError>>,
    give_back: &mpsc::Sender<Buffer<T>>,
    cuda: &CudaDevice,
    keep: Keep<'_>,
) -> Result<(), EngineError> {
    let stream = cuda.cuda_stream();
    let all: HashMap<usize, usize> = counts.iter().copied().collect();
    let mut begun: HashMap<usize, (CudaSlice<T>, usize)> = HashMap::new();
    for arrived in arriving {
        let (&Chunk { place, from, count }, mut buffer) = arrived?;
        let (mut slice, missing) = match begun.remove(&place) {
            Some(begun) => begun,
            None => (cuda.alloc_zeros::<T>(all[&place])?, all[&place]),
        };
        let memory = buffer.memory.as_slice().map_err(Error::wrap)?;
        cuda.memcpy_htod(&memory[..count], &mut slice.slice_mut(from..from + count))?;
        buffer.copied = Some(stream.record_event(None).map_err(Error::wrap)?);
        let _ = give_back.send(buffer);
        if missing == count {
            keep(place, CudaStorage::wrap_cuda_slice(slice, cuda.clone()))?;
        } else {
            begun.insert(place, (slice, missing - count));
        }
    }
    Ok(())
}
