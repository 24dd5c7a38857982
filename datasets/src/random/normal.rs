//! Standard normal numbers by the Box–Muller transform, on arithmetic that rounds the same everywhere.
//!
//! `r = sqrt(-2 ln u)`, `(r cos 2πv, r sin 2πv)` with u of (0, 1]. The logarithm and the two trigonometric functions are
//! series on reduced arguments, exact to about one unit in the last place of f32, without branches or tables so that
//! the compiler makes vectors of them.

use super::philox::LANES;
use super::{Distribution, GROUP};
use std::f32::consts::{FRAC_PI_2, LN_2};

/// Two independent standard normal numbers from two words; magnitudes reach 6.7.
#[inline(always)]
pub(super) fn box_muller(first: u32, second: u32) -> (f32, f32) {
    let radius = (-2.0 * ln_of_fraction(first)).sqrt();
    let (cosine, sine) = cos_sin_of_turn(second);
    (radius * cosine, radius * sine)
}

pub(super) struct Normal;

impl Distribution for Normal {
    /// Words 0 and 1 of a group make the lanes 0 and 1 of the output, words 2 and 3 the lanes 2 and 3.
    #[inline(always)]
    fn convert(words: &[u32; GROUP], out: &mut [f32; GROUP]) {
        for (out, words) in out.chunks_exact_mut(2 * LANES).zip(words.chunks_exact(2 * LANES)) {
            let (cosines, sines) = out.split_at_mut(LANES);
            let (radii, angles) = words.split_at(LANES);
            for lane in 0..LANES {
                let (cosine, sine) = box_muller(radii[lane], angles[lane]);
                cosines[lane] = cosine;
                sines[lane] = sine;
            }
        }
    }
}

/// `ln((word + ½) / 2³²)`, at most 0.
#[inline(always)]
fn ln_of_fraction(word: u32) -> f32 {
    // The cast keeps 24 significant bits; the half keeps word 0 from being a zero, and the largest words round to one.
    let value = (word as f32 + 0.5) * (1.0 / (1u64 << 32) as f32);

    // value = mantissa · 2^exponent with the mantissa of [√½, √2).
    let bits = value.to_bits().wrapping_sub(0x3f35_04f3);
    let exponent = (bits as i32) >> 23;
    let mantissa = f32::from_bits((bits & 0x007f_ffff) + 0x3f35_04f3);

    // ln m = 2 atanh(s), s = (m - 1)/(m + 1), |s| < 0.172: five terms leave less than 2e-9.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let s2 = s * s;
    let tail = s2 * (1.0 / 3.0 + s2 * (1.0 / 5.0 + s2 * (1.0 / 7.0 + s2 * (1.0 / 9.0))));
    exponent as f32 * LN_2 + 2.0 * (s + s * tail)
}

/// Cosine and sine of `2π·word/2³²`.
#[inline(always)]
fn cos_sin_of_turn(word: u32) -> (f32, f32) {
    // The nearest quarter turn, and what is left of the angle, in [-π/4, π/4).
    let quarter = word.wrapping_add(1 << 29) >> 30;
    let rest = word.wrapping_sub(quarter << 30) as i32;
    let angle = rest as f32 * (FRAC_PI_2 / (1u32 << 30) as f32);

    let a2 = angle * angle;
    let sine = angle + angle * a2 * (-1.0 / 6.0 + a2 * (1.0 / 120.0 + a2 * (-1.0 / 5040.0 + a2 * (1.0 / 362_880.0))));
    let cosine =
        1.0 + a2 * (-0.5 + a2 * (1.0 / 24.0 + a2 * (-1.0 / 720.0 + a2 * (1.0 / 40_320.0 + a2 * (-1.0 / 3_628_800.0)))));

    let (x, y) = if quarter & 1 == 0 {
        (cosine, sine)
    } else {
        (sine, cosine)
    };
    // cos changes sign in the quarters 1 and 2, sin in 2 and 3.
    let x = f32::from_bits(x.to_bits() ^ ((quarter ^ (quarter >> 1)) & 1) << 31);
    let y = f32::from_bits(y.to_bits() ^ (quarter >> 1) << 31);
    (x, y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithm_agrees_with_f64_over_its_whole_range() {
        for word in (0..=u32::MAX)
            .step_by(65_537)
            .chain([0, 1, 2, 3, 1 << 24, (1 << 24) - 1, u32::MAX])
        {
            let exact = ((f64::from(word) + 0.5) / 4_294_967_296.0).ln();
            let error = (f64::from(ln_of_fraction(word)) - exact).abs();
            assert!(
                error <= 1.2e-7 * (1.0 + exact.abs()),
                "ln of word {word}: off by {error}"
            );
        }
    }

    #[test]
    fn cosine_and_sine_agree_with_f64_over_the_whole_turn() {
        for word in (0..=u32::MAX)
            .step_by(65_537)
            .chain([1 << 29, 3 << 29, 5 << 29, 7 << 29, u32::MAX])
        {
            let angle = f64::from(word) * std::f64::consts::TAU / 4_294_967_296.0;
            let (cosine, sine) = cos_sin_of_turn(word);
            assert!(
                (f64::from(cosine) - angle.cos()).abs() < 1.5e-7,
                "cosine of word {word}"
            );
            assert!((f64::from(sine) - angle.sin()).abs() < 1.5e-7, "sine of word {word}");
        }
    }
}
