#![allow(clippy::unwrap_used)]
use super::*;
use crate::bench::SyntheticDataset;
use crate::OpenOptions;

/// What a loader has opened once it has delivered its first batch at `consumed` of a hundred thousand samples.
fn shards_opened(consumed: u64) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let synthetic = SyntheticDataset {
        samples: 100_000,
        samples_per_shard: 100,
        distinct_shards: 2,
        latent_shape: [1, 2, 2],
        ..SyntheticDataset::default()
    };
    synthetic.write(folder.path()).unwrap();
    let dataset = Arc::new(Dataset::open(folder.path(), OpenOptions::default()).unwrap());
    let config = LoaderConfig {
        batch_size: 4,
        prefetch: 1,
        ..LoaderConfig::default()
    };
    let mut loader = Loader::new(Arc::clone(&dataset), &config, LoaderState { epoch: 3, consumed }).unwrap();
    assert_eq!(loader.next_batch().unwrap().unwrap().positions[0], consumed);
    drop(loader);
    dataset.opened_shards()
}

#[test]
fn continuing_far_into_an_epoch_of_plain_tars_opens_no_more_than_beginning_it() {
    // The batch delivered and the one made ahead, each sample in a shard of its own.
    for consumed in [0, 99_000] {
        let opened = shards_opened(consumed);
        assert!(opened <= 8, "at {consumed}: {opened} shards");
    }
}
