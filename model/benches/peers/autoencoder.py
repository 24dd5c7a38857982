#!/usr/bin/env python3
"""Encode and decode with diffusers and with this project's autoencoder, in turn, on the same random weights.

    cargo bench -p deepflow-model --bench autoencoder --no-run   # names the executable
    python3 model/benches/peers/autoencoder.py EXECUTABLE [--size 256] [--rounds 4] [--threads 2]

Prints the best and median seconds of both and the ratio of each; below 1 this project is faster.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

import torch
from diffusers import AutoencoderKL


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


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("executable")
    arguments.add_argument("--size", type=int, default=256)
    arguments.add_argument("--rounds", type=int, default=4)
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    environment = {**os.environ, "RAYON_NUM_THREADS": str(options.threads)}
    vae = stable_diffusion_vae()
    picture = torch.randn(1, 3, options.size, options.size)
    latent = torch.randn(1, 4, options.size // 8, options.size // 8)
    work = {"encode": lambda: vae.encode(picture).latent_dist.std, "decode": lambda: vae.decode(latent).sample}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        vae.save_pretrained(folder)
        for what, diffusers in work.items():
            theirs, ours, memory = [], [], 0
            diffusers()
            for _ in range(options.rounds):
                start = time.perf_counter()
                diffusers()
                theirs.append(time.perf_counter() - start)
                command = [options.executable, what, str(options.size), "1", folder]
                line = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
                result = json.loads(line)
                ours.append(result["best_s"])
                memory = max(memory, result["peak_rss_bytes"])
            print(
                json.dumps(
                    {
                        "what": what,
                        "size": options.size,
                        "threads": options.threads,
                        "diffusers_best_s": round(min(theirs), 3),
                        "ours_best_s": round(min(ours), 3),
                        "ratio_best": round(min(ours) / min(theirs), 3),
                        "diffusers_median_s": round(statistics.median(theirs), 3),
                        "ours_median_s": round(statistics.median(ours), 3),
                        "ratio_median": round(statistics.median(ours) / statistics.median(theirs), 3),
                        "ours_peak_rss_mib": memory >> 20,
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
