//! The help text of every program and subcommand, word for word. `INSTA_UPDATE=always cargo test --release --test help`
//! writes the snapshots anew after a change that is meant.
#![allow(clippy::unwrap_used)]

mod support;

use support::program;

/// What `deepflow` shares with a program of its own.
const STAGES: [&str; 5] = ["encode", "train", "sample", "decode", "evaluate"];

fn help(name: &str, subcommands: &[String]) -> String {
    let output = program(name)
        .args(subcommands)
        .arg("--help")
        // The width of the text, and a folder that a default names.
        .env("COLUMNS", "100")
        .env("XDG_CACHE_HOME", "/home/you/.cache")
        .output()
        .unwrap();
    assert!(output.status.success(), "{name} {subcommands:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The names under "Commands:".
fn subcommands(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    list.take_while(|line| line.starts_with("  "))
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

/// A command and all below it, with their texts.
fn walk(name: &str, path: &[String], texts: &mut Vec<(String, String)>) {
    let text = help(name, path);
    let below = subcommands(&text);
    texts.push(([&[name.to_owned()], path].concat().join(" "), text));
    for subcommand in below {
        walk(name, &[path, &[subcommand]].concat(), texts);
    }
}

fn all() -> Vec<(String, String)> {
    let mut texts = Vec::new();
    walk("deepflow", &[], &mut texts);
    texts
}

#[test]
fn help_texts_are_the_recorded_ones() {
    let texts = all();
    assert!(texts.len() > 12, "{} commands found", texts.len());
    for (command, text) in texts {
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(command.replace(' ', "-"), text);
        });
    }
}

#[test]
fn every_help_text_has_an_example_that_begins_with_the_command() {
    for (command, text) in all() {
        let examples = text
            .split("Example")
            .nth(1)
            .unwrap_or_else(|| panic!("{command}: no example in {text}"));
        assert!(examples.contains(&format!("\n  {command}")), "{command}: {examples}");
    }
}

#[test]
fn a_stage_by_itself_explains_itself_as_within_deepflow() {
    // The program has a flag for its version.
    let shared = |text: &str| -> Vec<String> {
        let lines = text.lines().map(str::trim);
        lines
            .filter(|line| !line.is_empty() && !line.contains("ersion"))
            .map(str::to_owned)
            .collect()
    };
    for stage in STAGES {
        let (name, as_part) = (format!("deepflow-{stage}"), format!("deepflow {stage}"));
        let own = help(&name, &[]).replace(&name, &as_part);
        let within = help("deepflow", &[stage.to_owned()]);
        assert_eq!(shared(&own), shared(&within), "{stage}");
    }
}
