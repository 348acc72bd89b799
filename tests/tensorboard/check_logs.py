"""Opens the logs of a run with the real TensorBoard and checks them against the run's report.

usage: check_logs.py RUN_DIR          (with RUN_DIR/report.json and RUN_DIR/tensorboard)

Both of TensorBoard's loaders must show the same: the one in Python, and the data server that the
`tensorboard` command starts by default. Python's asserts name what differs.
"""

import functools
import itertools
import json
import math
import os
import shutil
import sys
import tempfile
import time

import numpy as np
from tensorboard import context
from tensorboard.backend.event_processing import data_provider
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.backend.event_processing import plugin_event_multiplexer
from tensorboard.data import server_ingester
from tensorboard.util import grpc_util

LOAD_SECONDS = 60  # for the data server, which loads in the background
EVERYTHING = 10**9  # points of a curve: more than there are
TORN = b"\x20\0\0\0\0\0\0"  # the start of a record, as a crash may leave it
PLUGINS = ("scalars", "histograms", "text")


def equal(what, got, wanted):
    if got != wanted and isinstance(got, list) and len(wanted) > 20:
        pairs = itertools.zip_longest(got, wanted, fillvalue="nothing")
        where, (g, w) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        what, got, wanted = f"{what}[{where}]", g, w
    assert got == wanted, f"{what}: got {got}, wanted {wanted}"


def close(what, got, wanted):
    """Equal as fp32, in which TensorBoard keeps scalars."""
    equal(what + ": number of values", len(got), len(wanted))
    for i, (g, w) in enumerate(zip(got, wanted)):
        assert math.isclose(g, np.float32(w), rel_tol=1e-6), f"{what}[{i}]: got {g}, wanted {w}"


class Logs:
    """What one of TensorBoard's loaders makes of a directory."""

    def __init__(self, provider):
        self._provider = provider
        self._where = dict(ctx=context.RequestContext(), experiment_id="")

    def runs(self):
        return sorted(run.run_name for run in self._provider.list_runs(**self._where))

    def tags(self, run, plugin):
        lister = self._provider.list_scalars if plugin == "scalars" else self._provider.list_tensors
        return set(lister(plugin_name=plugin, **self._where).get(run, {}))

    def scalars(self, run, tag):
        """(steps, values) of one curve."""
        everything = self._provider.read_scalars(
            plugin_name="scalars", downsample=EVERYTHING, **self._where
        )
        points = everything.get(run, {}).get(tag, [])
        return [p.step for p in points], [p.value for p in points]

    def tensors(self, run, plugin, tag):
        """(step, array) of each value."""
        everything = self._provider.read_tensors(
            plugin_name=plugin, downsample=EVERYTHING, **self._where
        )
        return [(p.step, p.numpy) for p in everything[run][tag]]


def python_loader(directory):
    everything = dict(tensor_size_guidance={plugin: 0 for plugin in PLUGINS})
    multiplexer = plugin_event_multiplexer.EventMultiplexer(**everything)
    multiplexer.AddRunsFromDirectory(directory)
    multiplexer.Reload()
    logs = Logs(data_provider.MultiplexerDataProvider(multiplexer, directory))
    logs.reload = multiplexer.Reload
    return logs


def data_server(directory, reload_interval=0):
    """It answers before it has read everything. reload_interval: seconds; 0: it reads once."""
    ingester = server_ingester.SubprocessServerDataIngester(
        server_binary=server_ingester.get_server_binary(),
        logdir=directory,
        reload_interval=reload_interval,
        channel_creds_type=grpc_util.ChannelCredsType.LOCAL,
        samples_per_plugin={plugin: 0 for plugin in PLUGINS},
    )
    ingester.start()
    logs = Logs(ingester.data_provider)
    logs.ingester = ingester  # the server lives as long
    logs.reload = lambda: None
    return logs


def wait_until(what, true):
    deadline = time.monotonic() + LOAD_SECONDS
    while not true():
        assert time.monotonic() < deadline, f"the data server did not load {what} in time"
        time.sleep(0.05)


def failures(report):
    """How often a generation, or a life of the coordinator, came to an end before the run did."""
    return report["generations"] - 1 + report["coordinator_starts"] - 1


def ranks(logs, report):
    """How many ranks have curves. Only without failures is that the world size all the time."""
    tags = logs.tags("train", "scalars")
    count = sum(tag.endswith("/compute_ms") for tag in tags)
    if failures(report) == 0:
        equal("ranks", count, report["world_size"])
    return count


