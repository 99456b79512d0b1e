//! Every kernel next to the plain sum, at sizes that are no multiples of its blocks; and alone next to in a batch, bit by bit.

use atelier_kernels::attention::Attention;
use atelier_kernels::convolution::{Begin, Convolution};
use atelier_kernels::elementwise::{geglu, quick_gelu, silu, transpose};
use atelier_kernels::gemm::Linear;
use atelier_kernels::norm::{GroupNorm, LayerNorm};

/// Values between -1 and 1 that look like noise.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let values = (0..count).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    });
    values.collect()
}

fn assert_close(ours: &[f32], exact: &[f64], tolerance: f64) {
    assert_eq!(ours.len(), exact.len());
    for (at, (ours, exact)) in ours.iter().zip(exact).enumerate() {
        assert!((f64::from(*ours) - exact).abs() <= tolerance * exact.abs().max(1.0), "{at}: {ours} for {exact}");
    }
}

fn plain_convolution(c: &Convolution, images: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f64> {
    let (out_height, out_width) = c.out_sides();
    let mut out = vec![];
    for image in images.chunks(c.in_channels * c.height * c.width) {
        for (filter, bias) in weight.chunks(c.in_channels * c.kernel * c.kernel).zip(bias) {
            for (y, x) in (0..out_height).flat_map(|y| (0..out_width).map(move |x| (y, x))) {
                let mut sum = f64::from(*bias);
                for (k, factor) in filter.iter().enumerate() {
                    let channel = k / (c.kernel * c.kernel);
                    let tap = k % (c.kernel * c.kernel);
                    let row = (y * c.stride + tap / c.kernel).wrapping_sub(c.kernel / 2);
                    let column = (x * c.stride + tap % c.kernel).wrapping_sub(c.kernel / 2);
                    if row < c.height && column < c.width {
                        sum += f64::from(*factor) * f64::from(image[(channel * c.height + row) * c.width + column]);
                    }
                }
                out.push(sum);
            }
        }
    }
    out
}

#[test]
fn convolutions_of_odd_sizes_are_the_plain_sum() {
    for (in_channels, out_channels, height, width, kernel, stride, batch) in [
        (4, 13, 9, 7, 3, 1, 2),
        (50, 9, 17, 70, 3, 1, 1),
        (5, 8, 11, 13, 3, 2, 3),
        (6, 3, 8, 50, 3, 2, 1),
        (401, 17, 5, 10, 1, 1, 2),
        (1, 1, 1, 1, 3, 1, 1),
        (3, 2, 1, 5, 3, 2, 1),
        (120, 9, 3, 5, 3, 1, 2),
    ] {
        let doubled = false;
        let convolution = Convolution { in_channels, out_channels, height, width, kernel, stride, doubled };
        let images = noise(batch * in_channels * height * width, 1);
        let weight = noise(out_channels * in_channels * kernel * kernel, 2);
        let bias = noise(out_channels, 3);
        let exact = plain_convolution(&convolution, &images, &weight, &bias);
        let begin = Begin { bias: Some(&bias), residual: None };
        assert_close(&convolution.run(&images, &weight, begin), &exact, 2e-5);
    }
}

#[test]
fn a_convolution_begins_with_what_is_given() {
    for (kernel, stride) in [(3, 1), (3, 2), (1, 1)] {
        let c = Convolution { in_channels: 5, out_channels: 3, height: 7, width: 9, kernel, stride, doubled: false };
        let images = noise(2 * 5 * 7 * 9, 21);
        let weight = noise(3 * 5 * kernel * kernel, 22);
        let mut exact = plain_convolution(&c, &images, &weight, &[0.0; 3]);
        let bias = noise(2 * 3, 23);
        let residual = noise(exact.len(), 24);
        let places = exact.len() / bias.len();
        for (at, exact) in exact.iter_mut().enumerate() {
            *exact += f64::from(residual[at]) + f64::from(bias[at / places]);
        }
        assert_close(&c.run(&images, &weight, Begin { bias: Some(&bias), residual: Some(&residual) }), &exact, 2e-5);
    }
}

#[test]
fn a_doubled_image_is_convolved_as_if_each_of_its_values_were_four() {
    for (height, width) in [(2, 2), (6, 10), (14, 120)] {
        let c = Convolution { in_channels: 4, out_channels: 9, height, width, kernel: 3, stride: 1, doubled: true };
        let images = noise(2 * 4 * height * width / 4, 25);
        let weight = noise(9 * 4 * 9, 26);
        let bias = noise(9, 27);
        let plain = (0..2 * 4 * height * width).map(|at| {
            let row = at / width;
            let column = at % width;
            images[row / height * (height / 2 * width / 2) + row % height / 2 * (width / 2) + column / 2]
        });
        let large: Vec<f32> = plain.collect();
        let exact = plain_convolution(&c, &large, &weight, &bias);
        assert_close(&c.run(&images, &weight, Begin { bias: Some(&bias), residual: None }), &exact, 2e-5);
    }
}

#[test]
fn linear_layers_of_odd_sizes_are_the_plain_sum() {
    for (tokens, in_features, out_features) in [(1, 1, 1), (77, 96, 30), (200, 801, 41), (49, 385, 8)] {
        let input = noise(tokens * in_features, 4);
        let weight = noise(out_features * in_features, 5);
        let bias = noise(out_features, 6);
        let rows = input.chunks(in_features).flat_map(|token| -> Vec<f64> {
            weight
                .chunks(in_features)
                .zip(&bias)
                .map(|(row, bias)| {
                    token.iter().zip(row).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() + f64::from(*bias)
                })
                .collect()
        });
        let mut exact: Vec<f64> = rows.collect();
        let layer = Linear { weight: &weight, bias: Some(&bias), in_features };
        assert_close(&layer.run(&input, None), &exact, 2e-5);
        let residual = noise(exact.len(), 28);
        exact.iter_mut().zip(&residual).for_each(|(exact, before)| *exact += f64::from(*before));
        assert_close(&layer.run(&input, Some(&residual)), &exact, 2e-5);
    }
}

#[test]
fn attention_of_odd_sizes_is_the_plain_sum() {
    let sizes = [(2, 50, 77, 3, 5, false), (1, 7, 3, 2, 40, false), (2, 130, 130, 1, 12, false), (2, 77, 77, 3, 9, true)];
    for (batch, tokens, places, heads, width, causal) in sizes {
        let channels = heads * width;
        let query = noise(batch * tokens * channels, 7);
        let key = noise(batch * places * channels, 8);
        let value = noise(batch * places * channels, 9);
        let mut exact = vec![0.0; query.len()];
        let all = places;
        for (at, exact) in exact.iter_mut().enumerate() {
            let row = at / channels;
            let channel = at % channels;
            let image = row / tokens;
            let head = channel / width;
            let score = |place: usize| -> f64 {
                let at = |row: usize| row * channels + head * width;
                let query = &query[at(row)..][..width];
                let key = &key[at(image * all + place)..][..width];
                let dot: f64 = query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                (dot / (width as f64).sqrt()).exp()
            };
            let places = if causal { row % tokens + 1 } else { places };
            let sum: f64 = (0..places).map(score).sum();
            *exact = (0..places)
                .map(|place| score(place) * f64::from(value[(image * all + place) * channels + channel]))
                .sum::<f64>()
                / sum;
        }
        assert_close(&Attention { batch, channels, heads, causal }.run(&query, &key, &value), &exact, 1e-5);
    }
}

#[test]
fn group_norm_has_the_mean_and_variance_of_each_group() {
    let channels = 12;
    let groups = 4;
    let places = 37;
    let input: Vec<f32> = noise(2 * channels * places, 10).iter().map(|x| x + 3.0).collect();
    let weight = noise(channels, 11);
    let bias = noise(channels, 12);
    for silu in [false, true] {
        let ours = GroupNorm { weight: &weight, bias: &bias, groups, eps: 1e-5, silu }.run(&input, places);
        let mut exact = vec![];
        for (group, values) in input.chunks(channels / groups * places).enumerate() {
            let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / values.len() as f64;
            for (index, x) in values.iter().enumerate() {
                let channel = group % groups * (channels / groups) + index / places;
                let y =
                    (f64::from(*x) - mean) / (variance + 1e-5).sqrt() * f64::from(weight[channel]) + f64::from(bias[channel]);
                exact.push(if silu { y / (1.0 + (-y).exp()) } else { y });
            }
        }
        assert_close(&ours, &exact, 1e-5);
    }
}

#[test]
fn geglu_is_values_times_gelu_of_gates() {
    // gelu of 1, -1, 3 and 0, from its definition by the error function.
    let ours = geglu(&[1.0, 2.0, 1.0, -1.0, 2.0, 1.0, 3.0, 0.0], 2);
    assert_close(&ours, &[0.841_344_746, -0.317_310_508, 5.991_900_6, 0.0], 1e-6);
}

#[test]
fn layer_norm_has_the_mean_and_variance_of_each_token() {
    let channels = 45;
    let input: Vec<f32> = noise(33 * channels, 29).iter().map(|x| x * 2.0 - 5.0).collect();
    let weight = noise(channels, 30);
    let bias = noise(channels, 31);
    let mut exact = vec![];
    for token in input.chunks(channels) {
        let mean = token.iter().map(|x| f64::from(*x)).sum::<f64>() / channels as f64;
        let variance = token.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / channels as f64;
        let normed = token.iter().map(|x| (f64::from(*x) - mean) / (variance + 1e-5).sqrt());
        exact.extend(normed.zip(weight.iter().zip(&bias)).map(|(x, (weight, bias))| x * f64::from(*weight) + f64::from(*bias)));
    }
    assert_close(&LayerNorm { weight: &weight, bias: &bias, eps: 1e-5 }.run(&input), &exact, 1e-5);
}

#[test]
fn activations_are_what_their_names_say() {
    let input: Vec<f32> = noise(40_000, 32).iter().map(|x| x * 20.0).collect();
    let gate = |x: f32, factor: f64| f64::from(x) / (1.0 + (-factor * f64::from(x)).exp());
    let mut ours = input.clone();
    silu(&mut ours);
    assert_close(&ours, &input.iter().map(|x| gate(*x, 1.0)).collect::<Vec<_>>(), 1e-6);
    ours.copy_from_slice(&input);
    quick_gelu(&mut ours);
    assert_close(&ours, &input.iter().map(|x| gate(*x, 1.702)).collect::<Vec<_>>(), 1e-6);
}

#[test]
fn a_transposed_matrix_has_its_rows_as_columns() {
    let rows = 19;
    let columns = 37;
    let input = noise(2 * rows * columns, 33);
    let turned = transpose(&input, rows, columns);
    for (at, number) in turned.iter().enumerate() {
        let matrix = at / (rows * columns);
        let column = at % (rows * columns) / rows;
        let row = at % rows;
        assert_eq!(number.to_bits(), input[(matrix * rows + row) * columns + column].to_bits());
    }
}

/// One of `batch` equal parts alone, computed by one thread, next to its part of the whole.
fn assert_alone_as_in_a_batch(batch: usize, input: &[f32], compute: impl Fn(&[f32]) -> Vec<f32> + Sync) {
    let whole = compute(input);
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    for (part, whole) in input.chunks(input.len() / batch).zip(whole.chunks(whole.len() / batch)) {
        let alone = one.install(|| compute(part));
        assert!(alone.iter().zip(whole).all(|(alone, whole)| alone.to_bits() == whole.to_bits()));
    }
}

#[test]
fn a_image_alone_is_the_same_bit_by_bit_as_in_a_batch() {
    let weight = noise(20 * 60 * 9, 13);
    for stride in [1, 2] {
        let c = Convolution { in_channels: 60, out_channels: 20, height: 19, width: 23, kernel: 3, stride, doubled: false };
        assert_alone_as_in_a_batch(3, &noise(3 * 60 * 19 * 23, 14), |images| c.run(images, &weight, Begin::default()));
    }
    let weight = noise(500 * 70, 15);
    let layer = Linear { weight: &weight, bias: Some(&weight[..70]), in_features: 500 };
    assert_alone_as_in_a_batch(5, &noise(5 * 77 * 500, 16), |input| layer.run(input, None));
    assert_alone_as_in_a_batch(3, &noise(3 * 90 * 24, 17), |input| {
        Attention { batch: input.len() / (90 * 24), channels: 24, heads: 2, causal: false }.run(input, input, input)
    });
    let weight = noise(8, 18);
    let bias = noise(8, 19);
    let norm = GroupNorm { weight: &weight, bias: &bias, groups: 2, eps: 1e-5, silu: true };
    assert_alone_as_in_a_batch(3, &noise(3 * 8 * 999, 20), |input| norm.run(input, 999));
}
