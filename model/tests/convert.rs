//! Weights travel between this project, the authors' PyTorch code and public SiT checkpoints without a change.
#![allow(clippy::unwrap_used)]

use deepflow_model::checkpoint::read_config;
use deepflow_model::convert::{convert, Options, SafetensorsFile, SingleHead, WeightSet};
use deepflow_model::patches::{PatchGrid, PatchOrder};
use deepflow_model::sampling::{sample, Method, NoiseSource, SamplerSettings};
use deepflow_model::torch_pickle::{PythonObject, TensorData, TorchFile, TorchWriter};
use deepflow_model::training::{LossSettings, OptimizerSettings, Trainer};
use deepflow_model::{Network, NetworkConfig, VeraConfig};
use dfdx::tensor::{Cpu, NoneTape, TensorFromVec};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn golden_dir() -> PathBuf {
    std::env::var_os("DEEPFLOW_GOLDEN_DIR").map_or_else(|| fixtures().join("golden"), PathBuf::from)
}

fn golden_checkpoints() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(golden_dir())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "pt"))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no *.pt in {}", golden_dir().display());
    found
}

fn all_values(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let file = SafetensorsFile::open(path).unwrap();
    let names: Vec<String> = file.tensors().map(|(name, ..)| name.to_owned()).collect();
    names
        .into_iter()
        .map(|name| {
            let data = file.read(&name).unwrap();
            let values = data.to_f32().unwrap();
            (name, (data.shape, values))
        })
        .collect()
}

#[test]
fn every_golden_checkpoint_gives_the_weights_torch_would_load() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("converted.safetensors");
    for checkpoint in golden_checkpoints() {
        let torch = TorchFile::open(&checkpoint).unwrap();
        for (key, weights) in [("model", WeightSet::Model), ("ema", WeightSet::Ema)] {
            let report = convert(
                &checkpoint,
                &output,
                &Options {
                    weights,
                    ..Options::default()
                },
            )
            .unwrap();
            let converted = all_values(&output);
            let stored = torch.root().get(key).unwrap();
            assert_eq!(converted.len(), stored.entries().unwrap().count());
            assert_eq!(report.tensors, converted.len());
            assert_eq!(
                report.step,
                torch.root().get("steps").unwrap().as_i64().map(|step| step as u64)
            );
            for (name, value) in stored.entries().unwrap() {
                let data = torch.read(value.as_tensor().unwrap()).unwrap();
                let name = name.as_str().unwrap();
                assert_eq!(converted[name], (data.shape.clone(), data.to_f32().unwrap()), "{name}");
            }
        }
    }
}

#[test]
fn the_golden_checkpoint_equals_the_third_step_of_its_case() {
    let folder = tempfile::tempdir().unwrap();
    let golden = all_values(&fixtures().join("golden/deepflow_3t.safetensors"));
    for (weights, prefix) in [(WeightSet::Model, "step3.param."), (WeightSet::Ema, "step3.ema.")] {
        let output = folder.path().join("converted.safetensors");
        let checkpoint = fixtures().join("golden/checkpoint_0000003.pt");
        let report = convert(
            &checkpoint,
            &output,
            &Options {
                weights,
                heads: Some(4),
                ..Options::default()
            },
        )
        .unwrap();
        let converted = all_values(&output);
        let mut compared = 0;
        for (name, expected) in &golden {
            let Some(name) = name.strip_prefix(prefix) else {
                continue;
            };
            assert_eq!(&converted[name], expected, "{name}");
            compared += 1;
        }
        assert!(compared > 100, "{compared} tensors compared");
        assert_eq!(report.config.branch_ends, [2, 4]);
        let metadata = SafetensorsFile::open(&output).unwrap().metadata().clone();
        let config: NetworkConfig = serde_json::from_str(&metadata["config"]).unwrap();
        assert_eq!(config, report.config);
        assert_eq!(
            (config.width, config.depth, config.classes, config.latent_size),
            (32, 6, 10, 8)
        );
        assert_eq!(
            (
                config.acceleration_width,
                config.projector_width,
                config.alignment_width
            ),
            (16, 16, Some(24))
        );
        assert_eq!(metadata["step"], "3");
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["a.safetensors", "b.safetensors"].map(|name| folder.path().join(name));
    for output in [&first, &second] {
        convert(
            fixtures().join("golden/checkpoint_0000003.pt"),
            output,
            &Options::default(),
        )
        .unwrap();
    }
    assert_eq!(std::fs::read(first).unwrap(), std::fs::read(second).unwrap());
}

/// Numbers without a pattern, the same on every machine.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn sit_config() -> NetworkConfig {
    NetworkConfig {
        width: 24,
        depth: 2,
        heads: 3,
        latent_size: 4,
        classes: 5,
        branch_ends: Vec::new(),
        ..NetworkConfig::default()
    }
}

