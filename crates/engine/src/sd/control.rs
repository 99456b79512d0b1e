//! The ControlNets of a request: what each looks at, how strongly, and in which steps.

use candle_core::{DType, Tensor};
use image::{Rgb, RgbImage};

use super::StableDiffusion;
use super::conditioning::Conditioning;
use super::config::ExtraInput;
use super::controlnet::files::Loaded;
use crate::EngineError;
use crate::pixels::to_unit_pixels;
use crate::steering::Control;

const FIELD: &str = "controlnets";

/// A ControlNet at work for one request.
pub(super) struct PlannedControl {
    /// Its place among the model's.
    pub(super) place: usize,
    /// (1, channels, H/8, W/8), in the format of the net's tensors.
    pub(super) condition: Tensor,
    /// (1,), f32.
    pub(super) scale: Tensor,
    /// Of each step of the schedule, whether it takes part.
    pub(super) active: Vec<bool>,
}

impl StableDiffusion {
    /// What the controls of a request are in its `steps`; those that change nothing are left out. `size`: (width, height) of its images.
    ///
    /// # Errors
    /// [`EngineError::Request`] when there is no such ControlNet, or its image has another size; [`EngineError::NotFinite`] when it makes none of it.
    pub(super) fn controls(
        &self,
        controls: &[Control],
        size: (u32, u32),
        steps: usize,
    ) -> Result<Vec<PlannedControl>, EngineError> {
        let refused = |problem: String| Err(EngineError::Request { field: FIELD, problem });
        if !controls.is_empty() && self.checkpoint.unet.extra_input() == ExtraInput::Image {
            return refused("cannot be used with a model that edits images (instruct-pix2pix): leave them out".into());
        }
        let mut planned = Vec::new();
        for control in controls {
            let Some(place) = self.controlnets.iter().position(|loaded| loaded.name == control.net) else {
                let names: Vec<&str> = self.controlnets.iter().map(|loaded| loaded.name.as_str()).collect();
                let known = if names.is_empty() { "it has none".to_owned() } else { format!("it has {}", names.join(", ")) };
                return refused(format!("this model has no ControlNet {:?}; {known}", control.net));
            };
            if control.image.dimensions() != size {
                let (width, height) = control.image.dimensions();
                return refused(format!("an image must have the size of the job, {}x{}, got {width}x{height}", size.0, size.1));
            }
            let active = active(control, steps);
            if control.scale != 0.0 && active.contains(&true) {
                let condition = self.condition(&self.controlnets[place], &control.image)?;
                let scale = Tensor::from_slice(&[control.scale as f32], 1, &self.device)?;
                planned.push(PlannedControl { place, condition, scale, active });
            }
        }
        Ok(planned)
    }

    /// Every ControlNet with a grey image, each in a step of its own behind the first of `steps`.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn each_control_once(
        &self,
        (width, height): (u32, u32),
        steps: usize,
    ) -> Result<Vec<PlannedControl>, EngineError> {
        let image = RgbImage::from_pixel(width, height, Rgb([128; 3]));
        let each = self.controlnets.iter().enumerate().map(|(place, loaded)| {
            Ok(PlannedControl {
                place,
                condition: self.condition(loaded, &image)?,
                scale: Tensor::ones(1, DType::F32, &self.device)?,
                active: (0..steps).map(|step| step == place + 1).collect(),
            })
        });
        each.collect()
    }

    /// Numbers that these controls work out before the first step, for a token and for a timestep; none where there are no controls.
    pub(super) fn controls_ahead(&self, controls: &[PlannedControl]) -> Option<(usize, usize)> {
        let each = controls.iter().map(|control| self.controlnets[control.place].net.channels_ahead());
        each.reduce(|one, another| (one.0 + another.0, one.1 + another.1))
    }

    /// What one control adds to the UNet's way down for `latents`, (N, 4, H, W), f32, already scaled for it, and to its middle, which is last.
    /// `text`: a row an image, without guidance.
    ///
    /// # Errors
    /// As [`Engine::generate`](crate::Engine::generate); when the shapes do not fit, or there is no memory.
    pub fn control_residuals(
        &self,
        control: &Control,
        latents: &Tensor,
        timestep: f64,
        text: &Conditioning,
    ) -> Result<Vec<Tensor>, EngineError> {
        let size = control.image.dimensions();
        let mut residuals = Vec::new();
        for PlannedControl { place, condition, scale, .. } in self.controls(std::slice::from_ref(control), size, 1)? {
            let net = &self.controlnets[place].net;
            let ahead = net.ahead(&text.positive, &[timestep])?;
            let inputs = ahead.inputs(0)?;
            residuals.extend(net.forward(latents, &condition, &scale, ahead.of(&inputs)?)?.into_tensors());
        }
        Ok(residuals)
    }

    fn condition(&self, loaded: &Loaded, image: &RgbImage) -> Result<Tensor, EngineError> {
        let mut rgb = image.as_raw().clone();
        if loaded.is_bgr {
            rgb.chunks_exact_mut(3).for_each(|pixel| pixel.swap(0, 2));
        }
        let pixels = to_unit_pixels(&rgb, image.width() as usize, image.height() as usize, &self.device)?;
        Ok(loaded.net.condition(&pixels)?)
    }
}

/// In which of so many steps a control takes part: `controlnet_keep` of diffusers' pipelines.
fn active(control: &Control, steps: usize) -> Vec<bool> {
    let count = steps as f64;
    (0..steps).map(|step| step as f64 / count >= control.start && (step + 1) as f64 / count <= control.end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1.0 - float(i / n < start or (i + 1) / n > end), as Python has it.
    #[test]
    fn a_control_takes_part_in_the_steps_that_lie_within_its_window() {
        for (start, end, steps, expected) in [
            (0.0, 1.0, 4, "1111"),
            (0.0, 0.5, 4, "1100"),
            (0.5, 1.0, 4, "0011"),
            (0.5, 1.0, 5, "00011"),
            (0.0, 0.5, 5, "11000"),
            (0.2, 0.8, 10, "0011111100"),
            (0.41, 0.59, 5, "00000"),
            (0.1, 0.3, 10, "0110000000"),
            (0.0, 0.7, 10, "1111111000"),
            (0.0, 1.0, 1, "1"),
            (0.0, 0.99, 1, "0"),
        ] {
            let control = Control { net: String::new(), image: RgbImage::new(1, 1), scale: 1.0, start, end };
            let kept: String = active(&control, steps).into_iter().map(|active| if active { '1' } else { '0' }).collect();
            assert_eq!(kept, expected, "{start}..{end} of {steps}");
        }
    }
}
