//! The demo, with few steps: the four binaries one by one give what it gives, and it goes on where it was stopped.
#![allow(clippy::unwrap_used)]

mod support;

use support::{assert_same, files, program, stderr};

#[test]
fn the_stages_one_by_one_give_what_the_demo_gives() {
    let folder = tempfile::tempdir().unwrap();
    let demo = folder.path().join("demo");
    let text = |name: &str| demo.join(name).display().to_string();
    let run = || {
        program("deepflow")
            .args(["demo", "--steps", "3", "--out"])
            .arg(&demo)
            .output()
            .unwrap()
    };
    let output = run();
    assert!(output.status.success(), "{}", stderr(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.contains("contact-sheet.png") && said.contains("loss.png"),
        "{said}"
    );

    let sheet = image::open(demo.join("contact-sheet.png")).unwrap().into_luma8();
    assert!(sheet.width() > 600 && sheet.height() > 1000);
    // Real trousers and real bags do not look alike: the rows of the classes differ.
    let row = |class: u32| {
        sheet
            .rows()
            .nth((class * 144 + 30) as usize)
            .unwrap()
            .map(|pixel| pixel.0[0])
            .collect::<Vec<_>>()
    };
    assert_ne!(row(1), row(8));

    // The commands are those that the demo names in its log.
    let log = stderr(&output);
    for line in log
        .lines()
        .filter_map(|line| line.split_once("deepflow ").map(|(_, command)| command))
    {
        let mut words = line.split_whitespace();
        let stage = words.next().unwrap();
        let again = words.map(|word| {
            ["latents", "run", "generated", "decoded"]
                .into_iter()
                .find(|name| word == text(name))
                .map_or_else(
                    || word.to_owned(),
                    |name| folder.path().join(name).display().to_string(),
                )
        });
        let output = program(&format!("deepflow-{stage}")).args(again).output().unwrap();
        assert!(output.status.success(), "{stage}: {}", stderr(&output));
    }
    for (part, endings) in [
        ("latents", &[".tar", "index.json", ".safetensors"][..]),
        ("run", &[".safetensors"][..]),
        ("generated", &[".tar", "index.json"][..]),
        ("decoded", &[".png"][..]),
    ] {
        assert_same(
            &files(&demo.join(part), endings),
            &files(&folder.path().join(part), endings),
        );
    }

    let before = files(&demo, &[".tar", ".safetensors", ".png"]);
    std::fs::remove_file(demo.join("generated/index.json")).unwrap();
    std::fs::remove_file(demo.join("contact-sheet.png")).unwrap();
    assert!(run().status.success());
    assert_same(&before, &files(&demo, &[".tar", ".safetensors", ".png"]));
}
