//! Which images have the invisible mark: it changes pixels, so it is not for those that are to stay as they are.

use serde::Deserialize;

use crate::invisible_mark::{MIN_PIXELS, embed, has_room};
use crate::job::outcome::InvisibleMark;
use atelier_engine::Image;

/// Which images have the mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Marked {
    /// Those of which every pixel was generated.
    Generated,
    /// Also those that hold pixels of a person's own.
    All,
    Off,
}

impl Marked {
    /// Writes the mark into the image, or says why not. `has_own_pixels`: some were not generated. The buffer must match the size.
    #[must_use]
    pub fn write(self, image: &mut Image, has_own_pixels: bool) -> InvisibleMark {
        let why = match self {
            Self::Off => "`workflow.encode.invisible_mark` is off".to_owned(),
            Self::Generated if has_own_pixels => {
                "it holds pixels of the person's own, and `workflow.encode.invisible_mark` is `generated`".to_owned()
            }
            Self::Generated | Self::All if !has_room(image.width_px, image.height_px) => {
                format!("it has fewer than {MIN_PIXELS} pixels")
            }
            Self::Generated | Self::All => {
                embed(&mut image.rgb, image.width_px, image.height_px);
                return InvisibleMark { embedded: true, why: None };
            }
        };
        InvisibleMark { embedded: false, why: Some(why) }
    }
}
