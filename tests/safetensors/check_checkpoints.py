"""Opens checkpoints with the safetensors package and checks what docs/checkpoints.md says of them.

usage: check_checkpoints.py DIRECTORY          (as tests/coordinator/checkpoint_writer makes it)

Python's asserts name what differs.
"""

import hashlib
import os
import struct
import sys

from safetensors import safe_open

LAYERS = [5, 3, 2]
NAMES = ["dense/kernel", "dense/bias", "dense_1/kernel", "dense_1/bias"]
SHAPES = [(5, 3), (3,), (3, 2), (2,)]
PREFIXES = ["", "optimizer/first_moment/", "optimizer/second_moment/"]


def equal(what, got, wanted):
    assert got == wanted, f"{what}: got {got}, wanted {wanted}"


def check(path):
    with safe_open(path, "np") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}

    wanted = [prefix + name for prefix in PREFIXES for name in NAMES]
    equal("names", sorted(tensors), sorted(wanted))
    state = hashlib.sha256()
    for name, shape in zip(wanted, SHAPES * len(PREFIXES)):
        equal(name, (tensors[name].shape, str(tensors[name].dtype)), (shape, "float32"))
        state.update(tensors[name].tobytes())
    state.update(struct.pack("<Q", int(metadata["updates"])))
    equal("state digest", state.hexdigest(), metadata["state_digest"])

    with open(path, "rb") as file:
        content = file.read()
    checksum = metadata["checksum"].encode()
    equal("checksum", hashlib.sha256(content.replace(checksum, b"0" * 64)).hexdigest().encode(),
          checksum)

    equal("layers", metadata["layers"], ",".join(map(str, LAYERS)))
    equal("place", os.path.basename(path),
          f"e{int(metadata['epoch']):04}-s{int(metadata['step']):05}-g{metadata['generation']}"
          ".safetensors")


def main(directory):
    paths = [os.path.join(directory, name) for name in sorted(os.listdir(directory))]
    equal("checkpoints", len(paths), 3)
    for path in paths:
        check(path)
    print(f"{len(paths)} checkpoints open in Python")


main(sys.argv[1])
