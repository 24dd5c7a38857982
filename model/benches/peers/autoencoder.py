#!/usr/bin/env python3
"""Encode and decode with diffusers and with `deepflow bench encode|decode`, in turn, on the same random weights.

    cargo build --release
    python3 model/benches/peers/autoencoder.py [encode decode] [--size 256] [--rounds 3] [--threads 2]

Stable Diffusion's architecture, f32, one picture at a time. Prints a JSON line for each: the best and median seconds of
both, and their ratios; below 1 this project is faster. Its time is that of the whole stage, with reading, cropping and
writing beside the autoencoder; diffusers' is that of the autoencoder alone.
"""

import argparse
import json
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL

DEEPFLOW = Path(__file__).resolve().parents[3] / "target/release/deepflow"


def stable_diffusion_vae():
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
    ).eval()


def deepflow(options, what, weights):
    settings = ["codec.kind=autoencoder-kl", f"codec.weights={weights}", f"codec.size={options.size}"]
    command = [options.deepflow, "bench", what, "--batch=1", f"--steps={options.steps}", f"--threads={options.threads}"]
    command += ["--json", *(f"--set={setting}" for setting in settings)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(options, what, diffusers, weights):
    theirs, ours = [], []
    diffusers()
    for _ in range(options.rounds):
        for _ in range(options.steps):
            start = time.perf_counter()
            diffusers()
            theirs.append(time.perf_counter() - start)
        ours.append(deepflow(options, what, weights))
    seconds = [run["median_s"] for run in ours]
    return {
        "what": what,
        "size": options.size,
        "threads": options.threads,
        "diffusers_best_s": round(min(theirs), 3),
        "deepflow_best_s": round(min(seconds), 3),
        "ratio_best": round(min(seconds) / min(theirs), 3),
        "diffusers_median_s": round(statistics.median(theirs), 3),
        "deepflow_median_s": round(statistics.median(seconds), 3),
        "ratio_median": round(statistics.median(seconds) / statistics.median(theirs), 3),
        "diffusers_peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "deepflow_peak_rss_mib": max(run["peak_rss_bytes"] for run in ours) >> 20,
        "deepflow_time": ours[-1]["time"],
    }


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("what", nargs="*", default=["encode", "decode"], help="encode, decode or both")
    arguments.add_argument("--deepflow", default=DEEPFLOW, help="the program [default: target/release/deepflow]")
    arguments.add_argument("--size", type=int, default=256, help="side of the picture in pixels")
    arguments.add_argument("--rounds", type=int, default=3, help="turns of each")
    arguments.add_argument("--steps", type=int, default=2, help="timed steps of a turn")
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    vae = stable_diffusion_vae()
    picture = torch.randn(1, 3, options.size, options.size)
    latent = torch.randn(1, 4, options.size // 8, options.size // 8)
    work = {"encode": lambda: vae.encode(picture).latent_dist.std, "decode": lambda: vae.decode(latent).sample}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        vae.save_pretrained(folder)
        for what in options.what:
            print(json.dumps(compare(options, what, work[what], folder)), flush=True)


if __name__ == "__main__":
    main()
