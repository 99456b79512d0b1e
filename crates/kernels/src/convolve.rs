//! Runs convolutions: 3x3 by Winograd's algorithm, 1x1 and those that halve the sides as weights times gathered panels.

use crate::convolution::{Begin, Convolution};
use crate::gemm::Gemm;
use crate::shared::Shared;
use crate::tile::PANEL;
use crate::winograd;

impl Convolution {
    /// `images`: (B, in, H, W); `weight`: (out, in, kernel, kernel). Returns (B, out, H', W').
    #[must_use]
    pub fn run(&self, images: &[f32], weight: &[f32], begin: Begin<'_>) -> Vec<f32> {
        if self.kernel == 3 && self.stride == 1 {
            return winograd::run(self, images, weight, begin);
        }
        let (out_height, out_width) = self.out_sides();
        let places = out_height * out_width;
        let image_len = self.in_channels * self.height * self.width;
        let batch = images.len() / image_len;
        let rows = self.out_channels;
        let depth = self.in_channels * self.kernel * self.kernel;
        let mut out = vec![0.0; batch * rows * places];
        let shared = Shared::new(&mut out);
        let gemm = Gemm { weight, rows, depth, columns: places };
        gemm.run(
            batch,
            &|image, first, columns, row, tile, is_first| {
                for (index, values) in tile.chunks_exact(PANEL).enumerate().take(rows - row) {
                    let channel = image * rows + row + index;
                    let at = channel * places + first;
                    shared.with(at, columns, |out| {
                        if is_first {
                            begin.put(out, values, channel, at);
                        } else {
                            out.iter_mut().zip(values).for_each(|(sum, number)| *sum += number);
                        }
                    });
                }
            },
            &|image, from, depth, first, panel| {
                let image = &images[image * image_len..][..image_len];
                for (row, k) in panel.chunks_exact_mut(PANEL).zip(from..from + depth) {
                    self.gather(image, k, first, &mut row[..PANEL.min(places - first)]);
                }
            },
        );
        out
    }

    /// Row `k` of the matrix that the weights are multiplied with, from column `first` on.
    fn gather(&self, image: &[f32], k: usize, first: usize, row: &mut [f32]) {
        let kernel = self.kernel;
        let stride = self.stride;
        let border = self.kernel / 2;
        let channel = k / (kernel * kernel);
        let tap = k % (kernel * kernel);
        let down = tap / kernel;
        let right = tap % kernel;
        let plane = &image[channel * self.height * self.width..][..self.height * self.width];
        let (_, out_width) = self.out_sides();
        if kernel == 1 && stride == 1 {
            row.copy_from_slice(&plane[first..first + row.len()]);
            return;
        }
        let mut y = first / out_width;
        let mut x = first % out_width;
        let mut done = 0;
        while done < row.len() {
            let length = (out_width - x).min(row.len() - done);
            let part = &mut row[done..done + length];
            match (y * stride + down).checked_sub(border).filter(|y| *y < self.height) {
                None => part.fill(0.0),
                Some(y) => every(&plane[y * self.width..][..self.width], stride, (x * stride + right, border), part),
            }
            (done, y, x) = (done + length, y + 1, 0);
        }
    }
}

/// Every `stride`th number of `line` from `start - border` on; zero outside.
fn every(line: &[f32], stride: usize, (start, border): (usize, usize), out: &mut [f32]) {
    for (index, number) in out.iter_mut().enumerate() {
        *number = (start + index * stride).checked_sub(border).and_then(|at| line.get(at)).copied().unwrap_or(0.0);
    }
}
