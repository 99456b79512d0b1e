//! Rows of a matrix as the columns of a panel.

use crate::tile::PANEL;
use crate::vectors::{VECTORS, Vectors};

/// Sides of the blocks that are turned at once.
const BLOCK: usize = 16;

/// Columns `from..from + depth` of `count` rows of `matrix`, from row `first` on, as the rows of `panel`.
pub(crate) fn transpose(
    matrix: &[f32],
    width: usize,
    first: usize,
    count: usize,
    from: usize,
    depth: usize,
    panel: &mut [f32],
) {
    assert!(count <= PANEL && depth * PANEL <= panel.len(), "more than a panel holds");
    assert!(from + depth <= width && (first + count) * width <= matrix.len(), "outside the matrix");
    for start in (0..depth).step_by(BLOCK) {
        let length = BLOCK.min(depth - start);
        for row in (0..count).step_by(BLOCK) {
            let at = (first + row) * width + from + start;
            let block = &matrix[at..];
            let out = &mut panel[start * PANEL + row..];
            let rows = BLOCK.min(count - row);
            match *VECTORS {
                #[cfg(target_arch = "x86_64")]
                Vectors::Avx512 if length == BLOCK && rows == BLOCK => {
                    // SAFETY: the instructions were detected; 16 rows of 16 values lie within matrix and panel, asserted above.
                    unsafe { avx512(block.as_ptr(), width, out.as_mut_ptr()) }
                }
                _ => plain(block, width, rows, length, out),
            }
        }
    }
}

fn plain(block: &[f32], width: usize, rows: usize, length: usize, out: &mut [f32]) {
    for index in 0..rows {
        for (k, number) in block[index * width..][..length].iter().enumerate() {
            out[k * PANEL + index] = *number;
        }
    }
}

/// 16x16 values: pairs, pairs of pairs, then quarters of vectors change places.
///
/// # Safety
/// `from` has 16 rows of 16 values, `width` apart, and so has `to`, 48 apart.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(from: *const f32, width: usize, to: *mut f32) {
    use std::arch::x86_64::{
        _mm512_castpd_ps, _mm512_castps_pd, _mm512_loadu_ps, _mm512_shuffle_f32x4, _mm512_storeu_ps, _mm512_unpackhi_pd,
        _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
    };
    // SAFETY: within the 16 rows.
    let rows: [_; BLOCK] = std::array::from_fn(|row| unsafe { _mm512_loadu_ps(from.add(row * width)) });
    let pairs: [_; BLOCK] = std::array::from_fn(|at| {
        let a = rows[at / 2 * 2];
        let b = rows[at / 2 * 2 + 1];
        if at % 2 == 0 { _mm512_unpacklo_ps(a, b) } else { _mm512_unpackhi_ps(a, b) }
    });
    // Of rows 4q to 4q + 3, number 4·quarter + k of each in the quarters of vector 4q + k.
    let fours: [_; BLOCK] = std::array::from_fn(|at| {
        let group = at / 4 * 4;
        let k = at % 4;
        let a = _mm512_castps_pd(pairs[group + k / 2]);
        let b = _mm512_castps_pd(pairs[group + 2 + k / 2]);
        _mm512_castpd_ps(if k % 2 == 0 { _mm512_unpacklo_pd(a, b) } else { _mm512_unpackhi_pd(a, b) })
    });
    for k in 0..4 {
        let [a, b, c, d] = [fours[k], fours[4 + k], fours[8 + k], fours[12 + k]];
        let even_upper = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
        let odd_upper = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
        let even_lower = _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d);
        let odd_lower = _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d);
        let columns = [
            _mm512_shuffle_f32x4::<0b10_00_10_00>(even_upper, even_lower),
            _mm512_shuffle_f32x4::<0b10_00_10_00>(odd_upper, odd_lower),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(even_upper, even_lower),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(odd_upper, odd_lower),
        ];
        for (quarter, column) in columns.into_iter().enumerate() {
            // SAFETY: within the 16 rows of the panel.
            unsafe { _mm512_storeu_ps(to.add((4 * quarter + k) * PANEL), column) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panel_has_the_rows_as_its_columns() {
        let width = 53;
        let first = 3;
        let from = 5;
        let matrix: Vec<f32> = (0..60 * width).map(|number| number as f32).collect();
        for (count, depth) in [(48, 48), (16, 16), (37, 19), (1, 33), (48, 7)] {
            let mut panel = vec![-1.0; depth * PANEL];
            transpose(&matrix, width, first, count, from, depth, &mut panel);
            for (k, row) in panel.chunks_exact(PANEL).enumerate() {
                for (index, number) in row.iter().enumerate() {
                    let expected = if index < count { ((first + index) * width + from + k) as f32 } else { -1.0 };
                    assert_eq!(number.to_bits(), expected.to_bits(), "{count} x {depth}: {k}, {index}");
                }
            }
        }
    }
}
