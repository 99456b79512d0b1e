//! The innermost product: 8 rows times a panel of 48 columns, in registers.

use crate::vectors::{VECTORS, Vectors};

pub(crate) const ROWS: usize = 8;
/// Columns of a panel; a panel is stored row by row, so its rows are this far apart.
pub(crate) const PANEL: usize = 48;

/// `out` (8 x 48) = rows of `a` (each `depth` values from its offset in `rows`) times `panel` (`depth` x 48), in the first `columns`
/// of them; what the others hold after it is nothing to rely on.
///
/// Each number is one chain of fused multiply-adds in the order of depth (AVX-512, AVX2).
#[inline]
pub(crate) fn multiply(a: &[f32], rows: [usize; ROWS], depth: usize, panel: &[f32], columns: usize, out: &mut [f32]) {
    multiply_with(*VECTORS, a, rows, depth, panel, columns, out);
}

/// [`multiply`] with vectors that this processor has.
fn multiply_with(
    vectors: Vectors,
    a: &[f32],
    rows: [usize; ROWS],
    depth: usize,
    panel: &[f32],
    columns: usize,
    out: &mut [f32],
) {
    assert!(columns <= PANEL, "wider than a panel");
    assert!(rows.iter().all(|row| row + depth <= a.len()), "a row ends outside the matrix");
    assert!(depth * PANEL <= panel.len() && ROWS * PANEL <= out.len(), "panel or result is too short");
    let rows = rows.map(|row| a[row..].as_ptr());
    match vectors {
        // SAFETY: the instructions were detected; rows, panel and result hold what is read and written, asserted above.
        #[cfg(target_arch = "x86_64")]
        Vectors::Avx512 => unsafe {
            let panel = panel.as_ptr();
            let out = out.as_mut_ptr();
            match columns.div_ceil(16) {
                0 | 1 => avx512::<1>(rows, depth, panel, out),
                2 => avx512::<2>(rows, depth, panel, out),
                _ => avx512::<3>(rows, depth, panel, out),
            }
        },
        #[cfg(target_arch = "x86_64")]
        Vectors::Avx2 => {
            for (row, column) in [(0, 0), (0, 24), (4, 0), (4, 24)].into_iter().filter(|(_, column)| *column < columns) {
                let rows = [rows[row], rows[row + 1], rows[row + 2], rows[row + 3]];
                // SAFETY: as above; 24 columns from 0 or 24 lie within a panel of 48.
                unsafe { avx2(rows, depth, panel.as_ptr().add(column), out.as_mut_ptr().add(row * PANEL + column)) }
            }
        }
        // SAFETY: as above.
        Vectors::Portable => unsafe { portable(rows, depth, panel, columns, out) },
    }
}

/// # Safety
/// Each row holds `depth` values.
unsafe fn portable(rows: [*const f32; ROWS], depth: usize, panel: &[f32], columns: usize, out: &mut [f32]) {
    for (row, out) in rows.into_iter().zip(out.chunks_exact_mut(PANEL)) {
        let out = &mut out[..columns];
        out.fill(0.0);
        for (k, values) in panel.chunks_exact(PANEL).take(depth).enumerate() {
            // SAFETY: k < depth.
            let factor = unsafe { *row.add(k) };
            out.iter_mut().zip(values).for_each(|(sum, number)| *sum += factor * number);
        }
    }
}

/// # Safety
/// Each row holds `depth` values, `panel` `depth` x 48, `out` 8 x 48.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const PARTS: usize>(rows: [*const f32; ROWS], depth: usize, panel: *const f32, out: *mut f32) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps};
    let mut sums = [[_mm512_setzero_ps(); PARTS]; ROWS];
    for k in 0..depth {
        let mut columns = [_mm512_setzero_ps(); PARTS];
        for (part, column) in columns.iter_mut().enumerate() {
            // SAFETY: k < depth, and 16 values from each multiple of 16 lie within a row of 48.
            *column = unsafe { _mm512_loadu_ps(panel.add(k * PANEL + 16 * part)) };
        }
        for row in 0..ROWS {
            // SAFETY: k < depth.
            let factor = _mm512_set1_ps(unsafe { *rows[row].add(k) });
            for part in 0..PARTS {
                sums[row][part] = _mm512_fmadd_ps(factor, columns[part], sums[row][part]);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (part, sum) in sums.iter().enumerate() {
            // SAFETY: 8 x 48 values.
            unsafe { _mm512_storeu_ps(out.add(row * PANEL + 16 * part), *sum) }
        }
    }
}

/// # Safety
/// Each row holds `depth` values; `panel` and `out` hold 24 values in each of their rows, which are 48 apart.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(rows: [*const f32; 4], depth: usize, panel: *const f32, out: *mut f32) {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps};
    let mut sums = [[_mm256_setzero_ps(); 3]; 4];
    for k in 0..depth {
        // SAFETY: k < depth.
        let columns = unsafe {
            let from = panel.add(k * PANEL);
            [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)), _mm256_loadu_ps(from.add(16))]
        };
        for row in 0..4 {
            // SAFETY: k < depth.
            let factor = _mm256_set1_ps(unsafe { *rows[row].add(k) });
            for part in 0..3 {
                sums[row][part] = _mm256_fmadd_ps(factor, columns[part], sums[row][part]);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (part, sum) in sums.iter().enumerate() {
            // SAFETY: 4 rows of 24 values.
            unsafe { _mm256_storeu_ps(out.add(row * PANEL + 8 * part), *sum) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_vectors_that_there_is_gives_the_plain_gemm() {
        let depth = 37;
        let number = |n: usize| ((n * 2_654_435_761) % 2_000) as f32 / 1_000.0 - 1.0;
        let a: Vec<f32> = (0..9 * depth).map(number).collect();
        let panel: Vec<f32> = (0..depth * PANEL).map(|n| number(n + 7)).collect();
        // Rows that overlap, and one that is there twice.
        let rows = [0, depth, 2 * depth, 5, 7 * depth, depth, 8 * depth, 3];
        for vectors in Vectors::all() {
            let mut out = vec![f32::NAN; ROWS * PANEL];
            for columns in [1, 16, 17, 24, 25, 33, PANEL] {
                multiply_with(vectors, &a, rows, depth, &panel, columns, &mut out);
                for (at, ours) in out.iter().enumerate().filter(|(at, _)| at % PANEL < columns) {
                    let products = (0..depth).map(|k| {
                        let factor = panel[k * PANEL + at % PANEL];
                        f64::from(a[rows[at / PANEL] + k]) * f64::from(factor)
                    });
                    let exact: f64 = products.sum();
                    assert!((f64::from(*ours) - exact).abs() < 1e-5, "{vectors:?}, {at} of {columns}: {ours} for {exact}");
                }
                out.fill(f32::NAN);
            }
        }
    }
}
