#![allow(clippy::unwrap_used)]
use super::*;

fn load(text: &str, settings: &[&str]) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, text).unwrap();
    let args = ConfigArgs {
        config: Some(path),
        settings: settings.iter().map(|&setting| setting.to_owned()).collect(),
    };
    let shown = folder.path().display().to_string() + "/";
    args.load(&[]).map_err(|error| error.to_string().replace(&shown, ""))
}

#[test]
fn file_overrides_defaults_and_set_overrides_the_file() {
    let config = load(
        "[train]\nsteps = 10\nbatch = 8\n",
        &["train.steps=20", "sample.sampler=heun"],
    )
    .unwrap();
    assert_eq!((config.train.steps, config.train.batch), (20, 8));
    assert_eq!(config.sample.sampler, Sampler::Heun);
    assert_eq!(config.train.learning_rate, TrainConfig::default().learning_rate);
}

#[test]
fn unknown_keys_are_refused_with_file_line_and_the_nearest_key() {
    let error = load("[train]\nsteps = 10\n\nlearning_rat = 1\n", &[]).unwrap_err();
    assert_eq!(
        error,
        "run.toml:4: unknown key `train.learning_rat`; did you mean `train.learning_rate`?"
    );
    let error = load("[trian]\nsteps = 10\n", &[]).unwrap_err();
    assert_eq!(error, "run.toml:1: unknown section [trian]; did you mean `train`?");
    let error = load("[train]\nguidance = 2\n", &[]).unwrap_err();
    assert_eq!(
        error,
        "run.toml:2: unknown key `train.guidance`; did you mean `sample.guidance`?"
    );
    let error = load("", &["model.widht=3"]).unwrap_err();
    assert_eq!(error, "--set: unknown key `model.widht`; did you mean `model.width`?");
    let error = load("learning_rate = 3\n", &[]).unwrap_err();
    assert_eq!(
        error,
        "run.toml:1: unknown section [learning_rate]; did you mean `train.learning_rate`?"
    );
}

#[test]
fn values_of_another_type_name_the_key_and_the_line() {
    let error = load("[train]\nbatch = \"many\"\n", &[]).unwrap_err();
    assert!(
        error == "run.toml:2: `train.batch`: invalid type: string \"many\", expected a whole number of at least 0",
        "{error}"
    );
    let error = load("", &["sample.sampler=helm"]).unwrap_err();
    assert!(
        error.starts_with("--set: `sample.sampler`: unknown variant `helm`, expected one of"),
        "{error}"
    );
    assert!(!error.contains("in `sample.sampler`"), "{error}");
    let error = load("", &["train.ema_warmup=3"]).unwrap_err();
    assert!(error.ends_with("expected true or false"), "{error}");
    let error = load("", &["codec.channels=49"]).unwrap_err();
    assert_eq!(
        error,
        "--set: `codec.channels` is 49, expected at most 48, the values of a colour patch of codec.patch = 4"
    );
    let error = load("", &["codec.size=100000"]).unwrap_err();
    assert_eq!(error, "--set: `codec.size` is 100000, expected at most 16384");
    let error = load("", &["codec.patch=64"]).unwrap_err();
    assert_eq!(
        error,
        "--set: `codec.patch` is 64, expected at most 32 for codec.kind = \"pca\", whose memory grows with its fourth power"
    );
    load("", &["codec.patch=64", "codec.kind=identity"]).unwrap();
    let error = load("[train\n", &[]).unwrap_err();
    assert!(error.starts_with("run.toml:1: "), "{error}");
}

#[test]
fn values_that_break_a_rule_name_the_key_and_the_rule() {
    let error = load("[train]\nbatch = 10\naccumulation = 3\n", &[]).unwrap_err();
    assert_eq!(
        error,
        "run.toml:3: `train.accumulation` is 3, expected a divisor of train.batch = 10"
    );
    let error = load("", &["loss.branch_weights=[1,1,1,1,1]"]).unwrap_err();
    assert!(
        error.contains("`loss.branch_weights` has 5 values, expected one for each of the"),
        "{error}"
    );
    let error = load("", &["train.beta2=1.0"]).unwrap_err();
    assert_eq!(error, "--set: `train.beta2` is 1, expected at least 0 and below 1");
}

#[test]
fn the_resolved_file_reads_back_as_the_same_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let config = load(
        "",
        &["data.shards=somewhere", "train.learning_rate=3e-4", "output.zstd=3"],
    )
    .unwrap();
    config.save(folder.path()).unwrap();
    assert_eq!(Config::read(&folder.path().join(Config::FILE_NAME)).unwrap(), config);
}

#[test]
fn tables_within_sections_are_checked_too() {
    let config = load("[model.vera]\nacceleration = false\n", &["model.vera.time_gap=false"]).unwrap();
    assert_eq!(
        (config.model.vera.acceleration, config.model.vera.time_gap),
        (false, false)
    );
    assert!(config.model.vera.cross_attention);
    let error = load("[model.vera]\naceleration = false\n", &[]).unwrap_err();
    assert_eq!(
        error,
        "run.toml:2: unknown key `model.vera.aceleration`; did you mean `model.vera.acceleration`?"
    );
    let error = load("[model]\nvera = 3\n", &[]).unwrap_err();
    assert_eq!(
        error,
        "run.toml:2: `model.vera` is a value, expected a section [model.vera]"
    );
}

#[test]
fn rules_of_the_network_name_their_key() {
    let error = load("[model]\nheads = 5\n", &[]).unwrap_err();
    assert_eq!(error, "run.toml:2: `model.heads` is 5: must divide model.width = 768");
    assert_eq!(
        load("[model]\nalignment_width = 6\n", &[])
            .unwrap()
            .model
            .alignment_width,
        Some(6)
    );
}

#[test]
fn the_first_difference_is_named() {
    let (one, other) = (
        Config::default(),
        load("", &["train.batch=4", "train.steps=3"]).unwrap(),
    );
    let difference = one.difference(&other, &["train.steps"]);
    assert_eq!(
        difference,
        Some(("train.batch".to_owned(), "256".to_owned(), "4".to_owned()))
    );
    assert_eq!(one.difference(&other, &["train.steps", "train.batch"]), None);
}
