"""Runs the Rust loader and Python's loaders on the same latents, in turns, and prints a table.

    cargo build --release && python datasets/benches/peers/compare.py [--samples 16384] [--batch 256] [--workers 2] [--rounds 3]

Ours are `deepflow bench loader` on plain and on compressed shards. Needs the PyPI packages numpy, torch and webdataset. MosaicML Streaming is measured if this interpreter, or the one that
--streaming-python names, has `mosaicml-streaming` (its requirements clash with those of other packages). Every loader
reads warm files, shuffles, and delivers batches of (4, 32, 32) float32 drawn from the posterior's moments.
"""

import argparse
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

SHAPE = (8, 32, 32)
ROOT = pathlib.Path(__file__).resolve().parents[3]


def moments(number):
    import numpy

    generator = numpy.random.default_rng(number)
    values = generator.standard_normal(SHAPE, dtype="float32")
    values[4:] = 0.01 + 0.1 * abs(values[4:])
    return values.astype("float16")


def decode(array):
    """Mean plus deviation times noise, as every loader has to make it."""
    import torch

    values = torch.from_numpy(array).float()
    mean, deviation = values.chunk(2)
    return (mean + deviation * torch.randn_like(mean)) * 0.18215


def timed(batches, batch_size, samples):
    """Samples a second, without the start of the workers."""
    iterator = iter(batches)
    for _ in range(4):
        next(iterator)
    began, count = time.perf_counter(), 0
    for _ in range(samples // batch_size - 4):
        count += len(next(iterator)[0])
    return count / (time.perf_counter() - began)


def write_webdataset(folder, samples):
    import numpy
    import webdataset

    with webdataset.ShardWriter(f"{folder}/latents-%06d.tar", maxcount=1024, verbose=0) as writer:
        for number in range(samples):
            out = io.BytesIO()
            numpy.save(out, moments(number))
            writer.write({"__key__": f"{number:09}", "moments.npy": out.getvalue(), "cls": str(number % 1000)})


def measure_webdataset(folder, arguments):
    import numpy
    import torch
    import webdataset

    urls = sorted(str(path) for path in pathlib.Path(folder).glob("*.tar"))

    def decoded(sample):
        return decode(numpy.load(io.BytesIO(sample["moments.npy"]))), int(sample["cls"])

    dataset = webdataset.WebDataset(urls, shardshuffle=len(urls), resampled=True).shuffle(4096).map(decoded)
    loader = torch.utils.data.DataLoader(dataset, batch_size=arguments.batch, num_workers=arguments.workers)
    return timed(loader, arguments.batch, arguments.samples)


def write_files(folder, samples):
    import numpy

    for number in range(samples):
        numpy.save(f"{folder}/{number:09}.npy", moments(number))


def measure_files(folder, arguments):
    import numpy
    import torch

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return arguments.samples

        def __getitem__(self, number):
            return decode(numpy.load(f"{folder}/{number:09}.npy")), number % 1000

    loader = torch.utils.data.DataLoader(Files(), arguments.batch, shuffle=True, num_workers=arguments.workers)
    return timed(loader, arguments.batch, arguments.samples)


def write_streaming(folder, samples):
    from streaming import MDSWriter

    with MDSWriter(out=folder, columns={"moments": "ndarray:float16:8,32,32", "class": "int"}) as writer:
        for number in range(samples):
            writer.write({"moments": moments(number), "class": number % 1000})


def measure_streaming(folder, arguments):
    import torch
    from streaming import StreamingDataset

    class Latents(StreamingDataset):
        def __getitem__(self, number):
            sample = super().__getitem__(number)
            return decode(sample["moments"].copy()), sample["class"]

    dataset = Latents(local=folder, shuffle=True, batch_size=arguments.batch)
    loader = torch.utils.data.DataLoader(dataset, arguments.batch, num_workers=arguments.workers)
    return timed(loader, arguments.batch, arguments.samples)


PEERS = {
    "webdataset": (write_webdataset, measure_webdataset),
    "npy files": (write_files, measure_files),
    "mosaicml streaming": (write_streaming, measure_streaming),
}


def run_peer(name, folder, arguments):
    """One measurement in a process of its own, so that no loader inherits another's threads."""
    python = arguments.streaming_python if name == "mosaicml streaming" else sys.executable
    settings = ["--samples", str(arguments.samples), "--batch", str(arguments.batch), "--workers", str(arguments.workers)]
    command = [python, __file__, "--peer", name, "--folder", str(folder), *settings]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        reason = result.stderr.strip().splitlines()[-1:] or ["no reason given"]
        print(f"{name}: not measured ({reason[0]})", file=sys.stderr)
        return None
    return float(result.stdout.strip().splitlines()[-1])


OURS = {"deepflow, .tar": [], "deepflow, .tar.zst": ["--set", "output.zstd=3"]}


def run_ours(settings, arguments):
    command = [arguments.deepflow, "bench", "loader", "--json", "--batch", str(arguments.batch)]
    command += ["--steps", str(4 * arguments.samples // arguments.batch), "--set", f"data.readers={arguments.workers}"]
    result = subprocess.run(command + settings, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)["items_per_s"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=16384)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streaming-python", default=sys.executable)
    parser.add_argument("--deepflow", default=str(ROOT / "target" / "release" / "deepflow"))
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        write, measure = PEERS[arguments.peer]
        if not os.listdir(arguments.folder):
            write(arguments.folder, arguments.samples)
        print(measure(arguments.folder, arguments))
        return
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            for name, settings in OURS.items():
                rates.setdefault(name, []).append(run_ours(settings, arguments))
            for name in PEERS:
                place = pathlib.Path(folder) / name.replace(" ", "-")
                place.mkdir(exist_ok=True)
                rate = run_peer(name, place, arguments)
                if rate:
                    rates.setdefault(name, []).append(rate)
    reference = statistics.median(rates.get("webdataset", [float("nan")]))
    print(f"{'loader':24} {'samples/s':>12} {'of webdataset':>14}")
    for what, values in rates.items():
        rate = statistics.median(values)
        print(f"{what:24} {rate:12.0f} {rate / reference:13.1f}x")


if __name__ == "__main__":
    main()
