"""Training by two processes against one, measured on the same batches: one takes all of them, two take half each.

Run as a module, this file is such a process.
"""

import json
import os
import pickle
import tempfile
import time
from pathlib import Path

import torch
from transformers import Seq2SeqTrainingArguments, TrainerCallback

from mmcot.training.benchmark import measure
from mmcot.training.benchmark.children import run_as_child, start, wait
from mmcot.training.benchmark.inputs import make_model
from mmcot.training.benchmark.train import setting
from mmcot.training.stages.batches import LengthBatchSampler
from mmcot.training.stages.samples import StageCollator
from mmcot.training.stages.trainer import StageTrainer

WARM_UP_STEPS = 1
AIM = 1.7  # times one process's speed, from two
TOKENS_PER_BATCH = 2048


def process_scaling(
    shape: str, device: torch.device, steps: int = 8, repeats: int = 3, tokens_per_batch: int = TOKENS_PER_BATCH
) -> dict:
    """Two processes of one thread each against one: training of a shape by `StageTrainer`, on a CPU (gloo, DDP).

    Both train on the same 2 × `steps` batches of `tokens_per_batch` tokens, read with picture features from a cache;
    the two take one of each pair. They take turns `repeats` times. Starting up and `WARM_UP_STEPS` steps are left out.

    Returns:
        {"left_out": reason} on a GPU, on fewer than two cores, without torch.distributed; {"failed": reason}; or
        samples: trained on in the time that is measured, the same by one process and by two.
        one, two: of all processes together, as {median, min, max}: samples_per_second; seconds_per_step;
            cpu_seconds_per_sample, which grows where the processes hinder each other (memory, caches); busy_share,
            their CPU time over the clock's, which falls where they wait for each other or for other programs.
            samples: of each process.
        ratio: samples a second of two over those of one, pair by pair.
        all_reduce_seconds, gradient_bytes: a bare sum of as many bytes as a step's gradients over both processes.
        all_reduce_share: of the two processes' step.
        without_exchange_ratio: where the ratio is below `AIM`: two processes that train at the same time and know
            nothing of each other, over one. What the machine itself has to give; None where it wasn't needed.
    """
    if (reason := why_not(device)) is not None:
        return {"left_out": reason}
    with tempfile.TemporaryDirectory(prefix="mmcot-benchmark-") as folder:
        folder = Path(folder)
        warm_up, timed = _write_batches(folder, steps, tokens_per_batch)
        arms = {1: [warm_up[: len(warm_up) // 2] + timed], 2: [warm_up + timed]}
        readings = {1: [], 2: []}
        try:
            for _ in range(repeats):
                for processes, batches in arms.items():
                    readings[processes].append(_train_together(folder, shape, batches, processes))
            pairs = list(zip(readings[1], readings[2], strict=True))
            ratio = measure.spread([two["samples_per_second"] / one["samples_per_second"] for one, two in pairs])
            alone = None
            if ratio["median"] < AIM:
                halves = [warm_up[: len(warm_up) // 2] + timed[rank::2] for rank in range(2)]
                alone = _train_together(folder, shape, halves)["samples_per_second"]
                alone /= measure.spread([one["samples_per_second"] for one, _ in pairs])["median"]
        except RuntimeError as error:
            return {"failed": str(error)}
    shares = [two["all_reduce_seconds"] / two["seconds_per_step"] for _, two in pairs]
    return {
        "shape": shape,
        "tokens_per_batch": tokens_per_batch,
        "steps": steps,
        "warm_up_steps": WARM_UP_STEPS,
        "samples": sum(readings[1][0]["samples"]),
        "one": _summary(readings[1]),
        "two": _summary(readings[2]),
        "ratio": ratio,
        "gradient_bytes": readings[2][0]["gradient_bytes"],
        "all_reduce_seconds": measure.spread([two["all_reduce_seconds"] for _, two in pairs]),
        "all_reduce_share": measure.spread(shares),
        "without_exchange_ratio": alone,
    }


def why_not(device: torch.device) -> str | None:
    """Why processes can't be compared here; None where they can."""
    if device.type != "cpu":
        return "measured on a CPU only"
    if (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) < 2:
        return "there is only one core"
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        return "PyTorch is built without torch.distributed or gloo"
    return None


def _summary(readings: list[dict]) -> dict:
    spreads = {name: measure.spread([reading[name] for reading in readings]) for name in _SPREAD}
    return {**spreads, "samples": readings[0]["samples"]}


_SPREAD = ("samples_per_second", "seconds_per_step", "cpu_seconds_per_sample", "busy_share")


def _write_batches(folder: Path, steps: int, tokens_per_batch: int) -> tuple[list[list[int]], list[list[int]]]:
    """Samples and features in the folder; batches of the warm-up, and timed ones; pairs cost alike."""
    warm_up, all_steps = 2 * WARM_UP_STEPS, 2 * (WARM_UP_STEPS + steps)
    pool = 2 * all_steps + all_steps * tokens_per_batch // 100  # a sample has about 140 tokens: some batches are over
    processor, samples, *_ = setting(pool, 64, folder)
    (folder / "setting.pickle").write_bytes(pickle.dumps((processor, samples)))
    sampler = LengthBatchSampler(
        samples["length"], samples["target_length"], tokens_per_batch=tokens_per_batch, num_processes=2
    )
    batches = list(sampler)[:all_steps]
    return batches[:warm_up], batches[warm_up:]


def _train_together(folder: Path, shape: str, batches: list[list[list[int]]], processes: int = 1) -> dict:
    """Trains on each list of batches at the same time, by `processes` processes that share it; what it came to."""
    children = [
        start(
            __spec__.name,
            "train",
            folder / f"trained-{number}",
            {"OMP_NUM_THREADS": "1"},
            processes,
            shape=shape,
            batches=own,
        )
        for number, own in enumerate(batches)
    ]
    try:
        for child in children:
            wait(child)
    finally:
        for process, _ in children:  # where one failed, the other has nobody left to report to
            if process.poll() is None:
                process.terminate()
                process.wait()
    ranks = [
        json.loads(path.read_text())
        for number in range(len(batches))
        for path in (folder / f"trained-{number}.rank{rank}" for rank in range(processes))
    ]
    seconds = max(rank["seconds"] for rank in ranks)
    samples, cpu = [rank["samples"] for rank in ranks], sum(rank["cpu_seconds"] for rank in ranks)
    return {
        "samples": samples,
        "samples_per_second": sum(samples) / seconds,
        "seconds_per_step": seconds / ranks[0]["steps"],
        "cpu_seconds_per_sample": cpu / sum(samples),
        "busy_share": cpu / (seconds * len(ranks)),
        "all_reduce_seconds": ranks[0]["all_reduce_seconds"],
        "gradient_bytes": ranks[0]["gradient_bytes"],
    }


class _Batches(list):
    """Batches in a given order, as accelerate takes them for a batch sampler."""

    batch_size, drop_last = None, False


class _TimedTrainer(StageTrainer):
    """Trains on the batches that it is given, and counts the samples of each step."""

    def __init__(self, *args, batches: list[list[int]], **kwargs):
        self.batches, self.taken = _Batches(batches), []
        super().__init__(*args, **kwargs)

    def get_train_dataloader(self):
        loader = torch.utils.data.DataLoader(
            self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator
        )
        return self.accelerator.prepare(loader)

    def training_step(self, model, inputs, *args, **kwargs):
        self.taken.append(len(inputs["input_ids"]))
        return super().training_step(model, inputs, *args, **kwargs)


class _Stopwatch(TrainerCallback):
    """When each step ended, on the clock and in this process's CPU time."""

    def __init__(self):
        self.ends, self.cpu = [], []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())
        self.cpu.append(time.process_time())


CHILD_ARGUMENTS = {
    "train_sampling_strategy": "group_by_length",
    "optim": "adamw_torch_fused",
    "ddp_find_unused_parameters": False,  # as in a run
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "remove_unused_columns": False,
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def _train(out: Path, shape: str, batches: list[list[int]]) -> None:
    """In a child, alone or one of two: the training of `process_scaling`."""
    from mmcot.training.features.cache import FeatureCache

    torch.set_num_threads(1)
    processor, samples = pickle.loads((out.parent / "setting.pickle").read_bytes())
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    watch = _Stopwatch()
    trainer = _TimedTrainer(
        model=make_model(shape),
        args=Seq2SeqTrainingArguments(
            output_dir=str(out.parent / "trainer"),
            max_steps=len(batches) // world,
            learning_rate=5e-5,
            **CHILD_ARGUMENTS,
        ),
        train_dataset=samples,
        processing_class=processor,
        data_collator=StageCollator(processor, FeatureCache.open(out.parent / "features")),
        callbacks=[watch],
        batches=batches,
    )
    trainer.train()
    size = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    result = {
        "steps": len(watch.ends) - WARM_UP_STEPS,
        "cpu_seconds": watch.cpu[-1] - watch.cpu[WARM_UP_STEPS - 1],
        "samples": sum(trainer.taken[WARM_UP_STEPS:]),
        "seconds": watch.ends[-1] - watch.ends[WARM_UP_STEPS - 1],
        "gradient_bytes": 4 * size,
        "all_reduce_seconds": _all_reduce_seconds(size) if world > 1 else None,
    }
    out.with_name(f"{out.name}.rank{rank}").write_text(json.dumps(result))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _all_reduce_seconds(size: int) -> float:
    """Median time of a sum of `size` float32 numbers over the processes, the first left out."""
    numbers, times = torch.ones(size), []
    for _ in range(6):
        torch.distributed.barrier()
        start = time.perf_counter()
        torch.distributed.all_reduce(numbers)
        times.append(time.perf_counter() - start)
    return measure.spread(times[1:])["median"]


if __name__ == "__main__":
    run_as_child({"train": _train})