/// A checkpoint as SiT publishes it: one `final_layer` with twice the channels, behind the prefixes of DDP and compile.
fn write_public_sit(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let network: Network<f32, Cpu> = Network::new(sit_config(), Cpu::default(), 7).unwrap();
    let mut tensors = BTreeMap::new();
    for (index, parameter) in network.parameters().into_iter().enumerate() {
        let name = parameter.name();
        if ["final_layer.0", "final_acc_layer", "dt_embedder"]
            .iter()
            .any(|unused| name.starts_with(unused))
        {
            continue;
        }
        let mut shape = parameter.shape().to_vec();
        if name.starts_with("final_layer.1.linear") {
            shape[0] *= 2;
        }
        let mut values = noise(shape.iter().product(), index as u64 + 1);
        values.iter_mut().for_each(|value| *value *= 0.3);
        tensors.insert(name.replace("final_layer.1", "final_layer"), (shape, values));
    }
    let mut writer = TorchWriter::create(path).unwrap();
    let mut dict = Vec::new();
    for (name, (shape, values)) in &tensors {
        let tensor = writer.tensor(&TensorData::from_f32(shape.clone(), values)).unwrap();
        dict.push((PythonObject::text(format!("module._orig_mod.{name}")), tensor));
    }
    writer.finish(&PythonObject::Dict(dict)).unwrap();
    tensors
}

fn load(path: &Path) -> Network<f32, Cpu> {
    let bytes = std::fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut network = Network::new(sit_config(), Cpu::default(), 0).unwrap();
    network.load_weights(&tensors).unwrap();
    network
}

fn velocity(network: &Network<f32, Cpu>, patches: &[f32], time: f64) -> Vec<f32> {
    let (tokens, values) = (network.config().tokens(), network.config().patch_values());
    let x = Cpu::default().tensor_from_vec(patches.to_vec(), (2 * tokens, values));
    let outputs = network.forward(&mut NoneTape, &x, &[vec![time]], &[3, 5]).unwrap();
    outputs.velocities[0].as_vec()
}

fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    let spread = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    assert!(spread > 0.1, "a test on zeros shows nothing");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance * spread, "{found} != {expected}");
    }
}

