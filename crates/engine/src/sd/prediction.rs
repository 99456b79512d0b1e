//! What the UNet predicts in a step, with guidance.

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::StableDiffusion;
use super::ahead::STEPS_AHEAD;
use super::conditioning::{Conditioning, Text};
use super::config::ExtraInput;
use super::control::PlannedControl;
use super::guidance::{Guidance, guided, guided_edit};
use super::nets::{Active, Nets, NetsAhead};
use super::tiling::Tiling;
use crate::EngineError;
use crate::device::keeping_uploads;
use crate::graphs::{Graphs, Kind};

/// Predictions for one batch at some timesteps; what they have in common is worked out once.
pub(super) struct Predictor<'a> {
    nets: Nets<'a>,
    device: &'a Device,
    graphs: &'a Graphs,
    /// Of the UNet's tensors.
    module: u64,
    /// The places of `timesteps` among those of the schedule.
    steps: Range<usize>,
    timesteps: Vec<f64>,
    images: usize,
    guidance: Guidance,
    /// What the guidance is on the device.
    factors: Tensor,
    /// How many predictions a step's one is made of.
    predictions: usize,
    /// One for all predictions together, or one for each.
    passes: Vec<Pass>,
}

/// Texts of one forward pass of the UNet.
enum Pass {
    Together(NetsAhead),
    /// Where memory is short a row at a time, and nothing of it is kept.
    OneByOne(Text),
}

impl StableDiffusion {
    /// One forward pass of the UNet at `latents` (N, 4, H, W), f32, already scaled for it, with guidance.
    ///
    /// `text`: a row an image. With negative prompts both are predicted, as one batch where they are of one length, and the result is
    /// `negative + guidance_scale·(positive − negative)` (Ho and Salimans 2022). A model that edits an image (`latents`: N, 8, H, W) predicts once
    /// more, without it. A model that was distilled over the scale (LCM) gets it as an input of its one forward pass. Returns (N, 4, H, W): noise or velocity, as the checkpoint was trained.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub fn predict_noise(
        &self,
        latents: &Tensor,
        timestep: f64,
        text: &Conditioning,
        guidance: impl Into<Guidance>,
        tiling: Tiling,
    ) -> Result<Tensor, EngineError> {
        self.predictor(text, (&[timestep], 0), guidance.into(), (tiling, &[]))?.predict(latents, 0)
    }

    /// [`Self::predict_noise`] at the timesteps of a schedule, for as many of them as are worked out together, beginning with place `first`; with
    /// `controls`.
    pub(super) fn predictor<'a>(
        &'a self,
        text: &Conditioning,
        (timesteps, first): (&[f64], usize),
        guidance: Guidance,
        (tiling, controls): (Tiling, &'a [PlannedControl]),
    ) -> Result<Predictor<'a>, EngineError> {
        let unet = &self.adapters.current().unet;
        let nets = Nets::new(unet, self.checkpoint.unet.out_channels, (&self.controlnets, controls));
        let steps = first..timesteps.len().min(first + STEPS_AHEAD);
        let timesteps = timesteps[steps.clone()].to_vec();
        let images = text.positive.states.dim(0)?;
        let edits = self.checkpoint.unet.extra_input() == ExtraInput::Image;
        let mut texts: Vec<&Text> = text.negative.iter().chain([&text.positive]).collect();
        texts.extend(text.negative.as_ref().filter(|_| edits));
        let predictions = texts.len();
        let texts = if text.is_of_one_length()? { vec![Text::cat(&texts)?] } else { texts.into_iter().cloned().collect() };
        let passes = texts.into_iter().map(|text| {
            let together = !tiling.one_by_one || text.states.dim(0)? == 1;
            Ok(if together { Pass::Together(nets.ahead(&text, &timesteps, guidance.scale)?) } else { Pass::OneByOne(text) })
        });
        let passes = passes.collect::<candle_core::Result<_>>()?;
        Ok(Predictor {
            nets,
            device: &self.device,
            graphs: &self.graphs,
            module: self.adapters.module(),
            steps,
            timesteps,
            images,
            guidance,
            factors: guidance.factors(&self.device)?,
            predictions,
            passes,
        })
    }
}

