#!/usr/bin/env python3
"""Times the same training in PyTorch (eager, compiled, CUDA graph) and JAX (scan), on one GPU.

    peers.py --data-dir DIR [--epochs N] [--json FILE] [--only NAME[,NAME]]

The work is that of bench/gpu/step_bench: 784-128-10, Adam(1e-3, eps 1e-7), batches of 128 and a last
one of 96, fp32 without TF32, the images resident on the GPU as bytes, a new permutation each epoch.
One epoch warms up (and compiles) before the timed ones; each peer ends with its test accuracy. A
peer whose package is missing is told and left out. Exit code 2 if none could run.
"""

import argparse
import gzip
import json
import os
import statistics
import sys
import time

BATCH = 128
HIDDEN = 128
LEARNING_RATE = 1e-3
EPSILON = 1e-7


def read_idx(directory, name, header):
    import numpy as np

    path = os.path.join(directory, name)
    opener = open if os.path.exists(path) else gzip.open
    with opener(path if opener is open else path + ".gz", "rb") as file:
        return np.frombuffer(file.read(), np.uint8, offset=header).copy()


def read_mnist(directory):
    """Images [n, 784] and labels [n] of both splits, as bytes."""
    return (
        read_idx(directory, "train-images-idx3-ubyte", 16).reshape(-1, 784),
        read_idx(directory, "train-labels-idx1-ubyte", 8),
        read_idx(directory, "t10k-images-idx3-ubyte", 16).reshape(-1, 784),
        read_idx(directory, "t10k-labels-idx1-ubyte", 8),
    )


def time_epochs(run_epoch, finish, epochs):
    """Seconds of each epoch after one that warms up."""
    run_epoch()
    finish()
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        run_epoch()
        finish()
        seconds.append(time.perf_counter() - start)
    return seconds


class Torch:
    """The parts the three PyTorch variants share."""

    def __init__(self, data):
        import torch

        if not torch.cuda.is_available():
            raise ImportError("PyTorch sees no GPU")
        self.torch = torch
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.manual_seed(1)
        self.x, self.y, self.test_x, self.test_y = (torch.from_numpy(a).cuda() for a in data)
        self.y, self.test_y = self.y.long(), self.test_y.long()
        self.model = torch.nn.Sequential(
            torch.nn.Linear(784, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 10)
        ).cuda()
        for layer in (self.model[0], self.model[2]):
            torch.nn.init.xavier_uniform_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        self.version = f"PyTorch {torch.__version__}"

    def optimizer(self, capturable):
        return self.torch.optim.Adam(
            self.model.parameters(), lr=LEARNING_RATE, eps=EPSILON, capturable=capturable
        )

    def loss(self, model, rows):
        x = self.x[rows].float() * (1 / 255)
        return self.torch.nn.functional.cross_entropy(model(x), self.y[rows])

    def batches(self):
        return self.torch.randperm(len(self.x), device="cuda").split(BATCH)

    def finish(self):
        self.torch.cuda.synchronize()

    def accuracy(self):
        with self.torch.no_grad():
            predictions = self.model(self.test_x.float() * (1 / 255)).argmax(1)
        return (predictions == self.test_y).float().mean().item()


def torch_eager(data, epochs, compiled=False):
    peer = Torch(data)
    model = peer.torch.compile(peer.model) if compiled else peer.model
    optimizer = peer.optimizer(capturable=False)

    def run_epoch():
        for rows in peer.batches():
            optimizer.zero_grad(set_to_none=True)
            peer.loss(model, rows).backward()
            optimizer.step()

    return time_epochs(run_epoch, peer.finish, epochs), peer.accuracy(), peer.version


def torch_compiled(data, epochs):
    return torch_eager(data, epochs, compiled=True)


def torch_graph(data, epochs):
    peer = Torch(data)
    torch = peer.torch
    optimizer = peer.optimizer(capturable=True)

    def step(rows):
        optimizer.zero_grad(set_to_none=True)
        peer.loss(peer.model, rows).backward()
        optimizer.step()

    # One graph for whole batches and one for the last of an epoch.
    sizes = {BATCH, len(peer.x) % BATCH or BATCH}
    rows_of = {size: torch.zeros(size, dtype=torch.long, device="cuda") for size in sizes}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for size in sizes:
            for _ in range(3):
                step(rows_of[size])
    torch.cuda.current_stream().wait_stream(side)
    graphs = {}
    for size in sizes:
        graphs[size] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[size]):
            step(rows_of[size])

    def run_epoch():
        for rows in peer.batches():
            rows_of[len(rows)].copy_(rows)
            graphs[len(rows)].replay()

    return time_epochs(run_epoch, peer.finish, epochs), peer.accuracy(), peer.version