#[test]
fn a_sit_checkpoint_gives_its_own_velocity_at_the_mirrored_time_with_the_other_sign() {
    let folder = tempfile::tempdir().unwrap();
    let public = folder.path().join("SiT.pt");
    let tensors = write_public_sit(&public);
    let [folded, unfolded] = ["folded.safetensors", "unfolded.safetensors"].map(|name| folder.path().join(name));
    let options = Options {
        heads: Some(3),
        ..Options::default()
    };
    let report = convert(&public, &folded, &options).unwrap();
    assert!(
        report.notes.iter().any(|note| note.contains("learned variance")),
        "{:?}",
        report.notes
    );
    // Read as DiT nothing is folded: this is what SiT's own code computes.
    convert(
        &public,
        &unfolded,
        &Options {
            single_head: SingleHead::Dit,
            ..options
        },
    )
    .unwrap();
    let (ours, sit) = (load(&folded), load(&unfolded));

    // Of every pixel's eight outputs the first four are kept.
    let kept = &all_values(&unfolded)["final_layer.1.linear.bias"].1;
    let all = &tensors["final_layer.linear.bias"].1;
    let expected: Vec<f32> = all.chunks_exact(8).flat_map(|pixel| &pixel[..4]).copied().collect();
    assert_eq!(kept, &expected);

    let start = noise(2 * 4 * 16, 99);
    for time in [0.0, 0.04, 0.37, 0.5, 0.96, 1.0] {
        let theirs: Vec<f32> = velocity(&sit, &start, 1.0 - time).into_iter().map(|v| -v).collect();
        assert_close(&velocity(&ours, &start, time), &theirs, 1e-5);
    }

    // SiT's own sampler, from 0 to 1, and this project's, from 1 to 0, end at the same latents.
    let grid = PatchGrid::from(ours.config());
    let start: Vec<f64> = start.into_iter().map(f64::from).collect();
    let steps = 10;
    let mut theirs = start.clone();
    for step in 0..steps {
        let patches = grid.patchify(&theirs, PatchOrder::ChannelFirst);
        let patches: Vec<f32> = patches.into_iter().map(|value| value as f32).collect();
        let slope = velocity(&sit, &patches, step as f64 / steps as f64);
        let slope = grid.unpatchify(&slope, PatchOrder::ChannelLast).into_iter();
        theirs
            .iter_mut()
            .zip(slope)
            .for_each(|(x, v)| *x += f64::from(v) / steps as f64);
    }
    let settings = SamplerSettings {
        method: Method::Euler,
        steps,
        ..SamplerSettings::default()
    };
    let go_on = &mut |_| ControlFlow::Continue(());
    let mine = sample(&ours, &settings, &[3, 5], &Given(start), go_on)
        .unwrap()
        .unwrap();
    let narrow = |values: &[f64]| values.iter().map(|&value| value as f32).collect::<Vec<_>>();
    assert_close(&narrow(&mine), &narrow(&theirs), 1e-4);
}

/// Given latents as the noise that a sampler without noise on the way starts from.
struct Given(Vec<f64>);

impl NoiseSource for Given {
    fn initial(&self, sample: usize, out: &mut [f64]) {
        out.copy_from_slice(&self.0[sample * out.len()..][..out.len()]);
    }

    fn step(&self, _: usize, _: usize, _: &mut [f64]) {
        panic!("an ordinary equation has no noise on the way");
    }
}

/// DiT predicts noise: nothing is folded, and the report says what that means.
#[test]
fn a_dit_checkpoint_is_taken_as_it_is_and_said_to_be_a_start_only() {
    let folder = tempfile::tempdir().unwrap();
    let [public, taken] = ["DiT.pt", "dit.safetensors"].map(|name| folder.path().join(name));
    let tensors = write_public_sit(&public);
    let options = Options {
        heads: Some(3),
        single_head: SingleHead::Dit,
        ..Options::default()
    };
    let report = convert(&public, &taken, &options).unwrap();
    assert!(
        report.notes.iter().any(|note| note.contains("a start for fine-tuning")),
        "{:?}",
        report.notes
    );
    let values = all_values(&taken);
    for (name, value) in &tensors {
        if !name.starts_with("final_layer.linear") {
            assert_eq!(
                &values[&name.replace("final_layer.", "final_layer.1.")],
                value,
                "{name}"
            );
        }
    }
}

/// A network of our own whose branches and switches no rule of thumb would guess.
fn own_network(config: &NetworkConfig, path: &Path) {
    let network: Network<f32, Cpu> = Network::new(config.clone(), Cpu::default(), 3).unwrap();
    let optimizer = OptimizerSettings::default();
    let loss = LossSettings::published(config.branches());
    let trainer = Trainer::new(network, loss, optimizer, 1, 0).unwrap();
    trainer.save(path, &serde_json::Value::Null).unwrap();
}

