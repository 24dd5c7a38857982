use super::*;
use std::collections::HashSet;

/// The known answers that ship with Random123 (file kat_vectors, philox4x32 with 10 rounds).
#[test]
fn philox_gives_the_known_answers_of_random123() {
    let cases = [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        (
            [u32::MAX; 4],
            [u32::MAX; 2],
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
        ),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    for (counter, key, expected) in cases {
        assert_eq!(philox4x32_10(counter, key), expected);
    }
}

#[test]
fn a_fill_of_any_length_is_the_beginning_of_a_longer_one_and_equals_the_single_draws() {
    let stream = Stream::new(7, Purpose::Noise, 2, 1 << 40);
    let mut normal = vec![0.0; 1000];
    let mut uniform = vec![0.0; 1000];
    stream.fill_normal(&mut normal);
    stream.fill_uniform(&mut uniform);
    for length in [0, 1, 15, 16, 17, 63, 64, 65, 127, 129, 1000] {
        let mut short = vec![0.0; length];
        stream.fill_normal(&mut short);
        assert_eq!(short, normal[..length]);
    }
    for i in 0..1000 {
        assert_eq!(stream.normal(i).to_bits(), normal[i].to_bits(), "normal {i}");
        assert_eq!(stream.uniform(i).to_bits(), uniform[i].to_bits(), "uniform {i}");
    }
}

/// These bits are a promise: runs must reproduce across versions and platforms.
#[test]
fn the_draws_never_change() {
    let stream = Stream::new(42, Purpose::Posterior, 3, 1_000_000);
    let words: Vec<u32> = (0..4).map(|i| stream.word(i)).collect();
    let normals: Vec<u32> = (0..4).map(|i| stream.normal(i).to_bits()).collect();
    assert_eq!(words, GOLDEN_WORDS);
    assert_eq!(normals, GOLDEN_NORMAL_BITS);
}

const GOLDEN_WORDS: [u32; 4] = [480828714, 3087453475, 4231734795, 981839078];
const GOLDEN_NORMAL_BITS: [u32; 4] = [3210370518, 3190193926, 1032651372, 1058013381];

#[test]
fn every_part_of_the_name_makes_another_stream() {
    let base = (1u64, Purpose::Time, 1u32, 1u64);
    let names = [
        base,
        (2, Purpose::Time, 1, 1),
        (1 | 1 << 32, Purpose::Time, 1, 1),
        (1, Purpose::Flip, 1, 1),
        (1, Purpose::Time, 2, 1),
        (1, Purpose::Time, 1, 2),
        (1, Purpose::Time, 1, 1 | 1 << 32),
    ];
    let distinct: HashSet<u64> = names
        .iter()
        .map(|&(s, p, e, i)| Stream::new(s, p, e, i).word64(0))
        .collect();
    assert_eq!(distinct.len(), names.len());
}

#[test]
fn normal_draws_have_the_moments_and_tails_of_the_normal_distribution() {
    let count = 1 << 20;
    let mut draws = vec![0.0; count];
    Stream::new(9, Purpose::Noise, 0, 0).fill_normal(&mut draws);
    let mean_of = |f: &dyn Fn(f64) -> f64| draws.iter().map(|&z| f(f64::from(z))).sum::<f64>() / count as f64;
    // Standard errors: 1/√n, √2/√n, √15/√n, √96/√n.
    let unit = 1.0 / (count as f64).sqrt();
    assert!(mean_of(&|z| z).abs() < 5.0 * unit);
    assert!((mean_of(&|z| z * z) - 1.0).abs() < 5.0 * 1.42 * unit);
    assert!(mean_of(&|z| z * z * z).abs() < 5.0 * 3.88 * unit);
    assert!((mean_of(&|z| z.powi(4)) - 3.0).abs() < 5.0 * 9.8 * unit);
    for (bound, tail) in [
        (1.0, 0.317_310_5),
        (2.0, 0.045_500_26),
        (3.0, 0.002_699_796),
        (4.0, 6.334e-5),
    ] {
        let share = mean_of(&|z| f64::from(u8::from(z.abs() > bound)));
        assert!(
            (share - tail).abs() < 5.0 * (tail / count as f64).sqrt() + 1e-6,
            "beyond {bound}: {share}"
        );
    }
    let neighbours: f64 = draws.windows(2).map(|w| f64::from(w[0] * w[1])).sum::<f64>() / count as f64;
    let pairs: f64 = draws.windows(17).map(|w| f64::from(w[0] * w[16])).sum::<f64>() / count as f64;
    assert!(neighbours.abs() < 5.0 * unit && pairs.abs() < 5.0 * unit);
}

#[test]
fn uniform_draws_fill_the_unit_interval_evenly() {
    let stream = Stream::new(3, Purpose::Time, 0, 0);
    let mut draws = vec![0.0; 1 << 18];
    stream.fill_uniform(&mut draws);
    let mut bins = [0u32; 64];
    for &u in &draws {
        assert!((0.0..1.0).contains(&u));
        bins[(u * 64.0) as usize] += 1;
    }
    let expected = draws.len() as f64 / 64.0;
    let chi_squared: f64 = bins.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
    // 63 degrees of freedom: mean 63, deviation 11.2.
    assert!((20.0..120.0).contains(&chi_squared), "chi squared {chi_squared}");
    let doubles: f64 = (0..4096).map(|i| stream.uniform_f64(i)).sum::<f64>() / 4096.0;
    assert!((doubles - 0.5).abs() < 0.03);
    assert!((0..4096).all(|i| stream.below(i, 7) < 7));
}
