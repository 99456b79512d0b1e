//! Rotary positions over several axes.

use candle_core::{Device, Result, Tensor};

/// Cosine and sine of the angles of every token: (tokens, head width / 2), f32. They are computed in f64, as diffusers does for flows.
pub(super) struct Rope {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
}

impl Rope {
    /// `axes`: widths of a head's values that turn with each axis; `theta`: base of the frequencies; a place on each axis for each token.
    ///
    /// # Errors
    /// When the device has no room for it.
    pub(super) fn new<const AXES: usize>(
        axes: [usize; AXES],
        theta: f64,
        places: &[[usize; AXES]],
        device: &Device,
    ) -> Result<Self> {
        let frequencies = axes.map(|width| frequencies(theta, width));
        let angles = places.iter().flat_map(|place| {
            let axes = place.iter().zip(&frequencies);
            axes.flat_map(|(place, frequencies)| frequencies.iter().map(|frequency| *place as f64 * frequency))
        });
        let angles: Vec<f64> = angles.collect();
        let table = |of: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|angle| of(*angle) as f32).collect();
            Tensor::from_vec(values, (places.len(), angles.len() / places.len()), device)
        };
        Ok(Self { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }

    /// This one's tokens before those of `behind`.
    pub(super) fn before(&self, behind: &Self) -> Result<Self> {
        Ok(Self { cos: Tensor::cat(&[&self.cos, &behind.cos], 0)?, sin: Tensor::cat(&[&self.sin, &behind.sin], 0)? })
    }
}

impl From<[&Tensor; 2]> for Rope {
    fn from([cos, sin]: [&Tensor; 2]) -> Self {
        Self { cos: cos.clone(), sin: sin.clone() }
    }
}

/// 1/θ^(2i/d) for i below d/2.
fn frequencies(theta: f64, width: usize) -> Vec<f64> {
    (0..width).step_by(2).map(|index| theta.powf(index as f64 / width as f64).recip()).collect()
}