#[test]
fn our_own_files_keep_their_configuration_on_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let uneven = NetworkConfig {
        depth: 5,
        branch_ends: vec![1, 4],
        acceleration_width: 8,
        class_dropout: 0.25,
        legacy_scaling: true,
        ..sit_config()
    };
    let checkpoint = folder.path().join("step-0000000");
    own_network(&uneven, &checkpoint);
    let [torch, back] = ["ours.pt", "back.safetensors"].map(|name| folder.path().join(name));
    // The whole folder: trained and averaged weights in one file.
    let report = convert(&checkpoint, &torch, &Options::default()).unwrap();
    assert_eq!((&report.config, report.step), (&uneven, Some(0)));
    let file = TorchFile::open(&torch).unwrap();
    let arguments = file.root().get("args").unwrap();
    assert_eq!(arguments.get("df_idxs").unwrap().as_str(), Some("[1,4]"));
    for key in ["model", "ema"] {
        assert_eq!(file.root().get(key).unwrap().entries().unwrap().count(), report.tensors);
    }
    // A torch file has no place for heads, and its arguments none for class dropout.
    let heads = Options {
        heads: Some(3),
        ..Options::default()
    };
    let report = convert(&torch, &back, &heads).unwrap();
    let expected = NetworkConfig {
        class_dropout: 0.1,
        ..uneven
    };
    assert_eq!(report.config, expected);
    assert_eq!(all_values(&back), all_values(&checkpoint.join("ema.safetensors")));
}

#[test]
fn networks_with_parts_of_vera_left_out_travel_too() {
    let folder = tempfile::tempdir().unwrap();
    let config = NetworkConfig {
        depth: 4,
        branch_ends: vec![3],
        vera: VeraConfig {
            acceleration: false,
            ..VeraConfig::default()
        },
        ..sit_config()
    };
    let checkpoint = folder.path().join("step-0000000");
    own_network(&config, &checkpoint);
    let output = folder.path().join("ours.safetensors");
    let report = convert(checkpoint.join("model.safetensors"), &output, &Options::default()).unwrap();
    assert_eq!(report.config, config);
    assert_eq!(all_values(&output), all_values(&checkpoint.join("model.safetensors")));
}

#[test]
fn heads_that_nothing_tells_are_left_open_and_not_made_up() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("converted.safetensors");
    let report = convert(
        fixtures().join("golden/checkpoint_0000003.pt"),
        &output,
        &Options::default(),
    )
    .unwrap();
    assert!(
        report.notes.iter().any(|note| note.contains("number of heads")),
        "{:?}",
        report.notes
    );
    assert_eq!(read_config(&output).unwrap().unwrap().heads, 0);
}

#[test]
fn a_checkpoint_without_average_gives_its_weights_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let [checkpoint, output] = ["weights.pt", "out.safetensors"].map(|name| folder.path().join(name));
    let torch = TorchFile::open(fixtures().join("golden/checkpoint_0000003.pt")).unwrap();
    let mut writer = TorchWriter::create(&checkpoint).unwrap();
    let mut dict = Vec::new();
    for (name, value) in torch.root().get("model").unwrap().entries().unwrap() {
        let data = torch.read(value.as_tensor().unwrap()).unwrap();
        dict.push((
            PythonObject::text(name.as_str().unwrap()),
            writer.tensor(&data).unwrap(),
        ));
    }
    let root = vec![(PythonObject::text("model"), PythonObject::Dict(dict))];
    writer.finish(&PythonObject::Dict(root)).unwrap();
    let report = convert(&checkpoint, &output, &Options::default()).unwrap();
    assert_eq!(
        report.source,
        "torch checkpoint, `model` weights (it has no `ema` ones)"
    );
}

/// `step`, `exp_avg` and `exp_avg_sq` of every parameter of an `opt`, by its place.
type StateByPlace = BTreeMap<i64, [Vec<f32>; 3]>;

/// The state of an `opt` and the settings of its group.
fn optimizer_of(file: &TorchFile) -> (StateByPlace, Vec<(String, Option<f64>)>) {
    let opt = file.root().get("opt").unwrap();
    let state = opt.get("state").unwrap();
    let state = state.entries().unwrap().map(|(place, entry)| {
        let part = |name| {
            let tensor = entry.get(name).unwrap().as_tensor().unwrap();
            file.read(tensor).unwrap().to_f32().unwrap()
        };
        (place.as_i64().unwrap(), ["step", "exp_avg", "exp_avg_sq"].map(part))
    });
    let group = opt.get("param_groups").unwrap().items().unwrap().next().unwrap();
    let settings = group.entries().unwrap();
    let settings = settings.map(|(name, value)| (name.as_str().unwrap().to_owned(), value.as_f64()));
    (state.collect(), settings.collect())
}

