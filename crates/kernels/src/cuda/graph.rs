//! CUDA graphs: work on a stream that is told to the driver once and launched as one.

use std::sync::Arc;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, CudaStream, DriverError};

use super::arena::{Arena, Captured, Left, Notes, watched};

/// A step as it was done plainly, and what it asked for.
pub struct Recording(Notes);

/// Does `step` plainly. What it asks for is what [`Graph::capture`] makes room for.
pub fn record<R>(step: impl FnOnce() -> R) -> (R, Recording) {
    let (result, notes) = watched(step);
    (result, Recording(notes))
}

impl Recording {
    /// Bytes that a graph of the same step keeps. `results`: addresses of what it returned.
    #[must_use]
    pub fn graph_bytes(&self, results: &[u64]) -> usize {
        self.0.arena_bytes(results)
    }
}

/// Why a step was not captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError<E> {
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error(transparent)]
    Step(E),
    #[error("it sends nothing to the GPU")]
    Empty,
    #[error("it keeps {0} tensors beside its result")]
    Keeps(usize),
}

/// A captured step, what it returned, and the memory that all of its tensors lie in. It reads whatever is in its inputs at a launch; those have to live
/// as long as it does.
pub struct Graph<R> {
    // Dropped in this order: what lies in the arena, what uses it, the arena.
    result: R,
    launched: CudaGraph,
    arena: Arena,
}

// SAFETY: a graph may be used by any thread, by one at a time (CUDA driver API, "Graph object thread safety"); nothing here uses it but by `&mut`, or to
// read addresses.
unsafe impl<R: Send> Send for Graph<R> {}

impl<R> Graph<R> {
    /// Captures `step`, which computes nothing now. Its tensors lie in `bytes` of memory that are the graph's. All of what it does has to go to
    /// `stream`, which nobody else may use meanwhile, and for which no events are recorded ([`super::trust_one_stream`]). `addresses`: of the result.
    ///
    /// # Errors
    /// When `step` fails, wants more memory, waits for the device, copies from or to the host, or keeps tensors; then the stream is as it was.
    pub fn capture<E>(
        stream: &Arc<CudaStream>,
        bytes: usize,
        step: impl FnOnce() -> Result<R, E>,
        addresses: impl FnOnce(&R) -> Vec<u64>,
    ) -> Result<Self, CaptureError<E>> {
        let arena = Arena::new(stream, bytes)?;
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let capturing = Capturing { stream, captured: Some(arena.capture()) };
        let result = step();
        let kept = result.as_ref().map_or_else(|_| Vec::new(), addresses);
        let (graph, left) = capturing.end();
        let unknown = left.living.iter().filter(|address| !kept.contains(address)).count();
        if unknown > 0 {
            // Somebody has tensors in it, who knows for how long.
            std::mem::forget(arena);
            return Err(CaptureError::Keeps(unknown));
        }
        let result = result.map_err(CaptureError::Step)?;
        let graph = graph?.ok_or(CaptureError::Empty)?;
        // Else the first launch would wait for it.
        graph.upload()?;
        Ok(Self { result, launched: graph, arena })
    }

    /// What the step returned: what is in it is that of the last launch.
    #[must_use]
    pub fn result(&self) -> &R {
        &self.result
    }

    /// What it keeps of the device's memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.arena.bytes()
    }

    /// Sends all of it to the stream.
    ///
    /// # Errors
    /// The driver's.
    pub fn launch(&mut self) -> Result<(), DriverError> {
        self.launched.launch()
    }
}

/// A stream that is captured, which ends with this, also where a step panics.
struct Capturing<'a> {
    stream: &'a Arc<CudaStream>,
    captured: Option<Captured>,
}

impl Capturing<'_> {
    fn end(mut self) -> (Result<Option<CudaGraph>, DriverError>, Left) {
        let ended = self.captured.take().map(|captured| ended(self.stream, captured));
        ended.unwrap_or_else(|| unreachable!("it is taken here and when it is dropped"))
    }
}

impl Drop for Capturing<'_> {
    fn drop(&mut self) {
        if let Some(captured) = self.captured.take() {
            drop(ended(self.stream, captured));
        }
    }
}

fn ended(stream: &Arc<CudaStream>, captured: Captured) -> (Result<Option<CudaGraph>, DriverError>, Left) {
    let graph = stream.end_capture(CUgraphInstantiate_flags(0));
    let left = captured.end();
    left.free(stream);
    (graph, left)
}
