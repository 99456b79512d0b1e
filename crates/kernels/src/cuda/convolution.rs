//! Convolutions by cuDNN that sum in f32 whatever the tensors are in, with what follows them, kept plans and bounded workspaces.
//!
//! candle-core 0.11.1 has cuDNN sum f16 convolutions in f16, describes each again for every call, and takes whatever workspace is asked for.

use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use cudarc::cudnn::sys::cudnnActivationMode_t::CUDNN_ACTIVATION_IDENTITY;
use cudarc::cudnn::sys::cudnnConvolutionFwdAlgo_t::{
    CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM, CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM,
};
use cudarc::cudnn::sys::cudnnNanPropagation_t::CUDNN_NOT_PROPAGATE_NAN;
use cudarc::cudnn::sys::{cudnnConvolutionFwdAlgo_t, cudnnConvolutionMode_t, cudnnMathType_t, cudnnTensorFormat_t};
use cudarc::cudnn::{
    ActivationDescriptor, ConvBiasActivationForward, ConvDescriptor, ConvForward, Cudnn, CudnnDataType, CudnnError,
    FilterDescriptor, TensorDescriptor,
};
use cudarc::driver::{CudaSlice, CudaStream, CudaView, DevicePtr as _, DriverError};
use half::{bf16, f16};

use super::epilogue::Addition;
use super::modules::Element;

/// The most that a convolution may take beside its tensors.
const MAX_WORKSPACE_BYTES: usize = 256 << 20;

/// The one algorithm behind which cuDNN adds without an activation (its documentation, `cudnnConvolutionBiasActivationForward`).
const FOLLOWED: cudnnConvolutionFwdAlgo_t = CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;

/// Statuses of cuDNN by their thousands: `BAD_PARAM` and `NOT_SUPPORTED`, with the reasons behind them (`cudnn_graph.h`). Nothing was written.
const REFUSALS: [u32; 2] = [2, 3];

/// `INTERNAL_ERROR`, plainly or of a kernel that cuDNN compiles itself: neither the device nor its memory is at fault.
const OWN_FAILURES: [u32; 2] = [4000, 4001];

/// Values that are convolved.
pub trait Convolved: Element + CudnnDataType + Sized + 'static {
    /// For `out = 1 · convolution + 0 · out`.
    const ONE_AND_ZERO: (Self, Self);
    /// Which arithmetic cuDNN may use: tensor cores for halves; for f32 its default, which may be TF32 from Ampere on, as `PyTorch`'s is.
    const MATH: cudnnMathType_t;
}

impl Convolved for f32 {
    const ONE_AND_ZERO: (Self, Self) = (1.0, 0.0);
    const MATH: cudnnMathType_t = cudnnMathType_t::CUDNN_DEFAULT_MATH;
}

impl Convolved for f16 {
    const ONE_AND_ZERO: (Self, Self) = (f16::ONE, f16::ZERO);
    const MATH: cudnnMathType_t = cudnnMathType_t::CUDNN_TENSOR_OP_MATH;
}

impl Convolved for bf16 {
    const ONE_AND_ZERO: (Self, Self) = (bf16::ONE, bf16::ZERO);
    const MATH: cudnnMathType_t = cudnnMathType_t::CUDNN_TENSOR_OP_MATH;
}

/// A convolution of (batch, `in_channels`, height, width) with (`out_channels`, `in_channels`, kernel, kernel).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Convolution {
    pub batch: usize,
    pub in_channels: usize,
    pub height: usize,
    pub width: usize,
    pub out_channels: usize,
    pub kernel: usize,
    pub stride: usize,
    /// Zeros on each side.
    pub padding: usize,
    /// Images, filter and what comes out lie as (batch, height, width, channels) and (`out_channels`, kernel, kernel, `in_channels`): cuDNN does it in 16
    /// bits alone, and for multiples of 8 channels.
    pub channels_last: bool,
}

/// Why cuDNN did not convolve.
#[derive(Debug, thiserror::Error)]
pub enum ConvolutionError {
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error(transparent)]
    Cudnn(#[from] CudnnError),
}

impl ConvolutionError {
    /// Whether cuDNN does not do it so: images in another order may be done.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Cudnn(error) if is_refused(*error) || OWN_FAILURES.contains(&(error.0 as u32)))
    }
}

fn is_refused(CudnnError(status): CudnnError) -> bool {
    REFUSALS.contains(&(status as u32 / 1000))
}