#[test]
fn the_authors_optimiser_comes_with_their_checkpoint_and_goes_back() {
    for checkpoint in golden_checkpoints() {
        let folder = tempfile::tempdir().unwrap();
        let [ours, back] = ["step-0000003", "back.pt"].map(|name| folder.path().join(name));
        let report = convert(&checkpoint, &ours, &Options::default()).unwrap();
        let original = TorchFile::open(&checkpoint).unwrap();
        let (state, settings) = optimizer_of(&original);
        assert!(
            report
                .notes
                .iter()
                .any(|note| note.contains("AdamW after 3 updates, learning rate 0.001, weight decay 0.01")),
            "{:?}",
            report.notes
        );

        // By name, as torch's documentation has it: in the order of the parameters, of which `pos_embed` is none.
        let moments = all_values(&ours.join("optimizer.safetensors"));
        let model = original.root().get("model").unwrap();
        let names = model.entries().unwrap().map(|(name, _)| name.as_str().unwrap());
        let names: Vec<&str> = names.filter(|name| *name != "pos_embed").collect();
        assert_eq!(names.len(), state.len());
        for (place, [_, first, second]) in &state {
            let name = names[*place as usize];
            assert_eq!(&moments[&format!("first_moment.{name}")].1, first, "{name}");
            assert_eq!(&moments[&format!("second_moment.{name}")].1, second, "{name}");
        }
        for (file, key) in [("model", "model"), ("ema", "ema")] {
            let weights = all_values(&ours.join(format!("{file}.safetensors")));
            for (name, value) in original.root().get(key).unwrap().entries().unwrap() {
                let data = original.read(value.as_tensor().unwrap()).unwrap();
                assert_eq!(weights[name.as_str().unwrap()].1, data.to_f32().unwrap());
            }
        }

        convert(&ours, &back, &Options::default()).unwrap();
        assert_eq!(optimizer_of(&TorchFile::open(&back).unwrap()), (state, settings));
        // A checkpoint is not written over.
        let error = convert(&checkpoint, &ours, &Options::default())
            .unwrap_err()
            .to_string();
        assert!(error.ends_with("is there already, expected a new folder"), "{error}");
    }
}

/// A checkpoint like the golden one, with another `opt`.
fn write_with_optimizer(path: &Path, change: impl Fn(usize, &mut TensorData, &mut f32), listed: std::ops::Range<i64>) {
    let torch = TorchFile::open(fixtures().join("golden/checkpoint_0000003.pt")).unwrap();
    let mut writer = TorchWriter::create(path).unwrap();
    let (mut dict, mut state) = (Vec::new(), Vec::new());
    for (name, value) in torch.root().get("model").unwrap().entries().unwrap() {
        let data = torch.read(value.as_tensor().unwrap()).unwrap();
        dict.push((
            PythonObject::text(name.as_str().unwrap()),
            writer.tensor(&data).unwrap(),
        ));
        if dict.len() == 1 && listed.end < 136 {
            continue;
        }
        let (mut moment, mut steps) = (data, 3.0);
        change(state.len(), &mut moment, &mut steps);
        let step = writer.tensor(&TensorData::from_f32(Vec::new(), &[steps])).unwrap();
        let moment = writer.tensor(&moment).unwrap();
        let entry = ["exp_avg", "exp_avg_sq"].map(|kind| (PythonObject::text(kind), moment.clone()));
        let entry = [vec![(PythonObject::text("step"), step)], entry.to_vec()].concat();
        state.push((PythonObject::Int(state.len() as i64), PythonObject::Dict(entry)));
    }
    let places = PythonObject::List(listed.map(PythonObject::Int).collect());
    let group = PythonObject::Dict(vec![(PythonObject::text("params"), places)]);
    let opt = vec![
        (PythonObject::text("state"), PythonObject::Dict(state)),
        (PythonObject::text("param_groups"), PythonObject::List(vec![group])),
    ];
    let root = vec![
        (PythonObject::text("model"), PythonObject::Dict(dict)),
        (PythonObject::text("opt"), PythonObject::Dict(opt)),
    ];
    writer.finish(&PythonObject::Dict(root)).unwrap();
}

