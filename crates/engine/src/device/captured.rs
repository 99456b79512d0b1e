//! CUDA graphs of steps: captured when a step is first done, with inputs at addresses of their own, and launched for every step after it.

use std::sync::Arc;

use atelier_kernels::cuda::graph::{Graph, record};
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, DevicePtr as _};
use candle_core::{Device, Error, Result, Storage, Tensor, TensorId};

use super::memory_order::{as_it_lies, fill, is_channels_last, with_channels_first};
use super::{FirstTime, Repeated, Step};

struct Captured {
    graph: Graph<Tensor>,
    /// What the graph reads.
    slots: Vec<Tensor>,
    /// What each slot was filled from.
    filled: Vec<TensorId>,
    stream: Arc<CudaStream>,
    /// Behind the launch before the last one, and behind that.
    sent: [CudaEvent; 2],
}

/// Does `step` plainly, and captures it; `None` on a CPU. `has_room`: whether a graph may keep so many bytes.
pub(super) fn first_time(
    inputs: &[Tensor],
    step: &Step<'_>,
    has_room: &mut dyn FnMut(usize) -> bool,
) -> Option<Result<FirstTime>> {
    let Some(Device::Cuda(cuda)) = inputs.first().map(Tensor::device) else { return None };
    Some(captured(&cuda.cuda_stream(), inputs, step, has_room))
}

fn captured(
    stream: &Arc<CudaStream>,
    inputs: &[Tensor],
    step: &Step<'_>,
    has_room: &mut dyn FnMut(usize) -> bool,
) -> Result<FirstTime> {
    let slots = inputs.iter().map(slot).collect::<Result<Vec<_>>>()?;
    let (output, recording) = record(|| step(&slots));
    let output = output?;
    let input_bytes: usize = slots.iter().map(|slot| slot.elem_count() * slot.dtype().size_in_bytes()).sum();
    let graph_bytes = recording.graph_bytes(&addresses(&output, stream));
    if !has_room(graph_bytes + input_bytes) {
        let repeated = Err(format!("it would keep {} MiB, more than there is for graphs", (graph_bytes + input_bytes) >> 20));
        return Ok(FirstTime { output, repeated });
    }
    let sent = [stream.record_event(None).map_err(Error::wrap)?, stream.record_event(None).map_err(Error::wrap)?];
    let graph = Graph::capture(stream, graph_bytes, || step(&slots), |output| addresses(output, stream));
    let repeated = graph.map_err(|problem| problem.to_string()).map(|graph| -> Box<dyn Repeated> {
        let filled = inputs.iter().map(Tensor::id).collect();
        Box::new(Captured { graph, slots, filled, stream: Arc::clone(stream), sent })
    });
    Ok(FirstTime { output, repeated })
}

/// A copy as the graph will see it: in order, but for images whose channels are last.
fn slot(input: &Tensor) -> Result<Tensor> {
    let copy = as_it_lies(input)?.force_contiguous()?;
    if is_channels_last(input) { with_channels_first(&copy) } else { Ok(copy) }
}

/// Where a result in f32 lies; none for any other, which a graph then does not keep.
fn addresses(output: &Tensor, stream: &CudaStream) -> Vec<u64> {
    let (storage, _) = output.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { return Vec::new() };
    storage.as_cuda_slice::<f32>().map(|values| values.device_ptr(stream).0).into_iter().collect()
}

impl Repeated for Captured {
    fn bytes(&self) -> usize {
        let slots = self.slots.iter().map(|slot| slot.elem_count() * slot.dtype().size_in_bytes());
        self.graph.bytes() + slots.sum::<usize>()
    }

    fn repeat(&mut self, inputs: &[Tensor]) -> Result<Tensor> {
        for (place, input) in inputs.iter().enumerate() {
            // Values of a tensor never change here, so what is in its slot already stays.
            if self.filled[place] != input.id() {
                fill(&self.slots[place], input)?;
                self.filled[place] = input.id();
            }
        }
        self.graph.launch().map_err(Error::wrap)?;
        self.sent.swap(0, 1);
        self.sent[1].record(&self.stream).map_err(Error::wrap)?;
        // One launch at most is behind the one that runs: else a whole generation would be sent at once, and could not be cancelled any more.
        self.sent[0].synchronize().map_err(Error::wrap)?;
        // The next launch writes it again.
        self.graph.result().force_contiguous()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::super::{first_time, keeping_uploads, open};
    use super::*;

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("values")
    }

    /// Of a device whose stream is this test's alone.
    fn inputs() -> [Tensor; 2] {
        let device = open().expect("a GPU");
        let numbers = Tensor::arange(0.0_f32, 12.0, &device).and_then(|numbers| numbers.reshape((3, 4))).expect("numbers");
        // Not in order, as a step sees it outside of a graph.
        [numbers.t().expect("transposed"), Tensor::new(&[2.0_f32], &device).expect("a factor")]
    }

    /// (numbers + 1)·factor, over some tensors that live for a part of it.
    fn plain(inputs: &[Tensor]) -> Result<Tensor> {
        let one_more = (&inputs[0] + 1.0)?;
        let scaled = one_more.broadcast_mul(&inputs[1])?;
        drop(one_more);
        let twice = (&scaled * 2.0)?;
        (twice + scaled)? / 3.0
    }