/// What cuDNN is told of a convolution, and what it is to do.
struct Plan<T> {
    images: TensorDescriptor<T>,
    filter: FilterDescriptor<T>,
    convolution: ConvDescriptor<f32>,
    output: TensorDescriptor<T>,
    algorithm: cudnnConvolutionFwdAlgo_t,
    workspace_bytes: usize,
    bias: TensorDescriptor<T>,
    /// None that changes anything.
    activation: ActivationDescriptor<f32>,
    /// Of the convolution with what follows it; `None` where cuDNN takes too much for that, or has refused it.
    following_workspace_bytes: Cell<Option<usize>>,
}

/// A stream by its address, which stays its own: every plan's handle keeps its stream.
type Key = (usize, TypeId, Convolution);

thread_local! {
    /// cuDNN's handles are one thread's; plans are what they are kept with.
    static HANDLES: RefCell<HashMap<usize, Arc<Cudnn>>> = RefCell::default();
    static PLANS: RefCell<HashMap<Key, Box<dyn Any>>> = RefCell::default();
}

impl Convolution {
    /// Height and width of what comes out.
    #[must_use]
    pub fn out_sides(&self) -> (usize, usize) {
        let side = |side: usize| (side + 2 * self.padding - self.kernel) / self.stride + 1;
        (side(self.height), side(self.width))
    }

    /// residual + (bias + convolution), in f32 and rounded once where cuDNN does it all: (batch, `out_channels`, height, width) of
    /// [`Self::out_sides`], or with the channels last. Else our kernel adds them to the rounded convolution.
    ///
    /// # Errors
    /// The driver's or cuDNN's.
    ///
    /// # Panics
    /// When the slices are not as long as the sides say.
    pub fn run<T: Convolved>(
        self,
        stream: &Arc<CudaStream>,
        images: &CudaView<'_, T>,
        weight: &CudaView<'_, T>,
        added: Option<(&CudaView<'_, T>, Option<&CudaView<'_, T>>)>,
    ) -> Result<CudaSlice<T>, ConvolutionError> {
        let (height, width) = self.out_sides();
        let places = height * width;
        assert_eq!(images.len(), self.batch * self.in_channels * self.height * self.width);
        assert_eq!(weight.len(), self.out_channels * self.in_channels * self.kernel * self.kernel);
        // SAFETY: the convolution below writes every value, and with a beta of 0 reads none.
        let mut out = unsafe { stream.alloc::<T>(self.batch * self.out_channels * places)? };
        let key = (Arc::as_ptr(stream) as usize, TypeId::of::<T>(), self);
        PLANS.with_borrow_mut(|plans| {
            let plan = match plans.entry(key) {
                Entry::Occupied(kept) => kept.into_mut(),
                Entry::Vacant(place) => place.insert(Box::new(self.planned::<T>(stream)?)),
            };
            let plan = plan.downcast_ref::<Plan<T>>().expect("a plan of this key has this type");
            if let Some((bias, residual)) = added
                && bias.len() == self.out_channels
            {
                assert!(residual.is_none_or(|residual| residual.len() == out.len()), "a residual for each value");
                if plan.run_following(stream, (images, weight), (bias, residual), &mut out)? {
                    return Ok(out);
                }
            }
            // SAFETY: what a workspace holds is cuDNN's alone.
            let mut workspace = unsafe { stream.alloc::<u8>(plan.workspace_bytes.max(1))? };
            let forward = plan.forward();
            // SAFETY: the tensors are as long as their descriptions say (checked above), and the workspace as long as was asked for.
            unsafe { forward.launch(plan.algorithm, Some(&mut workspace), T::ONE_AND_ZERO, images, weight, &mut out)? };
            if let Some((bias, residual)) = added {
                Addition { bias, residual, places, channels_last: self.channels_last.then_some(self.out_channels) }
                    .add_to(stream, &mut out.slice_mut(..))?;
            }
            Ok(out)
        })
    }

