//! A GPU's own product of 8-bit values as an operation of candle's.

use atelier_kernels::cuda::{Fp8Gemm, Sides};
use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Device, Error, Layout, Result, Shape, Tensor};

/// What cuBLASLt asks of addresses and widths.
const ALIGNED: usize = 16;

/// (T, in) and (out, in), both e4m3, to (T, out), bf16. `None` on a CPU.
pub(super) fn open(device: &Device) -> Option<Result<impl Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync + use<>>> {
    let Device::Cuda(cuda) = device else { return None };
    let opened = Fp8Gemm::new(&cuda.cuda_stream()).map(Gemm).map_err(Error::msg);
    Some(opened.map(|product| move |input: &Tensor, weight: &Tensor| input.apply_op2_no_bwd(weight, &product)))
}

struct Gemm(Fp8Gemm);

impl CustomOp2 for Gemm {
    fn name(&self) -> &'static str {
        "eight-bit-product"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Err(Error::msg("8-bit values are multiplied on a GPU only"))
    }

    fn cuda_fwd(
        &self,
        input: &CudaStorage,
        input_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (columns, depth) = input_layout.shape().dims2()?;
        let (rows, weight_depth) = weight_layout.shape().dims2()?;
        let (CudaStorageSlice::F8E4M3(inputs), CudaStorageSlice::F8E4M3(weights)) = (&input.slice, &weight.slice) else {
            return Err(Error::msg("an 8-bit product is of e4m3 values"));
        };
        let (Some((first_input, _)), Some((first_weight, _))) =
            (input_layout.contiguous_offsets(), weight_layout.contiguous_offsets())
        else {
            return Err(Error::msg("an 8-bit product is of values in order"));
        };
        if depth != weight_depth || [depth, rows, first_input, first_weight].iter().any(|number| number % ALIGNED != 0) {
            return Err(Error::msg(format!(
                "no 8-bit product of {:?} and {:?}: widths must be equal and multiples of {ALIGNED}",
                input_layout.dims(),
                weight_layout.dims()
            )));
        }
        let device = input.device.clone();
        let mut out = device.alloc_zeros(rows * columns)?;
        let sides = Sides { rows, columns, depth };
        let inputs = inputs.slice(first_input..);
        let weights = weights.slice(first_weight..);
        self.0.multiply(&weights, &inputs, sides, &mut out).map_err(Error::wrap)?;
        Ok((CudaStorage::wrap_cuda_slice(out, device), (columns, rows).into()))
    }
}