def rising(what, steps, greatest):
    """No step twice, none before another that is smaller."""
    equal(f"order of {what}", steps, sorted(set(steps)))
    assert all(0 <= step <= greatest for step in steps), f"{what}: not all from 0 to {greatest}"


def check_files(directory):
    """Every event file is valid to its end, with times that are finite and do not go back, also from
    one file to the next (there is one for each life of the coordinator)."""
    for run in ("train", "validation"):
        files = sorted(os.listdir(os.path.join(directory, run)))
        assert files, f"{run} has no event file"
        times = []
        for file in files:
            path = os.path.join(directory, run, file)
            events = list(event_file_loader.EventFileLoader(path).Load())
            equal(f"{path}: version", events[0].file_version, "brain.Event:2")
            times += [event.wall_time for event in events]
        assert all(math.isfinite(t) for t in times), f"{run}: a time is not finite"
        equal(f"{run}: order of times", times, sorted(times))


def check_tags(logs, report):
    of_ranks = {
        f"ranks/rank_{rank}/{what}"
        for rank in range(ranks(logs, report))
        for what in ("samples_per_second", "compute_ms", "all_reduce_ms")
    }
    epoch = {"epoch_loss", "epoch_accuracy"}
    batch = {"batch_loss", "batch_accuracy", "batch_steps_per_second"}
    equal("runs", logs.runs(), ["train", "validation"])
    equal(
        "scalars of train",
        logs.tags("train", "scalars"),
        epoch | batch | of_ranks | {"epoch_learning_rate"},
    )
    evaluation = {"evaluation_loss_vs_iterations", "evaluation_accuracy_vs_iterations"}
    equal("scalars of validation", logs.tags("validation", "scalars"), epoch | evaluation)
    equal("texts of train", logs.tags("train", "text"), {"config"})


def check_epochs(logs, report):
    history = report["history"]
    epochs = list(range(report["config"]["epochs"]))
    per_epoch = report["steps"] // len(epochs)
    for run, prefix in (("train", ""), ("validation", "val_")):
        for metric in ("loss", "accuracy"):
            tag = f"epoch_{metric}"
            steps, values = logs.scalars(run, tag)
            equal(f"steps of {run} {tag}", steps, epochs)
            close(f"{run} {tag}", values, history[prefix + metric])
    for metric in ("loss", "accuracy"):
        tag = f"evaluation_{metric}_vs_iterations"
        steps, values = logs.scalars("validation", tag)
        equal(f"steps of {tag}", steps, [(epoch + 1) * per_epoch for epoch in epochs])
        close(tag, values, history["val_" + metric])
        close(f"test_{metric}", values[-1:], [report[f"test_{metric}"]])
    _, rates = logs.scalars("train", "epoch_learning_rate")
    close("epoch_learning_rate", rates, [report["config"]["learning_rate"]] * len(epochs))


def check_batches(logs, report):
    epochs = report["config"]["epochs"]
    per_epoch = report["steps"] // epochs
    for metric in ("loss", "accuracy"):
        steps, values = logs.scalars("train", f"batch_{metric}")
        equal(f"steps of batch_{metric}", steps, list(range(1, report["steps"] + 1)))
        # The mean over the epoch so far: at its last batch, that of the epoch.
        close(f"batch_{metric}", values[per_epoch - 1 :: per_epoch], report["history"][metric])
    steps, speeds = logs.scalars("train", "batch_steps_per_second")
    rising("batch_steps_per_second", steps, report["steps"])
    # The first step of a generation has no time yet.
    missing = report["steps"] - len(steps)
    assert missing <= report["generations"], f"batch_steps_per_second: {missing} points are missing"
    assert all(speed > 0 and math.isfinite(speed) for speed in speeds)


def check_ranks(logs, report):
    epochs = report["config"]["epochs"]
    per_epoch = report["steps"] // epochs
    for rank in range(ranks(logs, report)):
        for what in ("samples_per_second", "compute_ms", "all_reduce_ms"):
            tag = f"ranks/rank_{rank}/{what}"
            steps, values = logs.scalars("train", tag)
            rising(tag, steps, report["steps"])
            # A point at the end of each epoch (but where a generation begins there, whose times are
            # not known yet), and not so many that the logs grow large.
            ends = {(epoch + 1) * per_epoch for epoch in range(epochs if per_epoch > 1 else 0)}
            missing = len(ends - set(steps))
            always_there = rank == 0 or failures(report) == 0
            assert not always_there or missing <= failures(report), f"{tag}: {missing} are missing"
            assert len(steps) <= 11 * epochs, f"{tag}: {len(steps)} points"
            assert all(value >= 0 and math.isfinite(value) for value in values), f"{tag}: {values}"


