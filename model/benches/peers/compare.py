"""Times DeepFlow beside PyTorch on the same CPU, taking turns: `deepflow bench`, PyTorch eager, PyTorch compiled.

    python model/benches/peers/compare.py --deepflow target/release/deepflow train --model b --batch 4

Needs torch (a C++ compiler for --compile). Prints a Markdown table: median and best seconds a step, peak memory, and the
ratio to PyTorch eager.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))

SETTINGS = {
    "b": [],
    "s": ["model.width=384", "model.heads=6"],
    "xl": ["model.width=1152", "model.heads=16", "model.depth=24", "model.branch_ends=[8, 16]"],
    "tiny": [
        "model.width=128", "model.heads=4", "model.depth=4", "model.branch_ends=[2]", "model.latent_size=8",
        "model.classes=10", "model.acceleration_width=256",
    ],
}


class Torch:
    """A process that does one step for every line it is sent."""

    def __init__(self, name, arguments, extra):
        self.name, self.seconds, self.peak = name, [], 0
        command = [sys.executable, os.path.join(HERE, "torch_network.py"), arguments.what]
        command += ["--model", arguments.model, "--batch", str(arguments.batch), "--threads", str(arguments.threads)]
        self.process = subprocess.Popen(
            command + extra, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        json.loads(self.process.stdout.readline())
        self.step()  # warms up, and compiles

    def step(self):
        self.process.stdin.write("\n")
        result = json.loads(self.process.stdout.readline())
        self.peak = max(self.peak, result["peak_rss_bytes"])
        return result["step_s"]

    def round(self, steps):
        self.seconds.append(statistics.median(self.step() for _ in range(steps)))


class DeepFlow:
    """One run of the benchmark a round; it warms up by itself."""

    def __init__(self, arguments):
        self.name, self.seconds, self.peak, self.arguments = "deepflow", [], 0, arguments

    def round(self, steps):
        command = [self.arguments.deepflow, "bench", self.arguments.what, "--json", "--steps", str(steps)]
        command += ["--batch", str(self.arguments.batch), "--threads", str(self.arguments.threads)]
        for setting in SETTINGS[self.arguments.model]:
            command += ["--set", setting]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        self.seconds.append(result["median_s"])
        self.peak = max(self.peak, result["peak_rss_bytes"] or 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "forward"])
    parser.add_argument("--deepflow", default="target/release/deepflow")
    parser.add_argument("--model", choices=SETTINGS, default="b")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    arguments = parser.parse_args()
    eager = Torch("PyTorch eager", arguments, [])
    peers = [DeepFlow(arguments), eager]
    if arguments.compile:
        peers.append(Torch("PyTorch compiled", arguments, ["--compile"]))
    for _ in range(arguments.rounds):
        for peer in peers:
            peer.round(arguments.steps)
    print(f"{arguments.what}, {arguments.model}, batch {arguments.batch}, {arguments.threads} threads\n")
    print("| | median s | best s | peak GB | time to eager | memory to eager |")
    print("|-|---------:|-------:|--------:|--------------:|----------------:|")
    for peer in peers:
        median, memory = statistics.median(peer.seconds), peer.peak / 1e9
        ratios = median / statistics.median(eager.seconds), peer.peak / eager.peak
        print(
            f"| {peer.name} | {median:.4f} | {min(peer.seconds):.4f} | {memory:.2f} "
            f"| {ratios[0]:.2f} | {ratios[1]:.2f} |"
        )


if __name__ == "__main__":
    main()
