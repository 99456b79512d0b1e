//! The tensors of one module in an adapter file, put together into the changes they stand for.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::LoraError;
use super::alphas::{Alphas, Module};
use super::delta::{Delta, Factor, LowRank};
use super::dora::Direction;
use super::keys::{Part, Side};
use crate::original_layers::RowSlice;
use crate::weights::Shapes;

/// What an adapter does to one base tensor.
pub(super) struct Change {
    /// Name of the base tensor.
    pub(super) target: String,
    pub(super) delta: Delta,
    /// What the delta is multiplied by, besides the job's scale: alpha/rank.
    pub(super) scaling: f64,
    /// `DoRA`: the change turns the weight, and its lengths are learnt apart.
    pub(super) direction: Option<Direction>,
}

impl Change {
    /// The same of a layer that is several here: `slices` with `weight` or `bias`, what the target's name ends with.
    ///
    /// # Errors
    /// When it turns the weight (`DoRA`): lengths of a whole say nothing of its parts.
    pub(super) fn in_slices(
        self,
        module: &str,
        (slices, kind): (&[RowSlice], &str),
        shapes: &Shapes,
    ) -> Result<Vec<Self>, LoraError> {
        let Self { target, delta, scaling, direction } = self;
        if direction.is_some() {
            let problem = "is DoRA of a layer that this model has in parts, which is not supported; adapt the parts".to_owned();
            return Err(LoraError::Contradiction { module: module.to_owned(), problem });
        }
        let shape = shapes.get(&target).cloned().unwrap_or_default();
        let delta = Arc::new(delta);
        let changes = slices.iter().map(|slice| {
            let target = format!("{}.{kind}", slice.module);
            Ok(Self { target, delta: delta.rows(&slice.rows, &shape)?, scaling, direction: None })
        });
        changes.collect()
    }

    pub(super) fn bytes(&self) -> usize {
        self.delta.tensors().iter().map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum()
    }
}

pub(super) struct Parts {
    /// The module's name in the file.
    module: String,
    /// The file's own, as a tensor.
    alpha: Option<f64>,
    tensors: BTreeMap<Part, Tensor>,
}

impl Parts {
    pub(super) fn new(module: &str, alpha: Option<f64>, tensors: BTreeMap<Part, Tensor>) -> Self {
        Self { module: module.to_owned(), alpha, tensors }
    }

    /// The changes of the weight `target` and of its bias, checked against the tensors there are.
    pub(super) fn changes(mut self, target: &str, shapes: &Shapes, alphas: &Alphas) -> Result<Vec<Change>, LoraError> {
        let mut changes = Vec::with_capacity(2);
        if let Some(bias) = self.take(Part::DiffBias) {
            changes.push(self.of_bias(bias, target, shapes, 1.0)?);
            if self.tensors.is_empty() {
                return Ok(changes);
            }
        }
        let bias = self.take(Part::UpBias);
        let scale = self.take(Part::DoraScale);
        let magnitude = self.take(Part::Magnitude);
        let delta = self.delta()?;
        if !self.tensors.is_empty() {
            return Err(self.incomplete("matrices of one kind alone"));
        }
        let has_lengths = scale.is_some() || magnitude.is_some();
        let module = Module { name: &self.module, target, delta: &delta, alpha: self.alpha, has_lengths };
        let scaling = alphas.scaling(&module)?;
        if let Some(bias) = bias {
            if has_lengths {
                return Err(self.mixed("a bias (lora_B.bias)", "lengths of DoRA"));
            }
            changes.push(self.of_bias(bias, target, shapes, scaling)?);
        }
        let shape = shapes.get(target).cloned().unwrap_or_default();
        let direction = match (scale, magnitude) {
            (None, None) => None,
            (Some(scale), None) => Some(Direction::lycoris(scale, &shape)),
            (None, Some(magnitude)) => Some(Direction::peft(magnitude, &shape)),
            (Some(_), Some(_)) => return Err(self.mixed("dora_scale", "lora_magnitude_vector")),
        };
        let direction = match direction {
            None => None,
            Some(Ok(direction)) => Some(direction),
            Some(Err(found)) => return Err(self.other_shape(format!("its lengths with {found:?}"), shape)),
        };
        changes.push(self.checked(Change { target: target.to_owned(), delta, scaling, direction }, &shape)?);
        Ok(changes)
    }

