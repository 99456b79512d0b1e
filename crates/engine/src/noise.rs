//! Gaussian noise from a seed, drawn on the CPU, so that a seed generates the same image on every device.
//!
//! The values are those of `torch.randn` with a CPU generator: an image of diffusers is found again by its seed.

use std::f32::consts::TAU;

use candle_core::{Device, Result, Tensor};

/// A generator an image: image `n` of a request draws from `seed + n`, whatever its neighbours are.
pub struct Noise {
    generators: Vec<MersenneTwister>,
    /// (channels, height, width) of one image's latents.
    shape: (usize, usize, usize),
}

impl Noise {
    /// `shape`: (channels, height, width) of one image's latents, at least 16 values.
    #[must_use]
    pub fn new(seeds: impl IntoIterator<Item = u64>, shape: (usize, usize, usize)) -> Self {
        Self { generators: seeds.into_iter().map(MersenneTwister::new).collect(), shape }
    }

    /// Goes on with these images alone; each draws what it would have drawn next to the others.
    pub fn keep(&mut self, images: &[usize]) {
        let mut place = 0..;
        self.generators.retain(|_| place.next().is_some_and(|place| images.contains(&place)));
    }

    /// The next noise of every image: (images, channels, height, width), f32, standard normal.
    ///
    /// # Errors
    /// When the device has no room for it.
    pub fn draw(&mut self, device: &Device) -> Result<Tensor> {
        let (channels, height, width) = self.shape;
        let mut values = Vec::with_capacity(self.generators.len() * channels * height * width);
        for generator in &mut self.generators {
            values.extend(normals(generator, channels * height * width));
        }
        Tensor::from_vec(values, (self.generators.len(), channels, height, width), device)
    }
}

/// `count` standard normals by Box and Muller in blocks of 16, a short last block overlapping the one before it:
/// `normal_fill` in pytorch's `aten/src/ATen/native/cpu/DistributionTemplates.h`.
fn normals(generator: &mut MersenneTwister, count: usize) -> Vec<f32> {
    const BLOCK: usize = 16;
    let mut values: Vec<f32> = (0..count).map(|_| generator.uniform()).collect();
    for block in values.chunks_exact_mut(BLOCK) {
        box_muller(block);
    }
    if !count.is_multiple_of(BLOCK) && count >= BLOCK {
        let last = &mut values[count - BLOCK..];
        last.fill_with(|| generator.uniform());
        box_muller(last);
    }
    values
}

/// Turns uniform values of [0, 1) into normal ones; the first half gives the radii, the second the angles.
fn box_muller(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(block.len() / 2);
    for (first, second) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * (1.0 - *first).ln()).sqrt();
        let angle = TAU * *second;
        (*first, *second) = (radius * angle.cos(), radius * angle.sin());
    }
}

/// MT19937 (Matsumoto and Nishimura 1998), seeded as pytorch seeds it.
struct MersenneTwister {
    state: [u32; Self::WORDS],
    next: usize,
}

impl MersenneTwister {
    const WORDS: usize = 624;
    const SHIFT: usize = 397;

    /// Only the low 32 bits of a seed count, as in pytorch's `at::mt19937(uint64_t seed)`: seeds that differ by 2^32
    /// give the same image there and here.
    fn new(seed: u64) -> Self {
        let mut state = [0; Self::WORDS];
        state[0] = seed as u32;
        for index in 1..Self::WORDS {
            let before = state[index - 1];
            state[index] = 1_812_433_253_u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(index as u32);
        }
        Self { state, next: Self::WORDS }
    }

    /// 24 random bits as a number of [0, 1).
    fn uniform(&mut self) -> f32 {
        const BITS: u32 = 24;
        (self.as_str() & ((1 << BITS) - 1)) as f32 / (1_u32 << BITS) as f32
    }

    fn as_str(&mut self) -> u32 {
        if self.next == Self::WORDS {
            self.twist();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn twist(&mut self) {
        for index in 0..Self::WORDS {
            let joined = (self.state[index] & 0x8000_0000) | (self.state[(index + 1) % Self::WORDS] & 0x7fff_ffff);
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[index] = self.state[(index + Self::SHIFT) % Self::WORDS] ^ (joined >> 1) ^ odd;
        }
        self.next = 0;
    }
}
