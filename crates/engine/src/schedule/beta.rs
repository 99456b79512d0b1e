//! Quantiles of the beta distribution whose two parameters are 0.6: noise levels dense at both ends.

/// Both parameters, in diffusers' `_convert_to_beta`.
const SHAPE: f64 = 0.6;

/// The number of [0, 1] that a share `probability` of the distribution lies below.
pub(super) fn quantile(probability: f64) -> f64 {
    if probability > 0.5 {
        // Its two halves are mirror images.
        return 1.0 - quantile(1.0 - probability);
    }
    let half = below(0.5);
    let mut low = 0.0_f64;
    let mut high = 0.5_f64;
    loop {
        let middle = low + (high - low) / 2.0;
        if middle <= low || middle >= high {
            return middle;
        }
        if below(middle) / (2.0 * half) < probability {
            low = middle;
        } else {
            high = middle;
        }
    }
}

/// The integral of `(t·(1 − t))^(SHAPE − 1)` from 0 to `x`, at most one half: the continued fraction 8.17.22 of the NIST handbook (DLMF), by
/// Lentz's method.
fn below(x: f64) -> f64 {
    const PRECISION: f64 = 1e-16;
    if x <= 0.0 {
        return 0.0;
    }
    let mut numerator = 1.0_f64;
    let mut denominator = 1.0 / (1.0 - 2.0 * SHAPE * x / (SHAPE + 1.0));
    let mut fraction = denominator;
    for term in 1..500 {
        let m = f64::from(term);
        let even = m * (SHAPE - m) * x / ((SHAPE + 2.0 * m - 1.0) * (SHAPE + 2.0 * m));
        denominator = 1.0 / (1.0 + even * denominator);
        numerator = 1.0 + even / numerator;
        fraction *= numerator * denominator;
        let odd = -(SHAPE + m) * (2.0 * SHAPE + m) * x / ((SHAPE + 2.0 * m) * (SHAPE + 2.0 * m + 1.0));
        denominator = 1.0 / (1.0 + odd * denominator);
        numerator = 1.0 + odd / numerator;
        let change = numerator * denominator;
        fraction *= change;
        if (change - 1.0).abs() < PRECISION {
            break;
        }
    }
    (x * (1.0 - x)).powf(SHAPE) / SHAPE * fraction
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_are_those_of_scipy() {
        // scipy.stats.beta.ppf(p, 0.6, 0.6)
        let expected = [
            (0.005, 0.000_271_313_256_896),
            (0.1, 0.039_584_405_588_781),
            (0.5, 0.5),
            (0.77, 0.846_162_414_232_35),
            (0.995, 0.999_728_686_743_104),
        ];
        for (probability, quantile_of_scipy) in expected {
            let ours = quantile(probability);
            assert!((ours - quantile_of_scipy).abs() < 1e-12, "{probability}: {ours}");
        }
        assert!(quantile(0.0).abs() < 1e-300 && (quantile(1.0) - 1.0).abs() < f64::EPSILON);
    }
}