#[test]
fn an_optimiser_of_all_parameters_is_read_and_one_of_another_network_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [torch, ours] = ["theirs.pt", "step"].map(|name| folder.path().join(name));
    let options = Options {
        branch_ends: Some(vec![2, 4]),
        ..Options::default()
    };
    // As when the optimiser was given `pos_embed` too: its values stand for the moments here.
    write_with_optimizer(&torch, |_, _, _| {}, 0..136);
    convert(&torch, &ours, &options).unwrap();
    let (weights, moments) = (
        all_values(&ours.join("model.safetensors")),
        all_values(&ours.join("optimizer.safetensors")),
    );
    assert_eq!(moments.len(), 2 * weights.len());
    for (name, expected) in &weights {
        assert_eq!(&moments[&format!("second_moment.{name}")], expected, "{name}");
    }
    std::fs::remove_dir_all(&ours).unwrap();

    let refused = |change: &dyn Fn(usize, &mut TensorData, &mut f32), listed| {
        write_with_optimizer(&torch, change, listed);
        let error = convert(&torch, &ours, &options).unwrap_err().to_string();
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "only the input is there"
        );
        error
    };
    let error = refused(&|_, _, _| {}, 0..77);
    assert!(
        error.ends_with("`opt`: is of 77 parameters, the network has 135"),
        "{error}"
    );
    let error = refused(
        &|place, moment, _| {
            if place == 1 {
                moment.shape.push(1);
            }
        },
        0..135,
    );
    assert!(
        error.contains("`exp_avg` of `x_embedder.proj.bias` has shape [32, 1], expected [32]"),
        "{error}"
    );
    let error = refused(
        &|place, _, steps| {
            if place == 5 {
                *steps = 2.0;
            }
        },
        0..135,
    );
    assert!(
        error.contains("was updated 2 times, parameters before it 3 times"),
        "{error}"
    );
}

#[test]
fn an_optimiser_whose_weights_are_folded_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let [public, ours] = ["SiT.pt", "step"].map(|name| folder.path().join(name));
    write_public_sit(&public);
    let options = Options {
        heads: Some(3),
        ..Options::default()
    };
    let report = convert(&public, &ours, &options).unwrap();
    assert!(
        report.notes.iter().any(|note| note.contains("no optimiser's state")),
        "{:?}",
        report.notes
    );
    assert!(!ours.join("optimizer.safetensors").exists());
    assert_eq!(
        all_values(&ours.join("model.safetensors")),
        all_values(&ours.join("ema.safetensors"))
    );

    // The same file as its trainer would keep it.
    let torch = TorchFile::open(&public).unwrap();
    let training = folder.path().join("training.pt");
    let mut writer = TorchWriter::create(&training).unwrap();
    let mut dict = Vec::new();
    for (name, value) in torch.root().entries().unwrap() {
        let data = torch.read(value.as_tensor().unwrap()).unwrap();
        dict.push((
            PythonObject::text(name.as_str().unwrap()),
            writer.tensor(&data).unwrap(),
        ));
    }
    let root = vec![
        (PythonObject::text("model"), PythonObject::Dict(dict)),
        (PythonObject::text("opt"), PythonObject::Dict(Vec::new())),
    ];
    writer.finish(&PythonObject::Dict(root)).unwrap();
    std::fs::remove_dir_all(&ours).unwrap();
    let report = convert(&training, &ours, &options).unwrap();
    assert!(
        report
            .notes
            .iter()
            .any(|note| note.contains("optimiser's state is left out")),
        "{:?}",
        report.notes
    );
    assert!(!ours.join("optimizer.safetensors").exists());
}

