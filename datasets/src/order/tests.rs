use super::*;
use proptest::prelude::*;

/// These values are a promise to everyone who wants to repeat a run; a second implementation, in Python, gave the same.
#[test]
fn the_order_never_changes() {
    let head = |seed, epoch, count| (0..6).map(|index| order(seed, epoch, index, count)).collect::<Vec<_>>();
    assert_eq!(head(0, 0, 10), [4, 6, 2, 3, 1, 8]);
    assert_eq!(
        head(42, 0, 1_281_167),
        [503_102, 668_749, 984_031, 628_001, 923_004, 753_213]
    );
    assert_eq!(
        head(42, 1, 1_281_167),
        [746_943, 1_223_211, 914_812, 270_732, 290_728, 291_507]
    );
    let trillion = [
        136_114_111_564,
        532_421_332_968,
        854_926_277_926,
        925_511_943_139,
        157_588_178_858,
        547_977_290_584,
    ];
    assert_eq!(head(u64::MAX, u32::MAX, 1_000_000_000_000), trillion);

    let blocks = BlockOrder::shuffled(&[3, 4, 5, 6], 8, 42, 3);
    let places = (0..18)
        .map(|position| blocks.locate(position))
        .map(|(place, sample)| (blocks.shard(place), sample));
    #[rustfmt::skip]
    let expected = [
        (1, 0), (1, 1), (1, 3), (1, 2),
        (3, 1), (3, 2), (3, 3), (3, 5), (3, 4), (3, 0),
        (2, 1), (0, 1), (2, 3), (0, 2), (2, 4), (2, 2), (0, 0), (2, 0),
    ];
    assert_eq!(places.collect::<Vec<_>>(), expected);
}

proptest! {
    #[test]
    fn every_epoch_visits_every_sample_once(seed: u64, epoch: u32, count in 1_u64..3000) {
        let mut seen = vec![false; count as usize];
        for index in 0..count {
            let sample = order(seed, epoch, index, count) as usize;
            prop_assert!(!std::mem::replace(&mut seen[sample], true));
        }
    }

    #[test]
    fn block_orders_visit_every_sample_once_and_keep_to_their_block(
        seed: u64, epoch: u32, block in 1_u64..60, shards in prop::collection::vec(0_u64..20, 1..30),
    ) {
        let order = BlockOrder::shuffled(&shards, block, seed, epoch);
        let total: u64 = shards.iter().sum();
        let mut seen: Vec<Vec<bool>> = shards.iter().map(|&n| vec![false; n as usize]).collect();
        for position in 0..total {
            let (place, sample) = order.locate(position);
            prop_assert!(order.places(order.block_of(position)).contains(&place));
            prop_assert!(!std::mem::replace(&mut seen[order.shard(place)][sample], true));
        }
        for block_number in 0..order.blocks() {
            let places = order.places(block_number);
            let samples: u64 = places.clone().map(|place| shards[order.shard(place)]).sum();
            prop_assert!(places.len() == 1 || samples <= block);
        }
    }

    #[test]
    fn sequential_order_is_the_order_of_storage(shards in prop::collection::vec(0_u64..20, 1..30)) {
        let order = BlockOrder::sequential(&shards);
        let stored = shards.iter().enumerate().flat_map(|(shard, &n)| (0..n as usize).map(move |i| (shard, i)));
        for (position, expected) in stored.enumerate() {
            let (place, sample) = order.locate(position as u64);
            prop_assert_eq!((order.shard(place), sample), expected);
        }
    }
}

/// Chi-squared of a table that should be even, in standard deviations from its mean.
fn unevenness(counts: &[u32]) -> f64 {
    let expected = counts.iter().map(|&n| f64::from(n)).sum::<f64>() / counts.len() as f64;
    let chi_squared: f64 = counts
        .iter()
        .map(|&n| (f64::from(n) - expected).powi(2) / expected)
        .sum();
    let freedom = counts.len() as f64 - 1.0;
    (chi_squared - freedom) / (2.0 * freedom).sqrt()
}

#[test]
fn all_permutations_of_a_few_samples_are_equally_likely() {
    let mut counts = vec![0; 120];
    for seed in 0..24_000 {
        let permutation: Vec<u64> = (0..5).map(|index| order(seed, 0, index, 5)).collect();
        let rank = (0..5).fold(0, |rank, i| {
            let smaller = permutation[i + 1..]
                .iter()
                .filter(|&&later| later < permutation[i])
                .count();
            rank * (5 - i) + smaller
        });
        counts[rank] += 1;
    }
    let z = unevenness(&counts);
    assert!(z.abs() < 5.0, "off by {z} deviations: {counts:?}");
}

#[test]
fn every_sample_is_equally_likely_at_every_place_and_after_every_other() {
    for count in [17_u64, 64, 100] {
        let size = (count * count) as usize;
        let (mut places, mut successors) = (vec![0; size], vec![0; size]);
        for seed in 0..4000 {
            let epoch = epoch_permutation(seed, 5, count);
            let samples: Vec<u64> = (0..count).map(|index| epoch.get(index)).collect();
            for (index, &sample) in samples.iter().enumerate() {
                places[index * count as usize + sample as usize] += 1;
            }
            for pair in samples.windows(2) {
                successors[(pair[0] * count + pair[1]) as usize] += 1;
            }
        }
        let z = unevenness(&places);
        assert!(z.abs() < 5.0, "places of {count} samples are off by {z} deviations");
        // A sample never follows itself.
        let successors: Vec<u32> = successors
            .into_iter()
            .enumerate()
            .filter(|(i, _)| i / count as usize != i % count as usize)
            .map(|(_, n)| n)
            .collect();
        let z = unevenness(&successors);
        assert!(z.abs() < 5.0, "successors of {count} samples are off by {z} deviations");
    }
}

/// The mean distance, as a share of the data set, between the places of samples that are neighbours on disk. A uniform
/// permutation gives one third.
fn neighbour_distance(place_of: &[u64]) -> f64 {
    let total: u64 = place_of.windows(2).map(|pair| pair[0].abs_diff(pair[1])).sum();
    total as f64 / (place_of.len() - 1) as f64 / place_of.len() as f64
}

#[test]
fn neighbours_are_a_third_of_the_data_set_apart_in_global_order_and_a_third_of_a_block_in_block_order() {
    let (shards, samples) = (256_usize, 64_u64);
    let total = shards as u64 * samples;
    let mut place_of = vec![0; total as usize];
    let permutation = epoch_permutation(1, 0, total);
    for position in 0..total {
        place_of[permutation.get(position) as usize] = position;
    }
    let global = neighbour_distance(&place_of);
    assert!((global - 1.0 / 3.0).abs() < 0.01, "global order: {global}");

    for block in [64, 512, 4096, total] {
        let order = BlockOrder::shuffled(&vec![samples; shards], block, 1, 0);
        for position in 0..total {
            let (place, sample) = order.locate(position);
            place_of[order.shard(place) * samples as usize + sample] = position;
        }
        // Neighbours within a shard lie in the same block; one pair in 64 crosses from shard to shard.
        let within: Vec<f64> = place_of
            .chunks(samples as usize)
            .map(|shard| {
                let total: u64 = shard.windows(2).map(|pair| pair[0].abs_diff(pair[1])).sum();
                total as f64 / (samples - 1) as f64 / block as f64
            })
            .collect();
        let mean = within.iter().sum::<f64>() / within.len() as f64;
        assert!((mean - 1.0 / 3.0).abs() < 0.01, "blocks of {block}: {mean} of a block");
    }
}
