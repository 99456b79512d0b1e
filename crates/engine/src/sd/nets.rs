//! A UNet, and the ControlNets and IP-Adapters of a request, which work on the same rows as one.

use candle_core::{DType, Error, Result, Tensor};

use super::ahead::Ahead;
use super::conditioning::Text;
use super::control::PlannedControl;
use super::controlnet::ControlNet;
use super::controlnet::files::Loaded;
use super::ip_adapter::IpAdapter;
use super::ip_adapter::files::IpAdapters;
use super::steering::Steering;
use super::unet::{Unet, UnetOutput};
use super::unet_encoder::Residuals;

pub(super) struct Nets<'a> {
    unet: &'a Unet,
    /// Of the latents alone, without what an inpainting UNet has next to them.
    latent_channels: usize,
    controls: Vec<ControlInUse<'a>>,
    prompts: Vec<PromptInUse<'a>>,
}

struct ControlInUse<'a> {
    net: &'a ControlNet,
    module: u64,
    planned: &'a PlannedControl,
}

struct PromptInUse<'a> {
    net: &'a IpAdapter,
    module: u64,
    scale: f64,
}

/// What each works out before the first step, for the rows of a pass.
pub(super) struct NetsAhead {
    unet: Ahead,
    /// In the order of the controls.
    controls: Vec<Ahead>,
}

impl NetsAhead {
    /// How many [`Nets::inputs`] there are where these controls take part.
    pub(super) fn input_count(&self, active: &Active) -> usize {
        let of_controls = active.iter().map(|place| 2 + self.controls[*place].input_count());
        self.unet.input_count() + of_controls.sum::<usize>()
    }
}

/// Which of the controls take part in a step, by their places.
pub(super) type Active = Vec<usize>;

impl<'a> Nets<'a> {
    /// `steering`: places in what is loaded.
    pub(super) fn new(
        unet: &'a Unet,
        latent_channels: usize,
        (controlnets, ip_adapters): (&'a [Loaded], &'a IpAdapters),
        steering: &'a Steering,
    ) -> Self {
        let controls = steering.controls.iter().map(|planned| {
            let Loaded { net, module, .. } = &controlnets[planned.place];
            ControlInUse { net, module: *module, planned }
        });
        let prompts = steering.image_prompts.iter().map(|planned| {
            let loaded = &ip_adapters.loaded[planned.place];
            PromptInUse { net: &loaded.net, module: loaded.module, scale: planned.scale }
        });
        Self { unet, latent_channels, controls: controls.collect(), prompts: prompts.collect() }
    }

    /// Those that take part in the step of place `step` in the schedule.
    pub(super) fn active(&self, step: usize) -> Active {
        let each = self.controls.iter().enumerate();
        each.filter(|(_, control)| control.planned.active.get(step) == Some(&true)).map(|(place, _)| place).collect()
    }

    /// The numbers of the modules of those that take part, and of all IP-Adapters: a step with others is another step.
    pub(super) fn modules(&self, active: &Active) -> impl Iterator<Item = usize> {
        let controls = active.iter().map(|place| self.controls[*place].module as usize);
        controls.chain(self.prompts.iter().map(|prompt| prompt.module as usize))
    }

    /// As [`Unet::ahead`], of all of them.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn ahead(&self, text: &Text, timesteps: &[f64], guidance_scale: f64) -> Result<NetsAhead> {
        if text.images.len() != self.prompts.len() {
            return Err(Error::msg("a text without the tokens of its image prompts"));
        }
        let controls = self.controls.iter().map(|control| control.net.ahead(text, timesteps));
        let prompts = self.prompts.iter().zip(&text.images).map(|(prompt, tokens)| prompt.net.contexts(tokens, prompt.scale));
        let unet = self.unet.ahead(text, timesteps, guidance_scale)?.with(prompts.collect::<Result<_>>()?)?;
        Ok(NetsAhead { unet, controls: controls.collect::<Result<_>>()? })
    }

    /// All that a forward pass looks at besides the latents, at place `step` of the timesteps that were worked out: as many tensors at every step
    /// in which the same controls take part.
    ///
    /// # Errors
    /// When there are not so many timesteps.
    pub(super) fn inputs(&self, ahead: &NetsAhead, step: usize, active: &Active) -> Result<Vec<Tensor>> {
        let mut inputs = ahead.unet.inputs(step)?;
        for place in active {
            let PlannedControl { condition, scale, .. } = self.controls[*place].planned;
            inputs.extend([condition.clone(), scale.clone()]);
            inputs.extend(ahead.controls[*place].inputs(step)?);
        }
        Ok(inputs)
    }

    /// The UNet's look at `latents`, (B, 4 or more, H, W), with the `deep` of an earlier one and its outermost layers alone.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub(super) fn forward_shallow(
        &self,
        latents: &Tensor,
        ahead: &NetsAhead,
        inputs: &[Tensor],
        deep: &Tensor,
    ) -> Result<UnetOutput> {
        let (of_unet, _) = split(inputs, ahead.unet.input_count())?;
        let output = self.unet.forward_shallow(latents, deep, ahead.unet.of(of_unet)?)?;
        Ok(UnetOutput { output, deep: Some(deep.clone()) })
    }

    /// As [`Unet::of_deep`].
    pub(super) fn of_deep(&self) -> (usize, DType, bool) {
        self.unet.of_deep()
    }

    /// The UNet's look at `latents`, (B, 4 or more, H, W); `inputs`: such as [`Self::inputs`] gives.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn forward(
        &self,
        latents: &Tensor,
        ahead: &NetsAhead,
        inputs: &[Tensor],
        active: &Active,
    ) -> Result<UnetOutput> {
        let (of_unet, mut rest) = split(inputs, ahead.unet.input_count())?;
        let mut residuals: Option<Residuals> = None;
        for place in active {
            let (seen, behind) = split(rest, 2)?;
            let (own, behind) = split(behind, ahead.controls[*place].input_count())?;
            rest = behind;
            let at_step = ahead.controls[*place].of(own)?;
            let latents = self.without_extra(latents)?;
            let more = self.controls[*place].net.forward(&latents, &seen[0], &seen[1], at_step)?;
            residuals = Some(match residuals {
                Some(residuals) => residuals.and(more)?,
                None => more,
            });
        }
        self.unet.forward(latents, ahead.unet.of(of_unet)?, residuals)
    }

    fn without_extra(&self, latents: &Tensor) -> Result<Tensor> {
        if latents.dim(1)? == self.latent_channels {
            Ok(latents.clone())
        } else {
            latents.narrow(1, 0, self.latent_channels)?.contiguous()
        }
    }
}

fn split(inputs: &[Tensor], count: usize) -> Result<(&[Tensor], &[Tensor])> {
    inputs.split_at_checked(count).ok_or_else(|| Error::msg("a forward pass without what was worked out for it"))
}