def check_weights(logs, report):
    layers = report["config"]["layers"]
    counts = {}
    for i, (inputs, outputs) in enumerate(zip(layers, layers[1:])):
        name = "dense" if i == 0 else f"dense_{i}"
        counts[f"{name}/kernel/histogram"] = inputs * outputs
        counts[f"{name}/bias/histogram"] = outputs
    equal("histograms of train", logs.tags("train", "histograms"), set(counts))
    epochs = report["config"]["epochs"]
    for tag, count in counts.items():
        values = logs.tensors("train", "histograms", tag)
        rising(tag, [step for step, _ in values], epochs - 1)
        # Each failure may have met a state on its way to the coordinator.
        missing = epochs - len(values)
        assert missing <= failures(report), f"{tag}: {missing} epochs are missing"
        for _, buckets in values:
            equal(f"shape of {tag}", buckets.shape, (30, 3))
            equal(f"{tag}: weights counted", buckets[:, 2].sum(), count)
            assert (buckets[:, 0] <= buckets[:, 1]).all(), f"{tag}: buckets are out of order"
            equal(f"{tag}: neighbours", list(buckets[1:, 0]), list(buckets[:-1, 1]))


def check_config(logs, report):
    ((_, text),) = logs.tensors("train", "text", "config")
    assert f"| seed | {report['seed']} |" in text.item().decode(), text


def has_steps(file):
    """Whether it has any: the life of its coordinator may have been too short."""
    events = event_file_loader.EventFileLoader(file).Load()
    return any(value.tag == "batch_loss" for event in events for value in event.summary.value)


def check_live(directory, report, load):
    """Who looks on while the coordinator dies, leaves a torn event and starts anew sees it all."""
    with tempfile.TemporaryDirectory() as copy:
        lives = []
        for run in ("train", "validation"):
            os.makedirs(os.path.join(copy, run))
            files = sorted(os.listdir(os.path.join(directory, run)))
            lives += [os.path.join(run, file) for file in files]
            shutil.copy(os.path.join(directory, run, files[0]), os.path.join(copy, run))
            with open(os.path.join(copy, run, files[0]), "ab") as file:
                file.write(TORN)
        logs = load(copy)
        if has_steps(os.path.join(directory, lives[0])):
            wait_until("the first life", lambda: len(logs.scalars("train", "batch_loss")[0]) > 0)
        for life in lives:
            if os.path.exists(os.path.join(copy, life)):
                size = os.path.getsize(os.path.join(copy, life))
                os.truncate(os.path.join(copy, life), size - len(TORN))
            else:
                shutil.copy(os.path.join(directory, life), os.path.join(copy, life))

        def all_there():
            logs.reload()
            return len(logs.scalars("train", "batch_loss")[0]) >= report["steps"]

        wait_until("the later lives", all_there)
        check_batches(logs, report)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(os.path.join(sys.argv[1], "report.json"), encoding="utf-8") as file:
        report = json.load(file)
    directory = os.path.join(sys.argv[1], "tensorboard")
    check_files(directory)

    def complete(logs):
        try:
            check_tags(logs, report)
            check_weights(logs, report)
            check_epochs(logs, report)
            return len(logs.scalars("train", "batch_loss")[0]) >= report["steps"]
        except (AssertionError, KeyError, IndexError):
            return False

    checks = (check_tags, check_epochs, check_batches, check_ranks, check_weights, check_config)
    loaders = {"Python loader": (python_loader, python_loader)}
    if server_ingester.get_server_binary() is not None:
        loaders["data server"] = (data_server, functools.partial(data_server, reload_interval=1))
    for name, (load, load_live) in loaders.items():
        logs = load(directory)
        if name == "data server":
            wait_until(directory, lambda: complete(logs))
        for check in checks:
            check(logs, report)
        if len(os.listdir(os.path.join(directory, "train"))) > 1:
            check_live(directory, report, load_live)
        print(f"{name}: {', '.join(logs.runs())} agree with the report: {report['steps']} steps, "
              f"test accuracy {report['test_accuracy']:.4f}")


if __name__ == "__main__":
    main()
