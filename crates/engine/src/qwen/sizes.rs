//! In which sizes the model looks at images.

/// Areas that every image is brought to, its ratio kept as far as sides in steps of 32 allow (diffusers'
/// `QwenImageEditPlusPipeline`, whose values the defaults are).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Areas {
    /// Of references for the autoencoder, whatever the size of the output.
    pub reference_px: u32,
    /// Of images for the text encoder.
    pub condition_px: u32,
}

impl Default for Areas {
    fn default() -> Self {
        Self { reference_px: 1024 * 1024, condition_px: 384 * 384 }
    }
}

/// Width and height of about `area_px` in the ratio of `width_px` to `height_px`, in steps of 32, at least one.
#[must_use]
pub fn fitting(area_px: u32, width_px: u32, height_px: u32) -> (u32, u32) {
    const STEP: f64 = 32.0;
    let ratio = f64::from(width_px) / f64::from(height_px);
    let width = (f64::from(area_px) * ratio).sqrt();
    let side = |length: f64| ((length / STEP).round_ties_even().max(1.0) * STEP) as u32;
    (side(width), side(width / ratio))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_get_the_sizes_that_diffusers_gives_them() {
        let areas = Areas::default();
        for (input, reference, condition) in [
            ((768, 1024), (896, 1184), (320, 448)),
            ((1024, 1024), (1024, 1024), (384, 384)),
            ((720, 1280), (768, 1376), (288, 512)),
            ((864, 1296), (832, 1248), (320, 480)),
        ] {
            let (width_px, height_px) = input;
            assert_eq!(fitting(areas.reference_px, width_px, height_px), reference, "{input:?}");
            assert_eq!(fitting(areas.condition_px, width_px, height_px), condition, "{input:?}");
        }
        assert_eq!(fitting(areas.condition_px, 1, 10_000), (32, 38_400));
    }
}
