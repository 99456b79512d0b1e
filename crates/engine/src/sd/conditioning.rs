//! What the UNet attends to: the text of every image and, where there is guidance, its negative text.

use candle_core::{Result, Tensor};

/// States of texts, f32. The two may differ in length: each is looked at in its own, as in AUTOMATIC1111, whose option `pad_cond_uncond` is off
/// (`modules/shared_options.py`).
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// (N, tokens, hidden); none without guidance.
    pub negative: Option<Tensor>,
    /// (N, tokens, hidden), a row an image.
    pub positive: Tensor,
}

impl Conditioning {
    /// `rows`: (N, tokens, hidden), or (2N, tokens, hidden) with all negative texts first.
    ///
    /// # Errors
    /// When there are neither N nor 2N rows.
    pub fn of_rows(rows: &Tensor, images: usize) -> Result<Self> {
        let guided = rows.dim(0)? == 2 * images;
        let negative = guided.then(|| rows.narrow(0, 0, images)).transpose()?;
        Ok(Self { negative, positive: rows.narrow(0, if guided { images } else { 0 }, images)? })
    }

    /// The same rows again, all negative texts first.
    ///
    /// # Errors
    /// When the texts differ in length.
    pub fn rows(&self) -> Result<Tensor> {
        match &self.negative {
            Some(negative) => Tensor::cat(&[negative, &self.positive], 0),
            None => Ok(self.positive.clone()),
        }
    }

    /// Whether one batch can hold both texts.
    pub(super) fn is_of_one_length(&self) -> Result<bool> {
        let [negative, positive] = self.lengths()?;
        Ok(negative.is_none() || negative == positive)
    }

    /// Tokens of the negative text and of the text.
    pub(super) fn lengths(&self) -> Result<[Option<usize>; 2]> {
        Ok([self.negative.as_ref().map(|negative| negative.dim(1)).transpose()?, Some(self.positive.dim(1)?)])
    }

    /// Each text of `parts` for so many images; texts of one length.
    ///
    /// # Errors
    /// When their lengths differ, or some have a negative text and others none.
    pub fn for_images(parts: &[Self], counts: &[usize]) -> Result<Self> {
        let repeated = |text: &Tensor, count: &usize| text.repeat((*count, 1, 1));
        let positive = parts.iter().zip(counts).map(|(part, count)| repeated(&part.positive, count));
        let positive = Tensor::cat(&positive.collect::<Result<Vec<_>>>()?, 0)?;
        let negative = parts.iter().zip(counts).filter_map(|(part, count)| Some(repeated(part.negative.as_ref()?, count)));
        let negative = negative.collect::<Result<Vec<_>>>()?;
        let negative = (!negative.is_empty()).then(|| Tensor::cat(&negative, 0)).transpose()?;
        Ok(Self { negative, positive })
    }

    /// The texts that `choose` leaves.
    pub(super) fn of(&self, choose: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self { negative: self.negative.as_ref().map(&choose).transpose()?, positive: choose(&self.positive)? })
    }
}