    /// With a factor that comes from the host.
    fn tripled(inputs: &[Tensor]) -> Result<Tensor> {
        inputs[0].broadcast_mul(&Tensor::new(&[3.0_f32], inputs[0].device())?)
    }

    fn once_more(times: &Cell<u8>) -> u8 {
        times.set(times.get() + 1);
        times.get()
    }

    fn first(inputs: &[Tensor], step: &Step<'_>, has_room: bool) -> Result<FirstTime> {
        keeping_uploads(inputs[0].device(), &[3, 4], || first_time(inputs, step, &mut |_| has_room).expect("a GPU"))
    }

    fn graph(inputs: &[Tensor]) -> Box<dyn Repeated> {
        first(inputs, &plain, true).expect("a step").repeated.expect("a graph")
    }

    #[test]
    fn a_graph_does_the_step_with_other_inputs_and_keeps_no_result_from_being_read() {
        let [numbers, factor] = inputs();
        let FirstTime { output, repeated } = first(&[numbers.clone(), factor.clone()], &plain, true).expect("a step");
        let mut graph = repeated.expect("a graph");
        let mut results = vec![(output, plain(&[numbers.clone(), factor.clone()]).expect("a step"))];
        for round in 1..4_u8 {
            let numbers = (&numbers + f64::from(round)).expect("numbers");
            let factor = (&factor * f64::from(round)).expect("a factor");
            // All of them new, one new, none new.
            for inputs in [[numbers.clone(), factor.clone()], [numbers.clone(), (factor * 0.5).expect("a factor")]] {
                let expected = plain(&inputs).expect("a step");
                results.extend([0, 1].map(|_| (graph.repeat(&inputs).expect("a launch"), expected.clone())));
            }
        }
        drop(graph);
        for (place, (ours, expected)) in results.iter().enumerate() {
            assert_eq!(values(ours), values(expected), "result {place}");
        }
    }

    #[test]
    fn what_a_graph_cannot_hold_is_done_plainly_and_said() {
        let both = inputs();
        let times = Cell::new(0_u8);
        let kept = RefCell::new(Vec::new());
        let cases: [(&str, &Step<'_>, bool, &str); 5] = [
            (
                "reads",
                &|inputs| Tensor::new(inputs[0].to_vec2::<f32>()?, inputs[0].device())?.broadcast_mul(&inputs[1]),
                true,
                "not permitted while capturing",
            ),
            (
                "uploads",
                &|inputs| inputs[0].broadcast_mul(&Tensor::new(&[f32::from(once_more(&times))], inputs[0].device())?),
                true,
                "missing cached host data",
            ),
            (
                "keeps",
                &|inputs| {
                    kept.borrow_mut().push((&inputs[0] * 3.0)?);
                    &inputs[0] * 1.0
                },
                true,
                "keeps 1 tensors",
            ),
            (
                "fails",
                &|inputs| if once_more(&times) == 2 { Err(Error::msg("failed the second time")) } else { plain(inputs) },
                true,
                "failed the second time",
            ),
            ("is too large", &plain, false, "more than there is for graphs"),
        ];
        for (name, step, has_room, words) in cases {
            times.set(0);
            let first = first(&both, step, has_room).expect("a step");
            times.set(0);
            assert_eq!(values(&first.output), values(&step(&both).expect("a step")), "{name}");
            let problem = first.repeated.err().expect(name);
            assert!(problem.contains(words), "{name}: {problem}");
            // Nothing is left of the capture: another one holds what it can.
            assert_eq!(
                values(&graph(&both).repeat(&both).expect("a launch")),
                values(&plain(&both).expect("a step")),
                "{name}"
            );
        }
        let [numbers, _] = &both;
        assert_eq!(values(&kept.borrow()[0]), values(&(numbers * 3.0).expect("numbers")));
    }

    #[test]
    fn an_upload_that_is_kept_nowhere_is_refused_as_well() {
        let both = inputs();
        // Without `keeping_uploads`, as beyond so many shapes: a graph would read the host's memory at every launch.
        let first = first_time(&both, &tripled, &mut |_| true).expect("a GPU").expect("a step");
        let problem = first.repeated.err().expect("no graph");
        assert!(problem.contains("CAPTURE_UNSUPPORTED"), "{problem}");
        assert_eq!(values(&first.output), values(&tripled(&both).expect("a step")));
    }

    #[test]
    fn a_step_that_panics_leaves_the_stream_as_it_was() {
        let both = inputs();
        let times = Cell::new(0_u8);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            first(
                &both,
                &|inputs| {
                    assert!(once_more(&times) < 2, "the second time");
                    plain(inputs)
                },
                true,
            )
        }));
        assert!(panicked.is_err());
        assert_eq!(values(&graph(&both).repeat(&both).expect("a launch")), values(&plain(&both).expect("a step")));
    }

    #[test]
    fn results_outlive_graphs_and_graphs_each_other() {
        let both = inputs();
        let mut graphs: Vec<Box<dyn Repeated>> = (0..3).map(|_| graph(&both)).collect();
        let expected = values(&plain(&both).expect("a step"));
        let results: Vec<Tensor> = graphs.iter_mut().map(|graph| graph.repeat(&both).expect("a launch")).collect();
        drop(graphs.remove(1));
        let after: Vec<Tensor> = graphs.iter_mut().map(|graph| graph.repeat(&both).expect("a launch")).collect();
        drop(graphs);
        assert!(results.iter().chain(&after).all(|result| values(result) == expected));
    }
}