fn refusal(input: &Path, options: &Options) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.safetensors");
    let message = convert(input, &output, options).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        0,
        "nothing half-written stays behind"
    );
    message
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let checkpoint = fixtures().join("golden/checkpoint_0000003.pt");
    let ends = |ends: &[usize]| Options {
        branch_ends: Some(ends.to_vec()),
        ..Options::default()
    };
    assert!(refusal(&checkpoint, &ends(&[2])).contains("branch ends [2] do not fit 6 blocks and 2 VeRA blocks"));
    assert!(refusal(&checkpoint, &ends(&[4, 2])).contains("branch ends [4, 2]"));
    assert!(refusal(&fixtures().join("torch/hostile_zip.pt"), &Options::default()).contains("posix.system"));
    let linear = refusal(&fixtures().join("torch/zip.pt"), &Options::default());
    assert!(linear.contains("`x_embedder.proj.weight`: is missing"), "{linear}");
    let error = convert(&checkpoint, "out.bin", &Options::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("`bin` says no format"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.pt");
    let torch = TorchFile::open(&checkpoint).unwrap();
    for (change, expected) in [
        (
            "drop blocks.3.attn.qkv.weight",
            "tensor `blocks.3.attn.qkv.weight`: is missing, expected shape [96, 32]",
        ),
        ("add blocks.3.attn.extra", "tensor `blocks.3.attn.extra`: has no place"),
        (
            "add df_blocks.99999999999.acc_mlp.0.weight",
            "has 100000000000 VeRA blocks by its names, expected fewer than its 6 blocks",
        ),
        (
            "add df_blocks.18446744073709551615.acc_mlp.0.weight",
            "has 18446744073709551615 VeRA blocks by its names",
        ),
        (
            "short blocks.3.mlp.fc1.bias",
            "tensor `blocks.3.mlp.fc1.bias`: shape [127], expected [128]",
        ),
    ] {
        let (action, tensor) = change.split_once(' ').unwrap();
        let mut writer = TorchWriter::create(&broken).unwrap();
        let mut dict = Vec::new();
        for (name, value) in torch.root().get("ema").unwrap().entries().unwrap() {
            let name = name.as_str().unwrap();
            let mut data = torch.read(value.as_tensor().unwrap()).unwrap();
            if name == tensor && action == "drop" {
                continue;
            }
            if name == tensor && action == "short" {
                data.shape[0] -= 1;
                data.bytes.truncate(data.bytes.len() - 4);
            }
            dict.push((PythonObject::text(name), writer.tensor(&data).unwrap()));
        }
        if action == "add" {
            dict.push((
                PythonObject::text(tensor),
                writer.tensor(&TensorData::from_f32(vec![1], &[0.0])).unwrap(),
            ));
        }
        writer.finish(&PythonObject::Dict(dict)).unwrap();
        let options = Options {
            branch_ends: Some(vec![2, 4]),
            ..Options::default()
        };
        let message = refusal(&broken, &options);
        assert!(message.contains(expected), "{message}");
    }
}

/// Few numbers that call themselves the beginning of a network too large for any memory.
#[test]
fn claimed_sizes_are_not_made_before_they_are_borne_out() {
    let folder = tempfile::tempdir().unwrap();
    let claims = folder.path().join("claims.pt");
    for (embedder, modulation, expected) in [
        (
            [1 << 20, 1, 1, 1],
            [6, 3],
            "`x_embedder.proj.weight`: model.width = 1048576: must be at most 65536",
        ),
        (
            [1 << 16, 1, 1, 1],
            [6, 3],
            "`final_layer.adaLN_modulation.1.weight`: shape [6, 3], expected [131072, 65536]",
        ),
    ] {
        let mut writer = TorchWriter::create(&claims).unwrap();
        let mut dict = Vec::new();
        let outputs = [1, embedder[0]];
        for (name, shape) in [
            ("x_embedder.proj.weight", embedder.to_vec()),
            ("final_layer.linear.weight", outputs.to_vec()),
            ("final_layer.adaLN_modulation.1.weight", modulation.to_vec()),
        ] {
            let values = vec![0.0; shape.iter().product()];
            let tensor = writer.tensor(&TensorData::from_f32(shape, &values)).unwrap();
            dict.push((PythonObject::text(name), tensor));
        }
        writer.finish(&PythonObject::Dict(dict)).unwrap();
        let message = refusal(&claims, &Options::default());
        assert!(message.contains(expected), "{message}");
    }
}

/// Runs a script with the interpreter of DEEPFLOW_PYTHON; `None`, said aloud, when the modules are not there.
#[allow(clippy::print_stderr)]
fn python(script: &str, arguments: &[&Path]) -> Option<String> {
    let interpreter = std::env::var_os("DEEPFLOW_PYTHON").unwrap_or_else(|| "python3".into());
    let has_modules = Command::new(&interpreter)
        .args(["-c", "import torch, safetensors"])
        .output();
    if !has_modules.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "SKIPPED: {} has no torch and safetensors (set DEEPFLOW_PYTHON)",
            interpreter.to_string_lossy()
        );
        return None;
    }
    let output = Command::new(interpreter)
        .arg("-c")
        .arg(script)
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn torch_loads_what_we_write_under_the_names_of_the_authors() {
    let folder = tempfile::tempdir().unwrap();
    let original = fixtures().join("golden/checkpoint_0000003.pt");
    let [ours, back] = ["ours.safetensors", "back.pt"].map(|name| folder.path().join(name));
    convert(
        &original,
        &ours,
        &Options {
            heads: Some(4),
            ..Options::default()
        },
    )
    .unwrap();
    convert(&ours, &back, &Options::default()).unwrap();

    // Without Python: our own reader sees the same tensors in the same order as in the authors' file.
    let [before, after] = [&original, &back].map(|path| TorchFile::open(path).unwrap());
    let names = |file: &TorchFile| -> Vec<String> {
        let dict = file.root().get("ema").unwrap();
        dict.entries()
            .unwrap()
            .map(|(name, _)| name.as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&before), names(&after));

    // With the optimiser, by way of a checkpoint's folder.
    let [checkpoint, with_optimizer] = ["step-0000003", "with_optimizer.pt"].map(|name| folder.path().join(name));
    convert(&original, &checkpoint, &Options::default()).unwrap();
    convert(&checkpoint, &with_optimizer, &Options::default()).unwrap();

    let script = "
import sys, torch
from safetensors.torch import load_file
original, ours, back, with_optimizer = sys.argv[1:]
expected = torch.load(original, weights_only=False)
read = torch.load(back, weights_only=False)
torch.load(back, weights_only=False, mmap=True)
weights = load_file(ours)
assert list(read['ema']) == list(expected['ema'])
for name, tensor in expected['ema'].items():
    assert torch.equal(tensor, read['ema'][name]), name
    assert torch.equal(tensor, weights[name]), name
assert read['args'].df_idxs == '[2,4]' and read['steps'] == 3
read = torch.load(with_optimizer, weights_only=False)
names = [name for name in expected['model'] if name != 'pos_embed']
parameters = [torch.nn.Parameter(read['model'][name].clone()) for name in names]
optimizer = torch.optim.AdamW(parameters, lr=1.0)
optimizer.load_state_dict(read['opt'])
again, wanted = optimizer.state_dict(), expected['opt']
assert again['param_groups'] == wanted['param_groups'], again['param_groups']
assert again['state'].keys() == wanted['state'].keys()
for place, state in wanted['state'].items():
    for key, tensor in state.items():
        assert torch.equal(again['state'][place][key], tensor), (place, key)
# It goes on: a step with the gradients of nothing moves by momentum and decay, exactly as with the original's state.
straight = [torch.nn.Parameter(expected['model'][name].clone()) for name in names]
reference = torch.optim.AdamW(straight, lr=1.0)
reference.load_state_dict(wanted)
for stepped in (parameters, straight):
    for parameter in stepped:
        parameter.grad = torch.zeros_like(parameter)
optimizer.step(), reference.step()
assert all(torch.equal(a, b) for a, b in zip(parameters, straight))
assert not torch.equal(parameters[0], read['model'][names[0]])
print(len(weights))
";
    if let Some(output) = python(script, &[&original, &ours, &back, &with_optimizer]) {
        assert_eq!(output.trim(), "136");
    }
}
