//! NaN and infinity traced to the stage that they come from; runs on a failure alone.

use candle_core::Tensor;

use super::QwenImage;
use super::pipeline::Edit;
use super::references::Reference;
use crate::EngineError;
use crate::finite::is_finite;

impl QwenImage {
    /// The error of an image that is not finite: the first stage that gave NaN or infinity, and what to do. `tokens`: what the image
    /// was decoded from, (1, T, 4·channels).
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn not_finite(
        &self,
        edit: &Edit,
        references: &[Reference],
        tokens: &Tensor,
    ) -> Result<EngineError, EngineError> {
        let model = self.checkpoint.directory.file_name().unwrap_or_default().to_string_lossy();
        let compute = self.precision.compute.as_str();
        let texts = std::iter::once(&edit.positive).chain(&edit.negative);
        // The order in which they run: what comes later only passes it on.
        let (stage, advice) = if !all_finite(texts)? {
            ("text encoder", format!("it computes in {compute}; download the model again, or convert text_encoder/ again"))
        } else if !all_finite(references.iter().map(|reference| &reference.tokens))? {
            ("VAE's encoder", "it computes in f32; download the model again, or convert vae/ again".to_owned())
        } else if !is_finite(tokens)? {
            let advice =
                format!("it is {} and computes in {compute}; download these files again, or use smaller scales", self.sources);
            ("transformer", advice)
        } else {
            ("VAE's decoder", "it computes in f32; download the model again, or convert vae/ again".to_owned())
        };
        let problem = format!("the {stage} of model {model} gave NaN or infinity; {advice}");
        Ok(EngineError::NotFinite { problem })
    }
}

fn all_finite<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<bool, EngineError> {
    for tensor in tensors {
        if !is_finite(tensor)? {
            return Ok(false);
        }
    }
    Ok(true)
}
