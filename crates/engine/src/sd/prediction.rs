//! What the UNet predicts in a step, with guidance.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::StableDiffusion;
use super::ahead::STEPS_AHEAD;
use super::conditioning::{Conditioning, Text};
use super::config::ExtraInput;
use super::guidance::{Guidance, guided, guided_edit};
use super::nets::{Active, Nets, NetsAhead};
use super::steering::Steering;
use super::tiling::Tiling;
use super::unet::UnetOutput;
use crate::EngineError;
use crate::device::{keeping_uploads, with_channels_first, with_channels_last};
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
    /// Whether [`Seen::deep`] is asked for.
    keeps_deep: bool,
}

/// What a step's look at the latents gives.
pub(super) struct Seen {
    /// (N, 4, H, W), f32: noise or velocity, as the checkpoint was trained.
    pub(super) output: Tensor,
    /// [`UnetOutput::deep`] of every pass, for the rows of all its predictions one after the other; none where nobody asks for it.
    pub(super) deep: Vec<Tensor>,
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
        let steering = Steering::default();
        let predictor = self.predictor(text, (&[timestep], 0), (guidance.into(), false), (tiling, &steering))?;
        Ok(predictor.predict(latents, 0, None)?.output)
    }

    /// [`Self::predict_noise`] at the timesteps of a schedule, for as many of them as are worked out together, beginning with place `first`; with
    /// `steering`. `keeps_deep`: whether steps give [`Seen::deep`].
    pub(super) fn predictor<'a>(
        &'a self,
        text: &Conditioning,
        (timesteps, first): (&[f64], usize),
        (guidance, keeps_deep): (Guidance, bool),
        (tiling, steering): (Tiling, &'a Steering),
    ) -> Result<Predictor<'a>, EngineError> {
        let unet = &self.adapters.current().unet;
        let beside = (self.controlnets.as_slice(), &self.ip_adapters);
        let nets = Nets::new(unet, self.checkpoint.unet.out_channels, beside, steering);
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
            keeps_deep,
        })
    }
}

