//! The messages that are known: ours, and those that reference code of image models writes.

/// A message and who writes it.
pub(super) struct Message {
    pub(super) name: &'static str,
    bytes: &'static [u8],
    /// Bits of the first byte that are not part of it.
    skipped: usize,
}

/// Of Stable Diffusion XL in diffusers (`pipelines/stable_diffusion_xl/watermark.py`), and the one that is written here.
pub(super) const SDXL: Message =
    Message { name: "Stable Diffusion XL", bytes: &[0xB3, 0xEC, 0x90, 0x7B, 0xB1, 0x9E], skipped: 0 };

pub(super) const KNOWN: [Message; 4] = [
    SDXL,
    // Its two leading zeros get lost where the reference code makes bits of the number.
    Message { name: "FLUX", bytes: &[0x2A, 0xFE, 0x87, 0x9C, 0xF5, 0x2E], skipped: 2 },
    Message { name: "Stable Diffusion 1", bytes: b"StableDiffusionV1", skipped: 0 },
    Message { name: "Stable Diffusion 2", bytes: b"SDV2", skipped: 0 },
];

impl Message {
    /// The bits in their order, the highest of a byte first.
    pub(super) fn bits(&self) -> Vec<bool> {
        let bits = self.bytes.iter().flat_map(|byte| (0..8).rev().map(move |place| byte >> place & 1 == 1));
        bits.skip(self.skipped).collect()
    }
}
