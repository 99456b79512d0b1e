//! The image prompts of a request: what its images are to the UNet, through the IP-Adapters that it names.

use candle_core::Tensor;
use image::{Rgb, RgbImage};

use super::StableDiffusion;
use super::conditioning::{Conditioning, Text};
use super::guidance::Guidance;
use super::ip_adapter::files::Loaded;
use super::steering::{PlannedPrompt, Steering};
use super::tiling::Tiling;
use crate::EngineError;
use crate::steering::ImagePrompt;

/// Of what warms up; whatever it is, an image encoder sees it in its own size.
const GREY_SIDE_PX: u32 = 64;
const FIELD: &str = "ip_adapters";

impl StableDiffusion {
    /// The IP-Adapters that `prompts` put to work; those that change nothing are left out.
    ///
    /// # Errors
    /// [`EngineError::Request`] when there is no such IP-Adapter, or it gets no image.
    pub(super) fn planned_prompts(&self, prompts: &[ImagePrompt]) -> Result<Vec<PlannedPrompt>, EngineError> {
        let each = prompts.iter().map(|prompt| self.planned_prompt(prompt));
        let planned = each.collect::<Result<Vec<_>, _>>()?;
        Ok(planned.into_iter().zip(prompts).filter(|(_, prompt)| prompt.is_at_work()).map(|(planned, _)| planned).collect())
    }

    fn planned_prompt(&self, prompt: &ImagePrompt) -> Result<PlannedPrompt, EngineError> {
        let refused = |problem: String| Err(EngineError::Request { field: FIELD, problem });
        let Some(place) = self.ip_adapters.loaded.iter().position(|loaded| loaded.name == prompt.adapter) else {
            let names: Vec<&str> = self.ip_adapters.loaded.iter().map(|loaded| loaded.name.as_str()).collect();
            let known = if names.is_empty() { "it has none".to_owned() } else { format!("it has {}", names.join(", ")) };
            return refused(format!("this model has no IP-Adapter {:?}; {known}", prompt.adapter));
        };
        if prompt.images.iter().any(|image| image.width() == 0 || image.height() == 0) || prompt.images.is_empty() {
            return refused(format!("the IP-Adapter {} needs an image or more, each with pixels", prompt.adapter));
        }
        Ok(PlannedPrompt { place, scale: prompt.scale })
    }

    /// Each IP-Adapter with a grey image.
    pub(super) fn each_prompt_once(&self) -> Vec<ImagePrompt> {
        let grey = RgbImage::from_pixel(GREY_SIDE_PX, GREY_SIDE_PX, Rgb([128; 3]));
        let each = self.ip_adapters.loaded.iter();
        each.map(|loaded| ImagePrompt { adapter: loaded.name.clone(), images: vec![grey.clone()], scale: 1.0 }).collect()
    }

    /// Tokens that these add to each text.
    pub(super) fn image_token_count(&self, prompts: &[ImagePrompt], planned: &[PlannedPrompt]) -> usize {
        let at_work = prompts.iter().filter(|prompt| prompt.is_at_work());
        at_work.zip(planned).map(|(prompt, planned)| prompt.images.len() * self.prompted(planned).net.tokens_of_image()).sum()
    }

    /// `text` with what the IP-Adapters make of the images of `prompts`, and of none where there is guidance.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn with_images(
        &self,
        mut text: Conditioning,
        prompts: &[ImagePrompt],
        planned: &[PlannedPrompt],
    ) -> Result<Conditioning, EngineError> {
        for (prompt, planned) in prompts.iter().filter(|prompt| prompt.is_at_work()).zip(planned) {
            let [negative, positive] = self.tokens(prompt, planned, text.negative.is_some())?;
            add(&mut text.positive, positive)?;
            if let Some(text) = &mut text.negative {
                add(text, negative)?;
            }
        }
        Ok(text)
    }

    /// What an IP-Adapter makes of nothing and of the prompt's images, each (1, images·tokens, text channels), f32; nothing is zeros where nobody
    /// `needs_nothing`. It is what diffusers has in its place: an embedding of zeros, or, for a resampler, the states of an image of zeros.
    fn tokens(&self, prompt: &ImagePrompt, planned: &PlannedPrompt, needs_nothing: bool) -> Result<[Tensor; 2], EngineError> {
        let Loaded { net, encoder, .. } = self.prompted(planned);
        let encoder = &self.ip_adapters.encoders[*encoder];
        let seen = self.seen(prompt, planned)?;
        let positive = net.tokens(&seen)?;
        let negative = match needs_nothing {
            false => positive.zeros_like()?,
            true if net.takes_states() => net.tokens(&encoder.states_of_nothing(prompt.images.len())?)?,
            true => net.tokens(&seen.zeros_like()?)?,
        };
        Ok([negative, positive])
    }

    fn seen(&self, prompt: &ImagePrompt, planned: &PlannedPrompt) -> candle_core::Result<Tensor> {
        let Loaded { net, encoder, .. } = self.prompted(planned);
        let encoder = &self.ip_adapters.encoders[*encoder];
        if net.takes_states() { encoder.states(&prompt.images) } else { encoder.embeddings(&prompt.images) }
    }

    fn prompted(&self, planned: &PlannedPrompt) -> &Loaded {
        &self.ip_adapters.loaded[planned.place]
    }

    /// What one prompt's image encoder sees, (images, embedding) or all states but the last layer's, (images, places, hidden); and the tokens of
    /// nothing and of the images, each (1, images·tokens, text channels), f32.
    ///
    /// # Errors
    /// As [`Engine::generate`](crate::Engine::generate).
    pub fn image_tokens(&self, prompt: &ImagePrompt) -> Result<[Tensor; 3], EngineError> {
        let planned = self.planned_prompt(prompt)?;
        let [negative, positive] = self.tokens(prompt, &planned, true)?;
        Ok([self.seen(prompt, &planned)?, negative, positive])
    }

    /// As [`Self::predict_noise`], with image prompts beside the texts.
    ///
    /// # Errors
    /// As [`Engine::generate`](crate::Engine::generate).
    pub fn predict_noise_with_images(
        &self,
        latents: &Tensor,
        timestep: f64,
        text: &Conditioning,
        guidance: impl Into<Guidance>,
        prompts: &[ImagePrompt],
    ) -> Result<Tensor, EngineError> {
        let planned = self.planned_prompts(prompts)?;
        let text = self.with_images(text.clone(), prompts, &planned)?;
        let steering = Steering { controls: Vec::new(), image_prompts: planned };
        let predictor = self.predictor(&text, (&[timestep], 0), (guidance.into(), false), (Tiling::default(), &steering))?;
        Ok(predictor.predict(latents, 0, None)?.output)
    }
}

/// `tokens`: (1, T, channels), the same for all rows of `text`.
fn add(text: &mut Text, tokens: Tensor) -> Result<(), EngineError> {
    let rows = text.states.dim(0)?;
    text.images.push(if rows == 1 { tokens } else { tokens.repeat((rows, 1, 1))? });
    Ok(())
}
