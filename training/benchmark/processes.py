"""Two processes that train together against one: one takes all batches, the two take one of each pair."""

import os
import pickle
import tempfile
from pathlib import Path

import torch

from mmcot.training.benchmark import measure
from mmcot.training.benchmark.children import Child
from mmcot.training.benchmark.inputs import Setting, make_model
from mmcot.training.benchmark.train import timed_training
from mmcot.training.stages.batches import LengthBatchSampler

TOKENS_PER_BATCH = 2048


def train_in_children(folder: Path, shape: str, batches: list[list[list[int]]], processes: int = 1) -> dict:
    """A reading of training by children of one thread each.

    Args:
        folder: where the setting lies.
        batches: a list for each group of children that know of each other.
        processes: of each group.
    """
    children = [
        Child(
            f"{__name__}:train",
            folder / f"group-{number}",
            processes,
            {"OMP_NUM_THREADS": "1"},
            folder=folder,
            shape=shape,
            batches=own,
        )
        for number, own in enumerate(batches)
    ]
    try:
        ranks = [rank for child in children for rank in child.found()]
    finally:
        for child in children:  # where one failed, the others have nobody left to report to
            child.stop()
    return {"count": sum(rank["count"] for rank in ranks), "seconds": max(rank["seconds"] for rank in ranks)}


def benchmark_processes(shape: str, device: torch.device, options) -> dict:
    """The figures of `mmcot benchmark processes`: training on a CPU (gloo, DDP), or {"left_out": reason}."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device.type != "cpu" or cores < 2:
        return {"left_out": "measured on a CPU of two cores or more"}
    with tempfile.TemporaryDirectory(prefix="mmcot-benchmark-") as name:
        folder, pairs = Path(name), 1 + options.process_steps  # the first pair warms up
        # a sample has about 140 tokens: some batches are over
        setting = Setting(2 * pairs * (2 + TOKENS_PER_BATCH // 100), options.pictures, folder)
        (folder / "setting.pickle").write_bytes(pickle.dumps(setting))
        lengths = [[row[name] for row in setting.rows] for name in ("length", "target_length")]
        sampler = LengthBatchSampler(*lengths, tokens_per_batch=TOKENS_PER_BATCH, num_processes=2)
        batches = list(sampler)[: 2 * pairs]
        groups = {
            "one process": ([batches[1:]], 1),
            "two processes": ([batches], 2),
            # what the machine itself has to give
            "two that know nothing of each other": ([batches[0::2], batches[1::2]], 1),
        }
        arms = [
            measure.Arm(name, lambda turn, own=own, count=count: train_in_children(folder, shape, own, count))
            for name, (own, count) in groups.items()
        ]
        found, failed = measure.take_turns(arms, options.repeats, device, options.deadline)
    return {"tokens_per_batch": TOKENS_PER_BATCH, "arms": found, "failed": failed}


def train(folder: str, shape: str, batches: list[list[int]]) -> dict:
    """In a child, alone or one of two; its first step warms up."""
    torch.set_num_threads(1)
    setting: Setting = pickle.loads((Path(folder) / "setting.pickle").read_bytes())
    world = int(os.environ.get("WORLD_SIZE", 1))
    reading, _ = timed_training(make_model(shape), setting, batches, world, use_cpu=True)
    if world > 1:
        torch.distributed.destroy_process_group()
    return reading
