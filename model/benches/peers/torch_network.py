"""The network of DeepFlow in PyTorch, as a peer to time: steps of training or forward passes on synthetic data.

Written from the paper and the names of the public checkpoints, as anyone would write it in PyTorch: scaled dot-product
attention, fused AdamW, foreach moving average, optionally torch.compile. One JSON line a step on stdout.
"""

import argparse
import copy
import json
import math
import resource
import sys
import time

START = time.perf_counter()

import torch  # noqa: E402  (the time to import it belongs to the start)
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

MODELS = {
    "b": dict(width=768, depth=12, heads=12, ends=[6], acceleration=2048, size=32, classes=1000),
    "s": dict(width=384, depth=12, heads=6, ends=[6], acceleration=2048, size=32, classes=1000),
    "xl": dict(width=1152, depth=24, heads=16, ends=[8, 16], acceleration=2048, size=32, classes=1000),
    "tiny": dict(width=128, depth=4, heads=4, ends=[2], acceleration=256, size=8, classes=10),
    "study": dict(width=128, depth=12, heads=4, ends=[6], acceleration=256, size=8, classes=10, channels=8),
    "demo": dict(width=192, depth=6, heads=6, ends=[3], acceleration=384, size=8, classes=10, channels=8),
}


def modulated(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def fourier(t, features=256):
    half = features // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half) / half)
    angles = t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):
        return self.mlp(fourier(t))


class Mlp(nn.Module):
    def __init__(self, inputs, hidden, outputs):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = Mlp(width, 4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x, silu_c):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(silu_c).chunk(6, dim=1)
        batch, tokens, width = x.shape
        qkv = self.qkv(modulated(x, shift_a, scale_a)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + gate_a.unsqueeze(1) * self.proj(mixed)
        return x + gate_m.unsqueeze(1) * self.mlp(modulated(x, shift_m, scale_m))


class Head(nn.Module):
    def __init__(self, width, outputs):
        super().__init__()
        self.modulation, self.linear = nn.Linear(width, 2 * width), nn.Linear(width, outputs)

    def forward(self, x, silu_c):
        shift, scale = self.modulation(silu_c).chunk(2, dim=1)
        return self.linear(modulated(x, shift, scale))


class Vera(nn.Module):
    def __init__(self, width, heads, acceleration):
        super().__init__()
        sizes = [width, acceleration, 2 * acceleration, acceleration, width]
        layers = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])]
        self.acc_mlp = nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2], nn.SiLU(), layers[3])
        self.modulation = nn.Linear(2 * width, 4 * width)
        self.mlp = Mlp(2 * width, 2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, v, space, silu_gap):
        acceleration = self.acc_mlp(v)
        shift, scale = self.modulation(silu_gap).chunk(2, dim=1)
        m = self.mlp(modulated(torch.cat([v, acceleration], dim=-1), shift, scale))
        q_in, kv_in = self.norm(space), self.norm(m)
        return acceleration, q_in + self.attention(q_in, kv_in, kv_in, need_weights=False)[0]


class Network(nn.Module):
    def __init__(self, width, depth, heads, ends, acceleration, size, classes, channels=4):
        super().__init__()
        tokens, values = (size // 2) ** 2, 4 * channels
        self.ends = ends
        self.x_embedder = nn.Linear(values, width)
        self.register_buffer("pos_embed", torch.randn(1, tokens, width))
        self.t_embedder, self.dt_embedder = TimeEmbedder(width), TimeEmbedder(2 * width)
        self.y_embedder = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.veras = nn.ModuleList(Vera(width, heads, acceleration) for _ in ends)
        self.inner_head, self.last_head, self.acc_head = (Head(width, values) for _ in range(3))

    def forward(self, x, times, labels, training):
        space = self.x_embedder(x) + self.pos_embed
        label = self.y_embedder(labels)
        h, velocities, accelerations, branch = space, [], [], 0
        silu_c = F.silu(self.t_embedder(times[0]) + label)
        for index, block in enumerate(self.blocks, start=1):
            h = block(h, silu_c)
            if index in self.ends:
                silu_gap = F.silu(self.dt_embedder(times[branch + 1] - times[branch]))
                if training:
                    velocities.append(self.inner_head(h, silu_c))
                acceleration, h = self.veras[branch](h, space, silu_gap)
                if training:
                    accelerations.append(self.acc_head(acceleration, silu_c))
                branch += 1
                silu_c = F.silu(self.t_embedder(times[branch]) + label)
        return velocities + [self.last_head(h, silu_c)], accelerations


def loss_of(network, data):
    x, times, labels, targets, displacements = data
    velocities, accelerations = network(x, times, labels, True)
    loss = F.mse_loss(velocities[-1], targets)
    for velocity, acceleration, displacement, t in zip(velocities, accelerations, displacements, times):
        t = t[:, None, None]
        loss = loss + 0.2 * F.mse_loss(velocity, targets)
        loss = loss + (displacement - t * velocity.detach() + 0.5 * t * t * acceleration).square().mean()
    return loss


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["train", "forward"])
    parser.add_argument("--model", choices=MODELS, default="b")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    sizes = MODELS[arguments.model]
    network = Network(**sizes)
    batch, tokens, branches = arguments.batch, (sizes["size"] // 2) ** 2, len(sizes["ends"]) + 1
    patches = lambda: torch.randn(batch, tokens, 4 * sizes.get("channels", 4))  # noqa: E731
    labels = torch.randint(0, sizes["classes"], (batch,))
    times = [torch.rand(batch) for _ in range(branches)]

    if arguments.what == "forward":
        network.requires_grad_(False).eval()
        run = torch.compile(network) if arguments.compile else network

        def step():
            with torch.inference_mode():
                run(x, times, labels, False)

        x = patches()
    else:
        ema = copy.deepcopy(network).requires_grad_(False)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
        data = (patches(), times, labels, patches(), [patches() for _ in sizes["ends"]])
        run = torch.compile(loss_of) if arguments.compile else loss_of
        averaged, parameters = list(ema.parameters()), list(network.parameters())

        def step():
            optimizer.zero_grad(set_to_none=True)
            run(network, data).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(averaged, parameters, 1e-4)

    # A line on stdin asks for one step, so that peers can take turns.
    print(json.dumps({"start_s": time.perf_counter() - START}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"step_s": seconds, "peak_rss_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