def jax_scan(data, epochs):
    import jax
    import jax.numpy as jnp

    if jax.default_backend() != "gpu":
        raise ImportError("JAX sees no GPU")
    jax.config.update("jax_default_matmul_precision", "highest")
    x, y, test_x, test_y = (jax.device_put(a) for a in data)
    count = len(data[0])
    whole = count // BATCH * BATCH

    def glorot(key, rows, columns):
        limit = (6 / (rows + columns)) ** 0.5
        return jax.random.uniform(key, (rows, columns), jnp.float32, -limit, limit)

    keys = jax.random.split(jax.random.PRNGKey(1), 3)
    weights = (glorot(keys[0], 784, HIDDEN), jnp.zeros(HIDDEN), glorot(keys[1], HIDDEN, 10),
               jnp.zeros(10))
    zeros = tuple(jnp.zeros_like(w) for w in weights)
    state = (weights, zeros, zeros, jnp.float32(0), keys[2])

    def logits(w, rows):
        return jax.nn.relu(rows.astype(jnp.float32) / 255 @ w[0] + w[1]) @ w[2] + w[3]

    def loss(w, rows):
        z = jax.nn.log_softmax(logits(w, x[rows]))
        return -jnp.take_along_axis(z, y[rows][:, None].astype(jnp.int32), 1).mean()

    def step(carry, rows):
        w, m, v, t = carry
        g = jax.grad(loss)(w, rows)
        t = t + 1
        alpha = LEARNING_RATE * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        m = jax.tree.map(lambda m, g: m + (g - m) * 0.1, m, g)
        v = jax.tree.map(lambda v, g: v + (g * g - v) * 0.001, v, g)
        w = jax.tree.map(lambda w, m, v: w - alpha * m / (jnp.sqrt(v) + EPSILON), w, m, v)
        return (w, m, v, t), None

    @jax.jit
    def epoch(state):
        *carry, key = state
        key, now = jax.random.split(key)
        order = jax.random.permutation(now, count)
        carry, _ = jax.lax.scan(step, tuple(carry), order[:whole].reshape(-1, BATCH))
        if whole < count:
            carry, _ = step(carry, order[whole:])
        return (*carry, key)

    box = [state]

    def run_epoch():
        box[0] = epoch(box[0])

    seconds = time_epochs(run_epoch, lambda: jax.block_until_ready(box[0]), epochs)
    accuracy = float((logits(box[0][0], test_x).argmax(1) == test_y).mean())
    return seconds, accuracy, f"JAX {jax.__version__}"


PEERS = {
    "torch-eager": torch_eager,
    "torch-compiled": torch_compiled,
    "torch-graph": torch_graph,
    "jax-scan": jax_scan,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--json", help="file to write the numbers to")
    parser.add_argument("--only", default=",".join(PEERS), help="peers to run, by commas")
    args = parser.parse_args()
    try:
        data = read_mnist(args.data_dir)
    except ImportError:
        print("peers.py: numpy is missing: no peer can run", file=sys.stderr)
        return 2
    steps = -(-len(data[0]) // BATCH)
    results = []
    for name in args.only.split(","):
        try:
            seconds, accuracy, version = PEERS[name](data, args.epochs)
        except ImportError as error:
            print(f"{name}: skipped: {error}", file=sys.stderr)
            continue
        per_step = [1e6 * s / steps for s in seconds]
        results.append({"name": name, "versions": version, "global_batch": BATCH,
                        "epoch_seconds": seconds, "us_per_step": statistics.median(per_step),
                        "accuracy": accuracy})
        print(f"{name:16} {statistics.median(per_step):9.1f} us a step "
              f"({min(per_step):.1f}..{max(per_step):.1f})  {100 * accuracy:.2f} %  {version}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=2)
    return 0 if results else 2


if __name__ == "__main__":
    sys.exit(main())