impl Predictor<'_> {
    /// Whether it is for so many images, and for the step of place `step`.
    pub(super) fn is_for(&self, images: usize, step: usize) -> bool {
        self.images == images && self.steps.contains(&step)
    }

    /// At the timestep of place `step` in the schedule; `latents`: (N, 4 or more, H, W). `deep`: that of an earlier look, to which only the UNet's
    /// outermost layers are done.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn predict(&self, latents: &Tensor, step: usize, deep: Option<&[Tensor]>) -> Result<Seen, EngineError> {
        let active = self.nets.active(step);
        let step = step - self.steps.start;
        let deep = deep.unwrap_or_default();
        Ok(keeping_uploads(self.device, latents.dims(), || match self.inputs(latents, (step, deep), &active)? {
            Some(inputs) if deep.is_empty() && self.keeps_deep => {
                let kind = self.kind(&active, Depth::Kept);
                let packed = self.graphs.repeat(kind, &inputs, |inputs| self.packed(&self.predict_by(inputs, &active, 0)?))?;
                self.unpacked(&packed, latents)
            }
            Some(inputs) => {
                let kind = self.kind(&active, if deep.is_empty() { Depth::Unasked } else { Depth::Given });
                let output = self.graphs.repeat(kind, &inputs, |inputs| {
                    let seen = self.predict_by(inputs, &active, deep.len())?;
                    Ok(seen.output)
                });
                Ok(Seen { output: output?, deep: deep.to_vec() })
            }
            None => self.combined(latents, &self.factors, |place, latents| {
                self.row_by_row((place, deep.get(place)), latents, step, &active)
            }),
        })?)
    }

    /// All that a step looks at: latents, guidance, what it takes over, and what each pass has worked out. None where a pass keeps nothing of that.
    fn inputs(
        &self,
        latents: &Tensor,
        (step, deep): (usize, &[Tensor]),
        active: &Active,
    ) -> candle_core::Result<Option<Vec<Tensor>>> {
        let mut inputs = vec![latents.clone(), self.factors.clone()];
        inputs.extend(deep.iter().cloned());
        for pass in &self.passes {
            let Pass::Together(ahead) = pass else { return Ok(None) };
            inputs.extend(self.nets.inputs(ahead, step, active)?);
        }
        Ok(Some(inputs))
    }

    /// What a step goes by that is none of its inputs.
    fn kind(&self, active: &Active, depth: Depth) -> Kind {
        let plain = [self.predictions, self.passes.len(), usize::from(self.guidance.rescales()), depth as usize];
        Kind { module: self.module, choices: plain.into_iter().chain(self.nets.modules(active)).collect() }
    }

    /// All tensors of a look as one of f32, which holds every value of f16 and bf16.
    fn packed(&self, seen: &Seen) -> candle_core::Result<Tensor> {
        let (_, _, is_channels_last) = self.nets.of_deep();
        let mut flat = vec![seen.output.to_dtype(DType::F32)?.flatten_all()?];
        for deep in &seen.deep {
            let deep = if is_channels_last { with_channels_last(deep)? } else { deep.clone() };
            flat.push(deep.to_dtype(DType::F32)?.flatten_all()?);
        }
        Tensor::cat(&flat, 0)
    }

    /// What [`Self::packed`] has made one of a look at `latents`.
    fn unpacked(&self, packed: &Tensor, latents: &Tensor) -> candle_core::Result<Seen> {
        let (images, _, height, width) = latents.dims4()?;
        let (channels, dtype, is_channels_last) = self.nets.of_deep();
        let rows = self.predictions / self.passes.len() * images;
        let values = rows * channels * height * width;
        let output_values = packed.elem_count() - values * self.passes.len();
        let deep = (0..self.passes.len()).map(|place| {
            let deep = packed.narrow(0, output_values + place * values, values)?;
            if is_channels_last {
                with_channels_first(&deep.reshape((rows, height, width, channels))?.to_dtype(dtype)?)
            } else {
                deep.reshape((rows, channels, height, width))?.to_dtype(dtype)
            }
        });
        let output = packed.narrow(0, 0, output_values)?.reshape((images, (), height, width))?;
        Ok(Seen { output, deep: deep.collect::<candle_core::Result<_>>()? })
    }

    /// A step of [`Self::inputs`], so many of which are taken over.
    fn predict_by(&self, inputs: &[Tensor], active: &Active, taken: usize) -> candle_core::Result<Seen> {
        let [latents, factors, rest @ ..] = inputs else {
            return Err(candle_core::Error::msg("a step has latents and guidance"));
        };
        let (deep, ahead) = rest.split_at(taken);
        self.combined(latents, factors, |place, latents| {
            let mut before = 0;
            for (pass, of) in self.passes.iter().zip(0..) {
                let Pass::Together(kept) = pass else { break };
                let count = kept.input_count(active);
                if of == place {
                    let inputs = &ahead[before..before + count];
                    return match deep.get(place) {
                        Some(deep) => self.nets.forward_shallow(latents, kept, inputs, deep),
                        None => self.nets.forward(latents, kept, inputs, active),
                    };
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
        pass: impl Fn(usize, &Tensor) -> candle_core::Result<UnetOutput>,
    ) -> candle_core::Result<Seen> {
        let mut seen = vec![latents.clone(); self.predictions];
        if let [_, _, nothing] = &mut *seen {
            *nothing = without_image(latents)?;
        }
        let looks = match &*self.passes {
            [_] => vec![pass(0, &Tensor::cat(&seen, 0)?)?],
            _ => seen.iter().enumerate().map(|(place, seen)| pass(place, seen)).collect::<Result<_, _>>()?,
        };
        let predicted = match &*looks {
            [only] => only.output.chunk(self.predictions, 0)?,
            each => each.iter().map(|look| look.output.clone()).collect(),
        };
        let output = match &*predicted {
            [only] => only.clone(),
            [negative, positive] => guided(negative, positive, factors, self.guidance.rescales())?,
            [negative, positive, nothing] => guided_edit(nothing, negative, positive, factors)?,
            _ => return Err(candle_core::Error::msg("guidance has two predictions, or three")),
        };
        let deep = if self.keeps_deep { looks.into_iter().filter_map(|look| look.deep).collect() } else { Vec::new() };
        Ok(Seen { output, deep })
    }

    /// The UNet's output for every row of the pass at this place, which takes its rows together or each by itself.
    fn row_by_row(
        &self,
        (place, deep): (usize, Option<&Tensor>),
        latents: &Tensor,
        step: usize,
        active: &Active,
    ) -> candle_core::Result<UnetOutput> {
        let look = |latents: &Tensor, ahead: &NetsAhead, step: usize, deep: Option<&Tensor>| {
            let inputs = self.nets.inputs(ahead, step, active)?;
            match deep {
                Some(deep) => self.nets.forward_shallow(latents, ahead, &inputs, deep),
                None => self.nets.forward(latents, ahead, &inputs, active),
            }
        };
        match &self.passes[place] {
            Pass::Together(ahead) => look(latents, ahead, step, deep),
            Pass::OneByOne(text) => {
                let each = (0..latents.dim(0)?).map(|row| {
                    let ahead = self.nets.ahead(&text.row(row)?, &self.timesteps[step..=step], self.guidance.scale)?;
                    let deep = deep.map(|deep| deep.narrow(0, row, 1)).transpose()?;
                    let UnetOutput { output, deep } = look(&latents.narrow(0, row, 1)?, &ahead, 0, deep.as_ref())?;
                    Ok((output, deep))
                });
                let (outputs, deep): (Vec<_>, Vec<_>) = each.collect::<candle_core::Result<Vec<_>>>()?.into_iter().unzip();
                let deep: Option<Vec<Tensor>> = deep.into_iter().filter(|_| self.keeps_deep).collect();
                let deep = deep.filter(|rows| !rows.is_empty()).map(|rows| Tensor::cat(&rows, 0)).transpose()?;
                Ok(UnetOutput { output: Tensor::cat(&outputs, 0)?, deep })
            }
        }
    }
}

/// What a step does about [`UnetOutput::deep`].
#[derive(Clone, Copy)]
enum Depth {
    Unasked,
    Kept,
    Given,
}

/// The input of a UNet that edits, (N, 8, H, W), with zeros for the image.
fn without_image(input: &Tensor) -> candle_core::Result<Tensor> {
    let latents = input.narrow(1, 0, input.dim(1)? / 2)?;
    Tensor::cat(&[&latents, &latents.zeros_like()?], 1)
}