    fn planned<T: Convolved>(&self, stream: &Arc<CudaStream>) -> Result<Plan<T>, ConvolutionError> {
        let cudnn = handle(stream)?;
        let sides = |sides: [usize; 4]| sides.map(|side| side as i32);
        let (height, width) = self.out_sides();
        let order =
            if self.channels_last { cudnnTensorFormat_t::CUDNN_TENSOR_NHWC } else { cudnnTensorFormat_t::CUDNN_TENSOR_NCHW };
        let images = sides([self.batch, self.in_channels, self.height, self.width]);
        let filter = sides([self.out_channels, self.in_channels, self.kernel, self.kernel]);
        let output = sides([self.batch, self.out_channels, height, width]);
        let mode = cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        let mut plan = Plan {
            images: cudnn.create_4d_tensor::<T>(order, images)?,
            filter: cudnn.create_4d_filter::<T>(order, filter)?,
            convolution: cudnn.create_conv2d::<f32>([self.padding as i32; 2], [self.stride as i32; 2], [1, 1], mode)?,
            output: cudnn.create_4d_tensor::<T>(order, output)?,
            algorithm: CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM,
            workspace_bytes: 0,
            // One place of each channel, which lies the same in either order: as frameworks describe it.
            bias: cudnn.create_4d_tensor::<T>(cudnnTensorFormat_t::CUDNN_TENSOR_NCHW, sides([1, self.out_channels, 1, 1]))?,
            activation: cudnn.create_activation(CUDNN_ACTIVATION_IDENTITY, CUDNN_NOT_PROPAGATE_NAN, 0.0)?,
            following_workspace_bytes: Cell::new(None),
        };
        plan.convolution.set_math_type(T::MATH)?;
        // An algorithm that cannot be asked about is none for these sides.
        let bytes = plan.forward().get_workspace_size(FOLLOWED).ok();
        plan.following_workspace_bytes.set(bytes.filter(|bytes| *bytes <= MAX_WORKSPACE_BYTES));
        // The advised one first; the last takes no workspace worth speaking of.
        let advised = plan.forward().pick_algorithm()?;
        let algorithms = [advised, FOLLOWED, CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM];
        for algorithm in algorithms {
            let Ok(bytes) = plan.forward().get_workspace_size(algorithm) else { continue };
            plan.algorithm = algorithm;
            plan.workspace_bytes = bytes;
            if plan.workspace_bytes <= MAX_WORKSPACE_BYTES {
                break;
            }
        }
        Ok(plan)
    }
}

impl<T: Convolved> Plan<T> {
    fn forward(&self) -> ConvForward<'_, T, f32, T> {
        ConvForward { conv: &self.convolution, x: &self.images, w: &self.filter, y: &self.output }
    }

    /// The slices are as long as the plan's sides say. Returns whether cuDNN has it: else nothing was written, and it is not asked again.
    fn run_following(
        &self,
        stream: &Arc<CudaStream>,
        (images, weight): (&CudaView<'_, T>, &CudaView<'_, T>),
        (bias, residual): (&CudaView<'_, T>, Option<&CudaView<'_, T>>),
        out: &mut CudaSlice<T>,
    ) -> Result<bool, ConvolutionError> {
        let Some(workspace_bytes) = self.following_workspace_bytes.get() else { return Ok(false) };
        // SAFETY: what a workspace holds is cuDNN's alone.
        let mut workspace = unsafe { stream.alloc::<u8>(workspace_bytes.max(1))? };
        let forward = ConvBiasActivationForward {
            conv: &self.convolution,
            act: &self.activation,
            x: &self.images,
            w: &self.filter,
            z: &self.output,
            bias: &self.bias,
            y: &self.output,
        };
        // cuDNN wants a residual's address even where it is to be multiplied by 0, and then reads none: the output's, as PyTorch has it.
        let (address, in_use) = out.device_ptr(stream);
        drop(in_use);
        // SAFETY: it is the output's memory, which stays the output's to give back: it is leaked below.
        let same = unsafe { stream.upgrade_device_ptr::<T>(address, out.len()) };
        let (one, zero) = T::ONE_AND_ZERO;
        let factors = if residual.is_some() { (one, T::ONE_AND_ZERO.0) } else { (one, zero) };
        let nothing = same.slice(..);
        let residual = residual.unwrap_or(&nothing);
        // SAFETY: the tensors are as long as their descriptions say, and the workspace as long as was asked for.
        let launched = unsafe { forward.launch(FOLLOWED, Some(&mut workspace), factors, images, weight, residual, bias, out) };
        same.leak();
        match launched {
            Ok(()) => Ok(true),
            Err(error) if is_refused(error) => {
                self.following_workspace_bytes.set(None);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn handle(stream: &Arc<CudaStream>) -> Result<Arc<Cudnn>, CudnnError> {
    HANDLES.with_borrow_mut(|handles| {
        let key = Arc::as_ptr(stream) as usize;
        if let Some(cudnn) = handles.get(&key) {
            return Ok(Arc::clone(cudnn));
        }
        let cudnn = Cudnn::new(Arc::clone(stream))?;
        handles.insert(key, Arc::clone(&cudnn));
        Ok(cudnn)
    })
}
