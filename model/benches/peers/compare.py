"""Times DeepFlow beside PyTorch on the same CPU, taking turns: `deepflow bench`, PyTorch eager, PyTorch compiled.

    python model/benches/peers/compare.py --deepflow target/release/deepflow train --model b --batch 4 --compile

Needs torch (a C++ compiler for --compile). Prints a Markdown table: seconds from the start of the process to the first
step (without it), median and best seconds of a step, peak memory, and the ratios to PyTorch eager.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))

SETTINGS = {
    "b": [],
    "s": ["model.width=384", "model.heads=6"],
    "xl": ["model.width=1152", "model.heads=16", "model.depth=24", "model.branch_ends=[8, 16]"],
    "tiny": [
        "model.width=128", "model.heads=4", "model.depth=4", "model.branch_ends=[2]", "model.latent_size=8",
        "model.classes=10", "model.acceleration_width=256",
    ],
    "study": [
        "model.width=128", "model.heads=4", "model.latent_channels=8", "model.latent_size=8", "model.classes=10",
        "model.acceleration_width=256",
    ],
    "demo": [
        "model.width=192", "model.depth=6", "model.heads=6", "model.branch_ends=[3]", "model.latent_channels=8",
        "model.latent_size=8", "model.classes=10", "model.acceleration_width=384",
    ],
}
# What `deepflow bench` says when its network is made and the first step begins.
READY = "ready for the first step"


class Torch:
    """A process that does one step for every line it is sent."""

    def __init__(self, name, arguments, extra):
        self.name, self.seconds, self.peak = name, [], 0
        command = [sys.executable, os.path.join(HERE, "torch_network.py"), arguments.what]
        command += ["--model", arguments.model, "--batch", str(arguments.batch), "--threads", str(arguments.threads)]
        started = time.perf_counter()
        self.process = subprocess.Popen(
            command + extra, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        json.loads(self.process.stdout.readline())
        self.start = time.perf_counter() - started
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

    def __init__(self, name, arguments, threads, extra=()):
        self.name, self.seconds, self.peak, self.start = name, [], 0, float("inf")
        self.command = [arguments.deepflow, "bench", arguments.what, "--json"]
        self.command += ["--batch", str(arguments.batch), "--threads", str(threads)]
        for setting in [*SETTINGS[arguments.model], *extra]:
            self.command += ["--set", setting]

    def round(self, steps):
        started = time.perf_counter()
        command = [*self.command, "--steps", str(steps)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            for line in process.stderr:
                if READY in line:
                    self.start = min(self.start, time.perf_counter() - started)
                else:
                    sys.stderr.write(line)
            result = json.loads(process.stdout.read())
        self.seconds.append(result["median_s"])
        self.peak = max(self.peak, result["peak_rss_bytes"] or 0)


def processor():
    try:
        with open("/proc/cpuinfo") as lines:
            facts = dict(line.split(":", 1) for line in lines if ":" in line)
        facts = {key.strip(): value.strip() for key, value in facts.items()}
        model = f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"
        widest = next((name for name in ["avx512f", "avx2"] if name in facts["flags"].split()), "no AVX2")
        return f"{os.cpu_count()} × {model}, {widest}"
    except (OSError, KeyError):
        return f"{os.cpu_count()} × {platform.processor() or platform.machine()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "forward"])
    parser.add_argument("--deepflow", default="target/release/deepflow")
    parser.add_argument("--model", choices=SETTINGS, default="b")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps a round and peer")
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    parser.add_argument("--one-thread", action="store_true", help="also DeepFlow on one thread")
    parser.add_argument("--checkpoint-blocks", action="store_true", help="also DeepFlow with train.checkpoint_blocks")
    arguments = parser.parse_args()
    eager = Torch("PyTorch eager", arguments, [])
    peers = [DeepFlow("DeepFlow", arguments, arguments.threads), eager]
    if arguments.compile:
        peers.append(Torch("PyTorch compiled", arguments, ["--compile"]))
    if arguments.one_thread:
        peers.append(DeepFlow("DeepFlow, one thread", arguments, 1))
    if arguments.checkpoint_blocks:
        extra = ["train.checkpoint_blocks=true"]
        peers.append(DeepFlow("DeepFlow, checkpoint_blocks", arguments, arguments.threads, extra))
    for _ in range(arguments.rounds):
        for peer in peers:
            peer.round(arguments.steps)
    print(f"{processor()}; load {os.getloadavg()[0]:.1f}")
    print(f"{arguments.what}, {arguments.model}, batch {arguments.batch}, {arguments.threads} threads\n")
    print("| | start s | median s | best s | peak GB | time to eager | memory to eager |")
    print("|-|--------:|---------:|-------:|--------:|--------------:|----------------:|")
    for peer in peers:
        median, memory = statistics.median(peer.seconds), peer.peak / 1e9
        ratios = median / statistics.median(eager.seconds), peer.peak / eager.peak
        print(
            f"| {peer.name} | {peer.start:.2f} | {median:.4f} | {min(peer.seconds):.4f} | {memory:.2f} "
            f"| {ratios[0]:.2f} | {ratios[1]:.2f} |"
        )


if __name__ == "__main__":
    main()
