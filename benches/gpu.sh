#!/usr/bin/env bash
# Everything there is to measure on a GPU, in one command and one JSON file (docs/cuda.md).
#
#   benches/gpu.sh [FILE]              the tests on the card, then training, sampling and decoding with the time by kernel -> FILE
#                                      (gpu.json)
#   benches/gpu.sh --dry-run [FILE]    the same commands with tiny networks on the emulated device: shows that they work
#
# BATCH_B and BATCH_XL are the samples of a step, BATCH_VAE the latents decoded at once; STEPS the steps that are timed.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=false
if [ "${1:-}" = --dry-run ]; then
    dry_run=true
    shift
fi
out=$(realpath -m "${1:-gpu.json}")
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

build=(scripts/build-cuda test --release --workspace --features deepflow/cuda)
if $dry_run; then
    BATCH_B=2 BATCH_XL=2 BATCH_VAE=1 STEPS=1
    scripts/emulated-gpu "$work/gpu"
    run() { LD_LIBRARY_PATH=$work/gpu "$@"; }
    "${build[@]}" --test golden cuda
else
    run() { "$@"; }
    DEEPFLOW_CUDA_TESTS=card "${build[@]}" --test cuda --test golden --test cuda_stages
fi
# What the tests were built with is in place by now.
"${build[@]}" --test cuda_stages --no-run
deepflow=${CARGO_TARGET_DIR:-target}/release/deepflow

# measure WHAT CONFIG ENDS PRECISION BATCH: one line of JSON to the list.
measure() {
    local what=$1 config=$2 ends=$3 precision=$4 batch=$5 section=train tiny=()
    [ "$what" = train ] || section=sample
    if $dry_run; then
        for setting in width=32 heads=2 depth=4 latent_size=8 acceleration_width=32 classes=10 "branch_ends=$ends"; do
            tiny+=(--set "model.$setting")
        done
    fi
    echo "$what $config $precision, batch $batch" >&2
    run "$deepflow" --quiet bench "$what" --json --kernels --device cuda --batch "$batch" --steps "${STEPS:-20}" \
        --config "configs/$config.toml" --set "$section.precision=$precision" ${tiny[@]+"${tiny[@]}"} >"$work/line"
    python3 - "$work/line" "$config" "$precision" >>"$work/lines" <<'PYTHON'
import json, sys
line = json.load(open(sys.argv[1]))
print(json.dumps({**line, "config": sys.argv[2], "precision": sys.argv[3]}))
PYTHON
}
# decode SIZE PRECISION BATCH: the same for Stable Diffusion's autoencoder with random weights, and pictures of SIZE pixels.
decode() {
    local size=$1 precision=$2 batch=$3
    echo "decode $size pixels, $precision, batch $batch" >&2
    run "$deepflow" --quiet bench decode --json --kernels --device cuda --batch "$batch" --steps "${STEPS:-20}" \
        --set codec.kind=autoencoder-kl --set "codec.size=$size" --set "codec.precision=$precision" >"$work/line"
    python3 - "$work/line" "autoencoder-kl at $size pixels" "$precision" >>"$work/lines" <<'PYTHON'
import json, sys
line = json.load(open(sys.argv[1]))
print(json.dumps({**line, "config": sys.argv[2], "precision": sys.argv[3]}))
PYTHON
}
for precision in mixed f32; do
    for what in train forward; do
        measure $what deepflow-b-2-2t '[2]' $precision "${BATCH_B:-256}"
        measure $what deepflow-xl-2-3t '[1,3]' $precision "${BATCH_XL:-64}"
    done
    if $dry_run; then sizes=(16); else sizes=(256 512); fi
    for size in "${sizes[@]}"; do decode "$size" $precision "${BATCH_VAE:-4}"; done
done

python3 - "$work/lines" "$out" $dry_run <<'PYTHON'
"""Puts the roofline beside every figure: what the bytes and FLOPs of a kernel cost at least on this card."""
import json, sys

# Data sheets, dense: bytes/s of memory; FLOP/s of f16 and TF32 on the tensor cores, of f32.
PEAKS = {
    "A100-SXM4-80GB": (2039e9, 312e12, 156e12, 19.5e12),
    "A100-SXM4-40GB": (1555e9, 312e12, 156e12, 19.5e12),
    "H100 80GB HBM3": (3350e9, 989e12, 495e12, 67e12),
    "H100 PCIe": (2000e9, 756e12, 378e12, 51e12),
    "H200": (4800e9, 989e12, 495e12, 67e12),
}

lines = [json.loads(line) for line in open(sys.argv[1])]
card = lines[0]["gpu"]["name"]
peaks = next((peaks for name, peaks in PEAKS.items() if name in card), None)


def roofline(kernel):
    """Seconds the kernel takes at least; attention computes on the ordinary float units."""
    if peaks is None:
        return None
    memory, half, tensor_float, single = peaks
    rate = {"product_f16": half, "product_f32": tensor_float}.get(kernel["name"], single)
    return max(kernel["bytes"] / memory, kernel["flops"] / rate)


for line in lines:
    kernels = line["gpu"]["kernels"]
    for kernel in kernels:
        kernel["roofline_s"] = roofline(kernel)
    total = {key: sum(kernel[key] for kernel in kernels) for key in ("bytes", "flops")}
    # The decode stage also writes PNG files; what the card does is the step by kernel.
    seconds = line["gpu"]["profiled_step_s"] if line["what"] == "decode" else line["median_s"]
    line["step"] = {
        **total,
        "bytes_per_s": total["bytes"] / seconds,
        "flops_per_s": total["flops"] / seconds,
        "roofline_s": None if peaks is None else sum(kernel["roofline_s"] for kernel in kernels),
        "outside_kernels_s": line["gpu"]["profiled_step_s"] - sum(kernel["seconds"] for kernel in kernels),
    }
    if line["what"] == "forward":
        line["images_per_s_250_steps"] = line["items_per_s"] / 250
    if line["what"] == "decode":
        line["images_per_s_without_files"] = line["batch"] / seconds

report = {
    "card": card,
    "dry_run": sys.argv[3] == "true",
    "peaks_known": peaks is not None,
    "measurements": lines,
}
with open(sys.argv[2], "w") as file:
    json.dump(report, file, indent=1)
print(f"{sys.argv[2]}: {len(lines)} measurements on {card}")
PYTHON
