//! Step caching: what a model works out deep inside in one step is used again in later ones. It takes about half the time, and gives another image.

use candle_core::{DType, Result, Tensor};

use super::EngineError;

/// What a step takes over from an earlier one. Each kind of model has one of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StepCache {
    /// Of a UNet: every so many looks, 2 or more, are complete. Those between redo the outermost layers alone (`DeepCache`, Ma et al. 2023,
    /// arXiv 2312.00858, branch 0).
    Interval(u32),
    /// Of a transformer: a look ends after the first block while what that block adds changes by at most this part, above 0 (the first-block cache
    /// of `ParaAttention`; `FirstBlockCacheConfig` of diffusers).
    Threshold(f64),
}

impl StepCache {
    /// # Errors
    /// [`EngineError::Request`] when it is a transformer's kind, or beside ControlNets: these add to every layer of a UNet, those that a step takes over
    /// among them.
    pub(crate) fn interval(self, has_controls: bool) -> std::result::Result<u32, EngineError> {
        match self {
            Self::Threshold(_) => Err(refused("must have interval, for this model has a UNet; threshold is for transformers")),
            Self::Interval(_) if has_controls => {
                Err(refused("cannot be used together with controlnets: leave one of them out"))
            }
            Self::Interval(interval) => Ok(interval),
        }
    }

    /// # Errors
    /// [`EngineError::Request`] when it is a UNet's kind.
    pub(crate) fn threshold(self) -> std::result::Result<f64, EngineError> {
        match self {
            Self::Threshold(threshold) => Ok(threshold),
            Self::Interval(_) => Err(refused("must have threshold, for this model has a transformer; interval is for UNets")),
        }
    }
}

fn refused(problem: &str) -> EngineError {
    EngineError::Request { field: "step_cache", problem: problem.to_owned() }
}

/// A look at an image up to the first of a transformer's blocks.
pub struct FirstBlock {
    /// The image's tokens before it: (1, T, width).
    pub before: Tensor,
    /// And behind it.
    pub after: Tensor,
    /// The text's behind it, (1, S, width), where they are a stream of their own.
    pub text: Option<Tensor>,
}

/// What the last complete look at one image, with one text, has left behind.
pub struct FirstBlockCache {
    threshold: f64,
    last: Option<Left>,
}

struct Left {
    /// What the first block added.
    first: Tensor,
    /// What all others added.
    rest: Tensor,
}

impl FirstBlockCache {
    /// One for each look that every step takes, where a request asks for it.
    ///
    /// # Errors
    /// [`EngineError::Request`] when it asks for a UNet's kind.
    pub(crate) fn for_each(step_cache: Option<StepCache>, looks: usize) -> std::result::Result<Vec<Option<Self>>, EngineError> {
        let threshold = step_cache.map(StepCache::threshold).transpose()?;
        Ok((0..looks).map(|_| threshold.map(|threshold| Self { threshold, last: None })).collect())
    }

    /// The image's tokens behind the last block, which `rest` works out where it is needed.
    ///
    /// # Errors
    /// Those of `rest`, or when there is no memory.
    pub(crate) fn last_block(&mut self, first: &FirstBlock, rest: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        let added = (&first.after - &first.before)?;
        if let Some(last) = &self.last
            && last.changed(&added)? <= self.threshold
        {
            return &first.after + &last.rest;
        }
        let tokens = rest()?;
        self.last = Some(Left { first: added, rest: (&tokens - &first.after)? });
        Ok(tokens)
    }
}

impl Left {
    /// The mean magnitude by which the first block adds something else, over that of what it added. The device ends its work for this.
    fn changed(&self, added: &Tensor) -> Result<f64> {
        let mean = |values: &Tensor| values.abs()?.mean_all();
        let changed = (mean(&(added - &self.first)?)? / mean(&self.first)?)?;
        Ok(f64::from(changed.to_dtype(DType::F32)?.to_scalar::<f32>()?))
    }
}
