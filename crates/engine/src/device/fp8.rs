//! A GPU's own 8-bit values: rounding, products and what follows them, by the kernels of `atelier_kernels::cuda`.

use atelier_kernels::cuda::fp8::{self, Dequantization, Parts, round_tokens, widen};
use atelier_kernels::cuda::matmul::{ALIGNED_BYTES, Fp8Factors, Matmul, Scaling, Sides};
use atelier_kernels::cuda::modules::Element;
use candle_core::cuda_backend::cudarc::driver::CudaView;
use candle_core::cuda_backend::{CudaDType, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Error, Layout, Result, Shape, Storage, Tensor};
use half::{bf16, f16};

use super::own_kernels::{in_order, view};
use super::{Fp8Device, Fp8Layer, Fp8Tokens};

/// What cuBLASLt asks of widths as well: a value is a byte.
const ALIGNED: usize = ALIGNED_BYTES;

pub(super) struct Gpu {
    device: CudaDevice,
    /// Whether scales and bias may be in the product.
    in_one: bool,
}

impl Gpu {
    pub(super) fn open(device: &CudaDevice, in_one: bool) -> Self {
        Self { device: device.clone(), in_one }
    }
}

impl Fp8Device for Gpu {
    fn round_tokens(&self, input: &Tensor, first: usize) -> Result<Fp8Tokens> {
        match input.dtype() {
            DType::F32 => rounded::<f32>(&self.device, input, first),
            DType::F16 => rounded::<f16>(&self.device, input, first),
            DType::BF16 => rounded::<bf16>(&self.device, input, first),
            other => Err(not_whole(other)),
        }
    }

