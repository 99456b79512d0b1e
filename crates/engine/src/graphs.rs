//! Steps that a GPU is told once and repeats, by what makes them equal: CUDA graphs, as many as there is memory for. What cannot be one, and whatever
//! a CPU does, is done anew each time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Result, Tensor};

use super::EngineError;
use super::device::{FirstTime, Repeated, first_time};
use super::recent::Recent;

/// Of the device's memory for all graphs of a model.
const MAX_BYTES: usize = 4 << 30;
/// A graph counts as a 32nd of it at least: its nodes take memory of the driver's that nobody can ask for.
const MAX_GRAPHS: usize = 32;
/// Kinds of steps that were found to be none.
const MAX_REFUSED: usize = 256;

/// What makes steps equal besides the shapes and formats of their inputs: all that decides which operations they are, on what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    /// The module whose tensors a step reads, by its [`module_number`].
    pub(crate) module: u64,
    /// Whatever else its code goes by.
    pub(crate) choices: Vec<usize>,
}

/// A number for a module's tensors, at the addresses where they are.
pub(crate) fn module_number() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed)
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    kind: Kind,
    inputs: Vec<(Vec<usize>, DType)>,
}

/// How often steps became graphs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GraphCounts {
    /// There are now.
    pub kept: usize,
    /// Captured so far.
    pub captured: u64,
    /// Steps so far that were one launch.
    pub launched: u64,
    /// Steps that could not be captured, each counted once.
    pub refused: u64,
}

/// The graphs of a model; none where nobody wants any.
pub(crate) struct Graphs(Option<Mutex<Known>>);

/// Of what a budget leaves beside the weights, what graphs may keep: one part in so many.
const SHARE: u64 = 4;

struct Known {
    graphs: Recent<Key, Box<dyn Repeated>>,
    refused: Recent<Key, ()>,
    counts: GraphCounts,
}

impl Graphs {
    /// `room_bytes`: what there is beside the model's own tensors, where someone has said so. A quarter of it is for graphs.
    pub(crate) fn new(wanted: bool, device: &Device, room_bytes: Option<u64>) -> Self {
        let share = room_bytes.and_then(|bytes| usize::try_from(bytes / SHARE).ok());
        let max = share.unwrap_or(MAX_BYTES).min(MAX_BYTES);
        let known = (wanted && device.is_cuda()).then(|| {
            let graphs: Recent<Key, Box<dyn Repeated>> = Recent::new(max, |_, graph| graph.bytes().max(MAX_BYTES / MAX_GRAPHS));
            Mutex::new(Known { graphs, refused: Recent::new(MAX_REFUSED, |_, ()| 1), counts: GraphCounts::default() })
        });
        Self(known)
    }

    /// What `step` makes of `inputs`, f32. It may read nothing else that changes but what a new [`Kind`] comes with, and every kind has to send the same
    /// operations each time.
    ///
    /// # Errors
    /// Those of `step`, or the device's.
    pub(crate) fn repeat(&self, kind: Kind, inputs: &[Tensor], step: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<Tensor> {
        let Some(mut known) = self.known() else { return step(inputs) };
        let key = Key { kind, inputs: inputs.iter().map(|input| (input.dims().to_vec(), input.dtype())).collect() };
        if let Some(graph) = known.graphs.get_mut(&key) {
            let output = graph.repeat(inputs);
            known.counts.launched += 1;
            return output;
        }
        if known.refused.get(&key).is_some() {
            return step(inputs);
        }
        let first = first_time(inputs, &step, &mut |bytes| known.graphs.make_room(bytes.max(MAX_BYTES / MAX_GRAPHS)));
        let Some(first) = first else { return step(inputs) };
        let FirstTime { output, repeated } = first?;
        match repeated {
            Ok(graph) => {
                known.graphs.put(key, graph);
                known.counts.captured += 1;
            }
            Err(problem) => known.refuse(key, &problem),
        }
        Ok(output)
    }

    /// Lets go of graphs whose modules are not among these.
    pub(crate) fn keep(&self, modules: [u64; 2]) {
        if let Some(mut known) = self.known() {
            known.graphs.retain(|key| modules.contains(&key.kind.module));
            known.refused.retain(|key| modules.contains(&key.kind.module));
        }
    }

    /// Lets go of all graphs, for their memory. Returns whether there were any.
    pub(crate) fn forget(&self) -> bool {
        let Some(mut known) = self.known() else { return false };
        let had_any = !known.graphs.is_empty();
        known.graphs.forget();
        // What there was no memory for may be tried again.
        known.refused.forget();
        had_any
    }

    /// What is left for a generation of so many bytes beside the model's own tensors.
    pub(crate) fn remaining(&self, room_bytes: u64) -> u64 {
        if self.0.is_some() { room_bytes - room_bytes / SHARE } else { room_bytes }
    }

    /// Does `work`; where there is no memory for it, once more without the memory of graphs, if there are any.
    ///
    /// # Errors
    /// Those of the second time, or of the only one.
    pub(crate) fn making_room<T>(
        &self,
        work: impl Fn() -> std::result::Result<T, EngineError>,
    ) -> std::result::Result<T, EngineError> {
        match work() {
            Err(EngineError::OutOfMemory { problem }) if self.forget() => {
                tracing::warn!(problem, "out of memory: generated once more without CUDA graphs of steps before");
                work()
            }
            ended => ended,
        }
    }

    pub(crate) fn counts(&self) -> GraphCounts {
        self.known().map_or_else(GraphCounts::default, |known| GraphCounts { kept: known.graphs.len(), ..known.counts })
    }

    fn known(&self) -> Option<MutexGuard<'_, Known>> {
        self.0.as_ref().map(|known| known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Known {
    fn refuse(&mut self, key: Key, problem: &str) {
        // Once: else a driver without graphs would say so for each size.
        if self.counts.refused == 0 {
            tracing::warn!(
                problem,
                ?key,
                "no CUDA graph of this step: it is sent to the GPU kernel by kernel, which takes longer"
            );
        } else {
            tracing::debug!(problem, ?key, "no CUDA graph of this step");
        }
        self.counts.refused += 1;
        self.refused.put(key, ());
    }
}
