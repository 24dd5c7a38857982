#!/usr/bin/env python3
"""Inception-v3 with torchvision and with this project, in turn, on random weights and equal batches.

    cargo bench -p deepflow-model --bench inception --no-run   # names the executable
    python3 model/benches/peers/inception.py EXECUTABLE [--batch 16] [--rounds 5] [--threads 2]

torchvision's network is what pytorch-fid runs, but for pools that take the same time. Prints the best and median seconds a
picture of both and the ratio of each; below 1 this project is faster.
"""

import argparse
import json
import os
import statistics
import subprocess
import time

import torch
import torchvision


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("executable")
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    environment = {**os.environ, "RAYON_NUM_THREADS": str(options.threads)}
    network = torchvision.models.inception_v3(weights=None, aux_logits=False, num_classes=1008, init_weights=False).eval()
    pictures = torch.rand(options.batch, 3, 299, 299)
    theirs, ours = [], []
    with torch.inference_mode():
        network(pictures)
        for _ in range(options.rounds):
            start = time.perf_counter()
            network(pictures)
            theirs.append((time.perf_counter() - start) / options.batch)
            command = [options.executable, str(options.batch), "1"]
            line = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            ours.append(json.loads(line)["best_s"])
    print(
        json.dumps(
            {
                "what": "inception",
                "batch": options.batch,
                "threads": options.threads,
                "torchvision_best_s": round(min(theirs), 4),
                "ours_best_s": round(min(ours), 4),
                "ratio_best": round(min(ours) / min(theirs), 3),
                "torchvision_median_s": round(statistics.median(theirs), 4),
                "ours_median_s": round(statistics.median(ours), 4),
                "ratio_median": round(statistics.median(ours) / statistics.median(theirs), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