    fn multiply(&self, tokens: &Fp8Tokens, layers: [Fp8Layer<'_>; 2], gelu: bool) -> Result<Tensor> {
        let (rows, depth) = layers[0].bits.dims2()?;
        if rows % ALIGNED != 0 || depth % ALIGNED != 0 {
            return Err(Error::msg(format!("no 8-bit product of {rows} and {depth}: both must be multiples of {ALIGNED}")));
        }
        if let Some(output) = self.in_one(tokens, layers, gelu)? {
            return Ok(output);
        }
        let Some(product) = self.matmul(tokens, layers, [None, None], false)? else {
            return Err(Error::msg(format!("this GPU has no 8-bit product of {rows} and {depth}")));
        };
        match layers[0].bias.dtype() {
            DType::F32 => finished::<f32>(&self.device, &product, tokens, layers, gelu),
            DType::F16 => finished::<f16>(&self.device, &product, tokens, layers, gelu),
            DType::BF16 => finished::<bf16>(&self.device, &product, tokens, layers, gelu),
            other => Err(not_whole(other)),
        }
    }
}

impl Gpu {
    /// Products with all that follows them. `None` where the GPU has none.
    fn in_one(&self, tokens: &Fp8Tokens, layers: [Fp8Layer<'_>; 2], gelu: bool) -> Result<Option<Tensor>> {
        let is_bf16 = layers.iter().all(|layer| layer.bias.dtype() == DType::BF16);
        if !self.in_one || !is_bf16 || layers.iter().any(|layer| layer.scale.elem_count() != layer.bias.elem_count()) {
            return Ok(None);
        }
        let scales = [(&tokens.first_scales, layers[0].scale), (&tokens.other_scales, layers[1].scale)];
        // A part without tokens is not multiplied.
        let scales = scales.map(|(of_tokens, of_weight)| if of_tokens.elem_count() == 0 { of_weight } else { of_tokens });
        let ordered = [layers[0].scale, scales[0], layers[1].scale, scales[1]].map(in_order);
        let ordered = ordered.into_iter().collect::<Result<Vec<_>>>()?;
        let lying: Vec<_> = ordered.iter().map(Tensor::storage_and_layout).collect();
        let scales = lying.iter().map(|(storage, layout)| view::<f32>(storage, layout)).collect::<Result<Vec<_>>>()?;
        let biases = layers.map(|layer| in_order(layer.bias)).into_iter().collect::<Result<Vec<_>>>()?;
        let lying_biases: Vec<_> = biases.iter().map(Tensor::storage_and_layout).collect();
        let biases = lying_biases.iter().map(|(storage, layout)| view::<bf16>(storage, layout)).collect::<Result<Vec<_>>>()?;
        let scaling = |part: usize| {
            Some(Scaling { weight_scales: &scales[2 * part], input_scales: &scales[2 * part + 1], bias: &biases[part] })
        };
        self.matmul(tokens, layers, [scaling(0), scaling(1)], gelu)
    }

    /// (T, out), bf16. `None` where cuBLASLt has no such product.
    fn matmul(
        &self,
        tokens: &Fp8Tokens,
        layers: [Fp8Layer<'_>; 2],
        scaling: [Option<Scaling<'_>>; 2],
        gelu: bool,
    ) -> Result<Option<Tensor>> {
        let (count, _) = tokens.bits.dims2()?;
        let (rows, _) = layers[0].bits.dims2()?;
        let first = tokens.first_scales.elem_count();
        let parts = [tokens.bits.narrow(0, 0, first)?, tokens.bits.narrow(0, first, count - first)?];
        let lying = parts.each_ref().map(Tensor::storage_and_layout);
        let lying_weights = layers.map(|layer| layer.bits.storage_and_layout());
        let inputs = [bits(&lying[0].0, lying[0].1)?, bits(&lying[1].0, lying[1].1)?];
        let weights = [bits(&lying_weights[0].0, lying_weights[0].1)?, bits(&lying_weights[1].0, lying_weights[1].1)?];
        let sides = tokens.sides(layers)?;
        let factors = scaling.into_iter().enumerate().map(|(part, scaling)| Fp8Factors {
            weight: &weights[part],
            input: &inputs[part],
            sides: sides[part],
            scaling,
        });
        let factors: Vec<_> = factors.filter(|factors| factors.sides.columns > 0).collect();
        let matmul = Matmul::of(&self.device.cuda_stream()).map_err(Error::wrap)?;
        match matmul.multiply_fp8(&factors, gelu) {
            Err(error) if error.is_refusal() => Ok(None),
            product => {
                let product = CudaStorage::wrap_cuda_slice(product.map_err(Error::wrap)?, self.device.clone());
                Ok(Some(tensor(product, (count, rows))))
            }
        }
    }
}

impl Fp8Tokens {
    /// Of each part's product.
    fn sides(&self, layers: [Fp8Layer<'_>; 2]) -> Result<[Sides; 2]> {
        let (rows, depth) = layers[0].bits.dims2()?;
        let scales = [&self.first_scales, &self.other_scales];
        Ok(scales.map(|scales| Sides { rows, columns: scales.elem_count(), depth }))
    }

    fn parts(&self) -> Parts {
        let first = self.first_scales.elem_count();
        Parts { first, tokens: first + self.other_scales.elem_count() }
    }
}

/// 8-bit values in order.
fn bits<'a>(storage: &'a Storage, layout: &Layout) -> Result<CudaView<'a, u8>> {
    let Storage::Cuda(storage) = storage else { return Err(elsewhere()) };
    let (CudaStorageSlice::F8E4M3(values), Some((from, to))) = (&storage.slice, layout.contiguous_offsets()) else {
        return Err(Error::msg("8-bit values are e4m3, in order"));
    };
    Ok(fp8::bytes(values).slice(from..to))
}

/// 8-bit values made whole, in order.
pub(super) fn widened(device: &CudaDevice, bits: &Tensor, dtype: DType) -> Result<Tensor> {
    match dtype {
        DType::F32 => widened_to::<f32>(device, bits),
        DType::F16 => widened_to::<f16>(device, bits),
        DType::BF16 => widened_to::<bf16>(device, bits),
        other => Err(not_whole(other)),
    }
}

fn widened_to<T: Element + CudaDType>(device: &CudaDevice, values: &Tensor) -> Result<Tensor> {
    let (storage, layout) = values.storage_and_layout();
    let whole = widen::<T>(&device.cuda_stream(), &bits(&storage, layout)?).map_err(Error::wrap)?;
    Ok(tensor(CudaStorage::wrap_cuda_slice(whole, device.clone()), values.shape().clone()))
}

fn rounded<T: Element + CudaDType>(device: &CudaDevice, input: &Tensor, first: usize) -> Result<Fp8Tokens> {
    let (tokens, width) = input.dims2()?;
    let input = in_order(input)?;
    let (storage, layout) = input.storage_and_layout();
    let parts = Parts { first, tokens };
    let (bits, scales) = round_tokens(&device.cuda_stream(), &view::<T>(&storage, layout)?, parts).map_err(Error::wrap)?;
    let bits = CudaStorage { slice: CudaStorageSlice::F8E4M3(bits), device: device.clone() };
    let scales = tensor(CudaStorage::wrap_cuda_slice(scales, device.clone()), tokens + parts.gap());
    Ok(Fp8Tokens {
        bits: tensor(bits, (tokens, width)),
        first_scales: scales.narrow(0, 0, first)?,
        other_scales: scales.narrow(0, first + parts.gap(), tokens - first)?,
    })
}

/// `product`: (T, out), bf16.
fn finished<T: Element + CudaDType>(
    device: &CudaDevice,
    product: &Tensor,
    tokens: &Fp8Tokens,
    layers: [Fp8Layer<'_>; 2],
    gelu: bool,
) -> Result<Tensor> {
    let [layer, other] = layers;
    let inputs = [layer.scale, layer.bias, other.scale, other.bias].map(in_order).into_iter().collect::<Result<Vec<_>>>()?;
    let lying: Vec<_> = inputs.iter().map(Tensor::storage_and_layout).collect();
    let scales = |place: usize| view::<f32>(&lying[place].0, lying[place].1);
    let bias = |place: usize| view::<T>(&lying[place].0, lying[place].1);
    let parts = tokens.parts();
    // Both parts' scales lie in one piece of memory.
    let (token_scales, at_first) = tokens.first_scales.storage_and_layout();
    let Storage::Cuda(token_scales) = &*token_scales else { return Err(elsewhere()) };
    let from = at_first.start_offset();
    let finish = fp8::Finish {
        token_scales: &token_scales.as_cuda_slice::<f32>()?.slice(from..from + parts.tokens + parts.gap()),
        weights: [
            Dequantization { scales: &scales(0)?, bias: &bias(1)? },
            Dequantization { scales: &scales(2)?, bias: &bias(3)? },
        ],
        parts,
        gelu,
    };
    let (storage, layout) = product.storage_and_layout();
    let output = finish.apply(&device.cuda_stream(), &view::<bf16>(&storage, layout)?).map_err(Error::wrap)?;
    Ok(tensor(CudaStorage::wrap_cuda_slice(output, device.clone()), product.shape().clone()))
}

fn tensor(storage: CudaStorage, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

fn not_whole(dtype: DType) -> Error {
    Error::msg(format!("8-bit values come from f32, f16 and bf16 and become one of them, not {dtype:?}"))
}

fn elsewhere() -> Error {
    Error::msg("8-bit values of a GPU are on that GPU")
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::fp8::{Twin, forward_whole};

    /// Ragged widths, a row of zeros, rows of other sizes, and values at e4m3's own borders.
    fn drawn(tokens: usize, width: usize, dtype: DType) -> Result<Tensor> {
        let sizes: Vec<f32> =
            (0..tokens).map(|token| if token == 1 { 0.0 } else { 10.0_f32.powi(token as i32 % 5 - 3) }).collect();
        let sizes = Tensor::from_vec(sizes, (tokens, 1), &Device::Cpu)?;
        Tensor::randn(0.0_f32, 1.0, (tokens, width), &Device::Cpu)?.broadcast_mul(&sizes)?.to_dtype(dtype)
    }

    #[test]
    fn a_gpu_does_what_its_twin_does() -> Result<()> {
        let device = crate::device::open().map_err(Error::wrap)?;
        let gpu = crate::device::fp8_device(&device, true).expect("a GPU has 8-bit values");
        let twin = Twin { factor: 1.0 };
        let there = |tensor: &Tensor| tensor.to_device(&device);
        let to_f32 = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>();
        let draw = |shape: (usize, usize)| Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (tokens, first, width, rows) in
                [(1, 1, 16, 16), (5, 2, 64, 32), (7, 0, 48, 80), (9, 4, 32, 16), (3, 3, 1040, 272)]
            {
                let input = drawn(tokens, width, dtype)?;
                let ours = gpu.round_tokens(&there(&input)?, first)?;
                let theirs = twin.round_tokens(&input, first)?;
                let what = format!("{dtype:?} {first} of {tokens} {width}");
                assert_eq!(to_f32(&ours.first_scales)?, to_f32(&theirs.first_scales)?, "{what}: scales");
                assert_eq!(to_f32(&ours.other_scales)?, to_f32(&theirs.other_scales)?, "{what}: other scales");
                let whole = crate::device::widened(&ours.bits, DType::F32)?;
                assert_eq!(to_f32(&whole)?, to_f32(&theirs.bits)?, "{what}: values");
                let bits = [draw((rows, width))?.to_dtype(DType::F8E4M3)?, draw((rows, width))?.to_dtype(DType::F8E4M3)?];
                let biases = [draw((1, rows))?.squeeze(0)?.to_dtype(dtype)?, draw((1, rows))?.squeeze(0)?.to_dtype(dtype)?];
                // With a scale for each row, in bf16, all is one operation where the GPU has it.
                for (scales_of_weight, gelu) in [(1, false), (rows, false), (rows, true)] {
                    let scale = || Tensor::rand(0.5_f32, 2.0, scales_of_weight, &Device::Cpu);
                    let scales = [scale()?, scale()?];
                    let layer = |part: usize| Fp8Layer { bits: &bits[part], scale: &scales[part], bias: &biases[part] };
                    let exact = to_f32(&twin.multiply(&theirs, [layer(0), layer(1)], gelu)?)?;
                    let none = Tensor::zeros(rows, dtype, &Device::Cpu)?;
                    let unbiased = [0, 1].map(|part| Fp8Layer { bias: &none, ..layer(part) });
                    let products = to_f32(&twin.multiply(&theirs, unbiased, false)?)?;
                    let moved = [there(&bits[0])?, there(&scales[0])?, there(&biases[0])?];
                    let other = [there(&bits[1])?, there(&scales[1])?, there(&biases[1])?];
                    let layers = [&moved, &other].map(|[bits, scale, bias]| Fp8Layer { bits, scale, bias });
                    let output = to_f32(&gpu.multiply(&ours, layers, gelu)?)?;
                    for (place, (output, exact)) in output.iter().zip(exact).enumerate() {
                        // By bf16's rounding of the product, and of the sum.
                        let bound = 1e-4 + (exact.abs() + products[place].abs()) / 128.0;
                        assert!((output - exact).abs() <= bound, "{what}, gelu {gelu}: {output} is not {exact}");
                    }
                }
            }
        }
        Ok(())
    }

    /// As on a GPU without such products, or with widths that they do not take.
    #[test]
    fn weights_are_made_whole_on_a_gpu_to_what_they_are_on_a_cpu() -> Result<()> {
        let device = crate::device::open().map_err(Error::wrap)?;
        let draw = |shape: (usize, usize)| Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu);
        let input = draw((5, 24))?;
        let bits = draw((7, 24))?.to_dtype(DType::F8E4M3)?;
        let scale = draw((1, 7))?.squeeze(0)?;
        let bias = draw((1, 7))?.squeeze(0)?;
        let exact = forward_whole(&input, &bits, &scale, &bias)?.flatten_all()?.to_vec1::<f32>()?;
        let on = |tensor: &Tensor| tensor.to_device(&device);
        let ours = forward_whole(&on(&input)?, &on(&bits)?, &on(&scale)?, &on(&bias)?)?.flatten_all()?.to_vec1::<f32>()?;
        for (ours, exact) in ours.iter().zip(exact) {
            assert!((ours - exact).abs() <= 1e-5 * (1.0 + exact.abs()), "{ours} is not {exact}");
        }
        Ok(())
    }

    #[test]
    fn every_8_bit_value_is_made_whole_on_a_gpu() -> Result<()> {
        let device = crate::device::open().map_err(Error::wrap)?;
        let values: Vec<f32> =
            (-448..=448).map(|value| value as f32).chain((0..64).map(|value| value as f32 / 512.0)).collect();
        let bits = Tensor::new(values, &Device::Cpu)?.to_dtype(DType::F8E4M3)?;
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let ours =
                crate::device::widened(&bits.to_device(&device)?, dtype)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
            assert_eq!(ours.to_vec1::<f32>()?, bits.to_dtype(DType::F32)?.to_vec1::<f32>()?, "{dtype:?}");
        }
        Ok(())
    }
}
