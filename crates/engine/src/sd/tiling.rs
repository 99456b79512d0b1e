//! Into which pieces a generation is cut so that it fits into memory.

/// How the UNet and the decoder go over what they are given; the default is at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tiling {
    /// The decoder goes over an image in bands of rows.
    pub banded: bool,
    /// The UNet looks at one image, with one prompt, after the other.
    pub one_by_one: bool,
    /// Side of the tiles that are decoded one by one, in latents, at least 4; none: the whole image. The only cut that changes an image,
    /// where that is larger than a tile.
    pub tile: Option<usize>,
}