    /// The change of the bias next to the weight `target`.
    fn of_bias(&self, bias: Tensor, target: &str, shapes: &Shapes, scaling: f64) -> Result<Change, LoraError> {
        let target = target.replace(".weight", ".bias");
        let shape = self.expected(&target, shapes, &bias)?;
        self.checked(Change { target, delta: Delta::Full(bias), scaling, direction: None }, &shape)
    }

    fn take(&mut self, part: Part) -> Option<Tensor> {
        self.tensors.remove(&part)
    }

    /// What the matrices make up.
    fn delta(&mut self) -> Result<Delta, LoraError> {
        let has = |part: Part| self.tensors.contains_key(&part);
        if has(Part::HadaA(Side::First)) || has(Part::HadaB(Side::First)) || has(Part::HadaA(Side::Second)) {
            let product = |parts: &mut Self, side| {
                let core = parts.take(Part::HadaCore(side));
                let a = parts.take(Part::HadaA(side)).ok_or_else(|| parts.incomplete("hada_w1_a or hada_w2_a"))?;
                let b = parts.take(Part::HadaB(side)).ok_or_else(|| parts.incomplete("hada_w1_b or hada_w2_b"))?;
                Ok::<_, LoraError>(LowRank { a, b, core })
            };
            return Ok(Delta::Hadamard(product(self, Side::First)?, product(self, Side::Second)?));
        }
        if self.tensors.keys().any(|part| matches!(part, Part::Kron(_) | Part::KronA(_) | Part::KronB(_))) {
            return Ok(Delta::Kronecker(self.factor(Side::First)?, self.factor(Side::Second)?));
        }
        if let Some(change) = self.take(Part::Diff) {
            return Ok(Delta::Full(change));
        }
        let mid = self.take(Part::Mid);
        let down = self.take(Part::Down).ok_or_else(|| self.incomplete("down (A) matrix"))?;
        let up = self.take(Part::Up).ok_or_else(|| self.incomplete("up (B) matrix"))?;
        Ok(Delta::LowRank { down, up, mid })
    }

    fn factor(&mut self, side: Side) -> Result<Factor, LoraError> {
        if let Some(whole) = self.take(Part::Kron(side)) {
            return Ok(Factor::Whole(whole));
        }
        let core = self.take(Part::KronCore(side));
        let a = self.take(Part::KronA(side)).ok_or_else(|| self.incomplete("lokr_w1 or lokr_w2, nor its first matrix"))?;
        let b = self.take(Part::KronB(side)).ok_or_else(|| self.incomplete("second matrix of lokr_w1 or lokr_w2"))?;
        Ok(Factor::LowRank(LowRank { a, b, core }))
    }

    fn checked(&self, change: Change, shape: &[usize]) -> Result<Change, LoraError> {
        if change.delta.fits(shape) {
            return Ok(change);
        }
        let found = match &change.delta {
            Delta::LowRank { down, up, mid: None } => format!("{:?} by {:?}", up.dims(), down.dims()),
            Delta::LowRank { down, up, mid: Some(mid) } => {
                format!("{:?} by {:?} by {:?}", up.dims(), mid.dims(), down.dims())
            }
            Delta::Full(change) => format!("{:?}", change.dims()),
            Delta::Hadamard(..) | Delta::Kronecker(..) | Delta::Rows { .. } => "another shape".to_owned(),
        };
        Err(self.other_shape(found, shape.to_vec()))
    }

    fn expected(&self, target: &str, shapes: &Shapes, found: &Tensor) -> Result<Vec<usize>, LoraError> {
        shapes.get(target).cloned().ok_or_else(|| self.other_shape(format!("a bias of {:?}", found.dims()), Vec::new()))
    }

    fn other_shape(&self, found: String, expected: Vec<usize>) -> LoraError {
        LoraError::Shape { module: self.module.clone(), found, expected }
    }

    fn incomplete(&self, missing: &'static str) -> LoraError {
        LoraError::Incomplete { module: self.module.clone(), missing }
    }

    fn mixed(&self, first: &'static str, second: &'static str) -> LoraError {
        LoraError::Mixed { module: self.module.clone(), first, second }
    }
}
