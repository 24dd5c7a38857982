#!/usr/bin/env python3
"""The picture path against Pillow, on one thread each, interleaved.

    cargo bench -p deepflow-preprocess --bench picture_path --no-run
    pillow.py BENCH_BINARY [PHOTOGRAPH ...]

Photographs can be had from the wheels of scikit-image (data/*.png) and scikit-learn (datasets/images/*.jpg).
Cuts 500x375 pieces out of the photographs, saves them as JPEG (quality 90, 4:2:0), and times decoding with
guided-diffusion's centre crop to 256, and writing the squares as PNG at Pillow's default level.
"""
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIZE, ROUNDS, REPEATS = 256, 5, 5


def pieces(paths):
    for path in paths:
        image = Image.open(path).convert("RGB")
        scale = max(500 / image.width, 375 / image.height, 0.5)
        image = image.resize((max(500, round(image.width * scale)), max(375, round(image.height * scale))), Image.LANCZOS)
        for top in range(0, image.height - 374, 188):
            for left in range(0, image.width - 499, 250):
                yield image.crop((left, top, left + 500, top + 375))


def centre_crop(image):
    while min(image.size) >= 2 * SIZE:
        image = image.resize(tuple(side // 2 for side in image.size), Image.BOX)
    scale = SIZE / min(image.size)
    image = image.resize(tuple(round(side * scale) for side in image.size), Image.BICUBIC)
    pixels = np.asarray(image)
    top, left = (pixels.shape[0] - SIZE) // 2, (pixels.shape[1] - SIZE) // 2
    return pixels[top : top + SIZE, left : left + SIZE]


def fastest(work):
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return min(times), result


def as_png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return len(buffer.getvalue())


def pillow(files):
    count = len(files)
    decode_s, _ = fastest(lambda: [Image.open(io.BytesIO(file)).convert("RGB") for file in files])
    crop_s, squares = fastest(lambda: [centre_crop(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    png_s, sizes = fastest(lambda: [as_png(np.ascontiguousarray(square)) for square in squares])
    return {
        "decode_s": decode_s / count,
        "decode_and_crop_s": crop_s / count,
        "png_s": png_s / count,
        "png_bytes": sum(sizes) // count,
    }


def main():
    binary, photographs = sys.argv[1], sys.argv[2:]
    with tempfile.TemporaryDirectory() as folder:
        for number, piece in enumerate(pieces(photographs)):
            piece.save(Path(folder) / f"{number:04}.jpg", quality=90)
        files = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
        command = [binary, folder, str(SIZE), str(ROUNDS)]
        ours, theirs = [], []
        for _ in range(REPEATS):
            theirs.append(pillow(files))
            ours.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    for key in theirs[0]:
        us, peer = min(run[key] for run in ours), min(run[key] for run in theirs)
        print(json.dumps({"what": key, "pictures": len(files), "ours": us, "pillow": peer, "ratio": round(peer / us, 3)}))


if __name__ == "__main__":
    main()
