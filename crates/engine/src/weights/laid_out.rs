//! A source of weights that lie as a GPU takes them best, and of which each is read once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use crate::device::{is_best_channels_last, to_channels_last};

/// What `source` has, under the same names: channels of convolutions are last where that is best, and who asks again gets the same tensor.
pub(crate) fn laid_out<'a>(source: &VarBuilder<'a>) -> VarBuilder<'a> {
    let dtype = source.dtype();
    let device = source.device().clone();
    let laid_out = LaidOut { source: source.clone(), given: Mutex::default() };
    VarBuilder::from_backend(Box::new(laid_out), dtype, device)
}

struct LaidOut<'a> {
    source: VarBuilder<'a>,
    given: Mutex<HashMap<String, Tensor>>,
}

impl SimpleBackend for LaidOut<'_> {
    fn get(&self, shape: Shape, name: &str, _: Init, _: DType, _: &Device) -> Result<Tensor> {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tensor) = given.get(name).filter(|tensor| *tensor.shape() == shape) {
            return Ok(tensor.clone());
        }
        let tensor = self.source.get(shape, name)?;
        let tensor = if is_best_channels_last(&tensor) { to_channels_last(&tensor)? } else { tensor };
        given.insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _: &Device) -> Result<Tensor> {
        self.source.get_unchecked_dtype(name, dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.source.contains_tensor(name)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Error;

    use super::*;
    use crate::device::{is_channels_last, open};

    #[test]
    fn tensors_are_read_once_and_lie_as_is_best() -> Result<()> {
        let device = open().map_err(Error::wrap)?;
        let tensors = HashMap::from([("a.weight".to_owned(), Tensor::zeros((16, 8, 3, 3), DType::F16, &device)?)]);
        let source = laid_out(&VarBuilder::from_tensors(tensors, DType::F16, &device));
        let weight = source.pp("a").get((16, 8, 3, 3), "weight")?;
        let again = source.get((16, 8, 3, 3), "a.weight")?;
        assert_eq!(weight.id(), again.id());
        assert_eq!(is_channels_last(&weight), device.is_cuda());
        assert!(source.contains_tensor("a.weight") && !source.contains_tensor("b.weight"));
        assert!(source.get((8, 8, 3, 3), "a.weight").is_err(), "another shape");
        Ok(())
    }
}