impl Predictor<'_> {
    /// Whether it is for so many images, and for the step of place `step`.
    pub(super) fn is_for(&self, images: usize, step: usize) -> bool {
        self.images == images && self.steps.contains(&step)
    }

    /// At the timestep of place `step` in the schedule; `latents`: (N, 4 or more, H, W). Returns (N, 4, H, W).
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn predict(&self, latents: &Tensor, step: usize) -> Result<Tensor, EngineError> {
        let active = self.nets.active(step);
        let step = step - self.steps.start;
        Ok(keeping_uploads(self.device, latents.dims(), || match self.inputs(latents, step, &active)? {
            Some(inputs) => self.graphs.repeat(self.kind(&active), &inputs, |inputs| self.predict_by(inputs, &active)),
            None => self.combined(latents, &self.factors, |place, latents| self.row_by_row(place, latents, step, &active)),
        })?)
    }

    /// All that a step looks at: latents, guidance, and what each pass has worked out. None where a pass keeps nothing of that.
    fn inputs(&self, latents: &Tensor, step: usize, active: &Active) -> candle_core::Result<Option<Vec<Tensor>>> {
        let mut inputs = vec![latents.clone(), self.factors.clone()];
        for pass in &self.passes {
            let Pass::Together(ahead) = pass else { return Ok(None) };
            inputs.extend(self.nets.inputs(ahead, step, active)?);
        }
        Ok(Some(inputs))
    }

    /// What a step goes by that is none of its inputs.
    fn kind(&self, active: &Active) -> Kind {
        let plain = [self.predictions, self.passes.len(), usize::from(self.guidance.rescales())];
        Kind { module: self.module, choices: plain.into_iter().chain(self.nets.modules(active)).collect() }
    }

    /// A step of [`Self::inputs`].
    fn predict_by(&self, inputs: &[Tensor], active: &Active) -> candle_core::Result<Tensor> {
        let [latents, factors, ahead @ ..] = inputs else {
            return Err(candle_core::Error::msg("a step has latents and guidance"));
        };
        self.combined(latents, factors, |place, latents| {
            let mut before = 0;
            for (pass, of) in self.passes.iter().zip(0..) {
                let Pass::Together(kept) = pass else { break };
                let count = kept.input_count(active);
                if of == place {
                    return self.nets.forward(latents, kept, &ahead[before..before + count], active);
                }
                before += count;
            }
            Err(candle_core::Error::msg("a pass without what was worked out for it"))
        })
    }

    /// The one prediction that a step takes. `pass`: what the UNet makes of latents for every row of the pass at this place.
    fn combined(
        &self,
        latents: &Tensor,
        factors: &Tensor,
        pass: impl Fn(usize, &Tensor) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        let mut seen = vec![latents.clone(); self.predictions];
        if let [_, _, nothing] = &mut *seen {
            *nothing = without_image(latents)?;
        }
        let predicted = match &*self.passes {
            [_] => pass(0, &Tensor::cat(&seen, 0)?)?.chunk(self.predictions, 0)?,
            _ => seen.iter().enumerate().map(|(place, seen)| pass(place, seen)).collect::<Result<_, _>>()?,
        };
        match &*predicted {
            [only] => Ok(only.clone()),
            [negative, positive] => guided(negative, positive, factors, self.guidance.rescales()),
            [negative, positive, nothing] => guided_edit(nothing, negative, positive, factors),
            _ => Err(candle_core::Error::msg("guidance has two predictions, or three")),
        }
    }

    /// The UNet's output for every row of the pass at this place, which takes its rows together or each by itself.
    fn row_by_row(&self, place: usize, latents: &Tensor, step: usize, active: &Active) -> candle_core::Result<Tensor> {
        match &self.passes[place] {
            Pass::Together(ahead) => self.nets.forward(latents, ahead, &self.nets.inputs(ahead, step, active)?, active),
            Pass::OneByOne(text) => {
                let each = (0..latents.dim(0)?).map(|row| {
                    let ahead = self.nets.ahead(&text.row(row)?, &self.timesteps[step..=step], self.guidance.scale)?;
                    self.nets.forward(&latents.narrow(0, row, 1)?, &ahead, &self.nets.inputs(&ahead, 0, active)?, active)
                });
                Tensor::cat(&each.collect::<candle_core::Result<Vec<_>>>()?, 0)
            }
        }
    }
}

/// The input of a UNet that edits, (N, 8, H, W), with zeros for the image.
fn without_image(input: &Tensor) -> candle_core::Result<Tensor> {
    let latents = input.narrow(1, 0, input.dim(1)? / 2)?;
    Tensor::cat(&[&latents, &latents.zeros_like()?], 1)
}
