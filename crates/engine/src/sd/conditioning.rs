//! What the UNet attends to: the text of every image and, where there is guidance, its negative text.

use candle_core::{Result, Tensor};

/// What the UNet gets of texts, a row each, f32.
#[derive(Debug, Clone)]
pub struct Text {
    /// (N, tokens, hidden): what it attends to.
    pub states: Tensor,
    /// (N, width), SDXL: the pooled text and the sizes as waves, which are added to the timestep's embedding.
    pub added: Option<Tensor>,
    /// (N, tokens, hidden) of each IP-Adapter at work: what its attentions look at beside the text.
    pub images: Vec<Tensor>,
}

impl Text {
    /// `states`: (N, tokens, hidden), for a UNet that looks at nothing else.
    #[must_use]
    pub fn of_states(states: Tensor) -> Self {
        Self { states, added: None, images: Vec::new() }
    }

    /// What `choose` makes of each tensor.
    pub(super) fn of(&self, choose: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self {
            states: choose(&self.states)?,
            added: self.added.as_ref().map(&choose).transpose()?,
            images: self.images.iter().map(choose).collect::<Result<_>>()?,
        })
    }

    /// Row `row` alone.
    pub(super) fn row(&self, row: usize) -> Result<Self> {
        self.of(|tensor| tensor.narrow(0, row, 1))
    }

    /// The rows of all of `texts`, which are of one length.
    pub(super) fn cat(texts: &[&Self]) -> Result<Self> {
        let states: Vec<&Tensor> = texts.iter().map(|text| &text.states).collect();
        let added: Vec<&Tensor> = texts.iter().filter_map(|text| text.added.as_ref()).collect();
        let added = if added.is_empty() { None } else { Some(Tensor::cat(&added, 0)?) };
        let prompts = texts.iter().map(|text| text.images.len()).min().unwrap_or_default();
        let images =
            (0..prompts).map(|place| Tensor::cat(&texts.iter().map(|text| &text.images[place]).collect::<Vec<_>>(), 0));
        Ok(Self { states: Tensor::cat(&states, 0)?, added, images: images.collect::<Result<_>>()? })
    }

    /// Every row so many times.
    fn repeated(&self, count: usize) -> Result<Self> {
        self.of(|tensor| if tensor.rank() == 3 { tensor.repeat((count, 1, 1)) } else { tensor.repeat((count, 1)) })
    }
}

/// Texts of images. The two may differ in length: each is looked at in its own, as in AUTOMATIC1111, whose option `pad_cond_uncond` is off
/// (`modules/shared_options.py`).
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// A row an image; none without guidance.
    pub negative: Option<Text>,
    /// A row an image.
    pub positive: Text,
}

impl Conditioning {
    /// `rows`: of N texts, or of 2N with all negative ones first.
    ///
    /// # Errors
    /// When there are neither N nor 2N rows.
    pub fn of_rows(rows: &Text, images: usize) -> Result<Self> {
        let guided = rows.states.dim(0)? == 2 * images;
        let from = |start| rows.of(|tensor| tensor.narrow(0, start, images));
        let negative = guided.then(|| from(0)).transpose()?;
        Ok(Self { negative, positive: from(if guided { images } else { 0 })? })
    }

    /// The same rows again, all negative texts first.
    ///
    /// # Errors
    /// When the texts differ in length.
    pub fn rows(&self) -> Result<Text> {
        match &self.negative {
            Some(negative) => Text::cat(&[negative, &self.positive]),
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
        let negative = self.negative.as_ref().map(|negative| negative.states.dim(1)).transpose()?;
        Ok([negative, Some(self.positive.states.dim(1)?)])
    }

    /// Each text of `parts` for so many images; texts of one length.
    ///
    /// # Errors
    /// When their lengths differ, or some have a negative text and others none.
    pub fn for_images(parts: &[Self], counts: &[usize]) -> Result<Self> {
        let positive = parts.iter().zip(counts).map(|(part, count)| part.positive.repeated(*count));
        let positive = positive.collect::<Result<Vec<_>>>()?;
        let negative = parts.iter().zip(counts).filter_map(|(part, count)| Some(part.negative.as_ref()?.repeated(*count)));
        let negative = negative.collect::<Result<Vec<_>>>()?;
        let negative = (!negative.is_empty()).then(|| Text::cat(&negative.iter().collect::<Vec<_>>())).transpose()?;
        Ok(Self { negative, positive: Text::cat(&positive.iter().collect::<Vec<_>>())? })
    }

    /// The texts that `choose` leaves.
    pub(super) fn of(&self, choose: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let negative = self.negative.as_ref().map(|negative| negative.of(&choose)).transpose()?;
        Ok(Self { negative, positive: self.positive.of(&choose)? })
    }
}
