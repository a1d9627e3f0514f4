"""Growth, measured: what a sample costs in a set a thousand times as large, and what a second process brings.

Each size is measured in a process of its own, whose memory is looked at. Processes are compared on the very same
batches: one takes all of them in turn, two take every other one each. Run as a module, this file is such a process.
"""

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from transformers import Seq2SeqTrainingArguments, TrainerCallback

from mmcot.training import benchmark_measure as measure
from mmcot.training.batching import LengthBatchSampler
from mmcot.training.benchmark_inputs import VOCABULARY, draw_lengths, make_model, make_problems, make_tokenizer
from mmcot.training.benchmark_train import setting
from mmcot.training.stage_data import StageCollator
from mmcot.training.trainer import StageTrainer

TOKENS_PER_BATCH = 4096
ROWS_OF_WRITER = 1000  # that `datasets` writes together: a table of a million rows comes in a thousand pieces
PREPARED_AT_MOST = 10**4  # records that are tokenised here; more would take minutes and tell nothing new
DIFFERENT_PROBLEMS = 1000  # made up; larger files repeat them under other ids
BYTES_OF_SAMPLE = 1000  # about, in an Arrow table
WARM_UP_STEPS = 2
AIM = 1.7  # times one process's speed, from two


def benchmark_growth(shape: str, device: torch.device, options) -> dict:
    """The figures of `mmcot benchmark growth`: {"records": `record_costs`, "processes": `process_scaling`}.

    `options` has record_sizes, growth_batches (fetched of each set), growth_steps (of each of two processes), repeats.
    """
    if importlib.util.find_spec("datasets") is None:
        records = {"left_out": "the package `datasets` is not installed"}
    else:
        with tempfile.TemporaryDirectory(prefix="mmcot-benchmark-") as folder:
            records = record_costs(Path(folder), options.record_sizes, options.growth_batches)
    processes = process_scaling(shape, device, options.growth_steps, options.repeats)
    return {"records": records, "processes": processes}


# -- records ----------------------------------------------------------------------------------------------------------


def record_costs(
    folder: Path, sizes: list[int], batches: int = 50, tokens_per_batch: int = TOKENS_PER_BATCH
) -> list[dict]:
    """Cost of a sample, and memory, by number of samples in a `stage_dataset` on disk.

    For each size, what `StageTrainer` does with its training set; files have just been written, so that the page
    cache and not the disk is read:
        samples, bytes: rows of the Arrow file, and its size.
        open_seconds: mapping the file.
        lengths_seconds: the data loader, which reads every sample's lengths.
        epoch_samples, epoch_batches: what the epoch's batches hold, each sample once.
        epoch_microseconds_per_sample: `LengthBatchSampler`'s epoch.
        fetched_samples, fetch_microseconds_per_sample: reading and padding `batches` batches spread over the epoch,
            without pictures.
        anonymous_bytes, resident_bytes: growth of this process's memory, at its highest from before opening to the
            last batch: of its own (RssAnon), and with the file's pages that it looked at (VmRSS). None where /proc
            isn't.
        prepare: {load_seconds_per_1000, tokenise_seconds_per_1000, anonymous_bytes} of `load_problems` and
            `stage_dataset` on JSON Lines that no cache knows yet; None for sizes above `PREPARED_AT_MOST`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    costs = []
    path, warm_up = folder / "samples.arrow", folder / "warm-up.arrow"
    write_samples(warm_up, 64)
    preparing = None
    for size in sizes:
        if size * BYTES_OF_SAMPLE > shutil.disk_usage(folder).free / 2:
            costs.append({"samples": size, "left_out": "the disk has no room for it"})
            continue
        write_samples(path, size)
        arguments = {"path": path, "warm_up": warm_up, "batches": batches, "tokens_per_batch": tokens_per_batch}
        cost = {"samples": size, "bytes": path.stat().st_size, **_in_child("epoch", folder, **arguments)}
        path.unlink()
        cost["prepare"] = None
        if size <= PREPARED_AT_MOST:
            preparing = preparing or _Preparing(folder, min(DIFFERENT_PROBLEMS, max(sizes)))
            cost["prepare"] = preparing.cost(size)
        costs.append(cost)
    return costs


def sample_features():
    """Columns of `stage_dataset` without a feature cache, as `datasets.Features`."""
    from datasets import Features, Image, List, Value

    number = Value("int64")
    return Features(
        {
            "id": Value("string"),
            "images": List(Image(decode=False)),
            "input_ids": List(Value("int32")),  # `datasets` knows the name
            "labels": List(number),
            "length": number,
            "target_length": number,
        }
    )


def write_samples(path: Path, count: int) -> None:
    """An Arrow file of `count` samples as `stage_dataset` leaves them: ScienceQA's lengths, ids drawn at random."""
    import pyarrow as pa

    drawn = draw_lengths(min(count, 10000))
    source, target, pictures = (
        np.resize([getattr(length, name) for length in drawn], count).astype(np.int64)
        for name in ("source", "target", "image")
    )
    draw = np.random.default_rng(0)

    def lists(values, lengths: np.ndarray) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(np.append(0, np.cumsum(lengths)), pa.int32()), values)

    def tokens(lengths: np.ndarray, dtype) -> pa.ListArray:
        return lists(pa.array(draw.integers(2, VOCABULARY, lengths.sum(), dtype=dtype)), lengths)

    schema = sample_features().arrow_schema
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for first in range(0, count, ROWS_OF_WRITER):
            rows = slice(first, min(first + ROWS_OF_WRITER, count))
            names = pa.array([f"images/{number}/image.png" for number in np.flatnonzero(pictures[rows]) + first])
            images = pa.StructArray.from_arrays([pa.nulls(len(names), pa.binary()), names], ["bytes", "path"])
            columns = {
                "id": pa.array(np.arange(rows.start, rows.stop)).cast(pa.string()),
                "images": lists(images, pictures[rows]),
                "input_ids": tokens(source[rows], np.int32),
                "labels": tokens(target[rows], np.int64),
                "length": pa.array(source[rows]),
                "target_length": pa.array(target[rows]),
            }
            writer.write_batch(pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema))


class _Memory:
    """Growth of this process's memory from now on, at its highest of the moments when it is looked at."""

    def __init__(self):
        self.before = self.highest = self._now()

    def _now(self) -> dict[str, int | None]:
        return {name: measure.resident(which) for name, which in (("anonymous", "RssAnon"), ("resident", "VmRSS"))}

    def look(self) -> None:
        self.highest = {name: now and max(now, self.highest[name]) for name, now in self._now().items()}

    def growth(self) -> dict[str, int | None]:
        return {f"{name}_bytes": now and now - self.before[name] for name, now in self.highest.items()}


def _epoch(out: Path, path: str, warm_up: str, batches: int, tokens_per_batch: int) -> None:
    """In a child: the training set opened and read as `StageTrainer` does, first a small one that isn't counted."""
    trainer = StageTrainer(
        model=make_model("tiny"),
        args=Seq2SeqTrainingArguments(output_dir=str(out.parent / "trainer"), **_ARGUMENTS),
        # padding takes nothing else of a processor
        data_collator=StageCollator(
            SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0), image_processor=None), with_images=False
        ),
        tokens_per_batch=tokens_per_batch,
    )
    _epoch_costs(trainer, warm_up, batches)
    out.write_text(json.dumps(_epoch_costs(trainer, path, batches)))


def _epoch_costs(trainer: StageTrainer, path: str, batches: int) -> dict:
    from datasets import Dataset

    memory, clock = _Memory(), _Clock()
    trainer.train_dataset = Dataset.from_file(path)
    opened = clock.lap()
    sampler = trainer.get_train_dataloader().batch_sampler
    lengths = clock.lap()
    memory.look()

    kept = set(np.linspace(0, len(sampler) - 1, min(batches, len(sampler))).astype(int).tolist())
    clock.lap()
    epoch = iter(sampler)
    chosen, samples = [next(epoch)], 0
    first = clock.lap()
    memory.look()  # the epoch is whole in memory now
    clock.lap()
    samples, number = len(chosen[0]), 0
    for number, batch in enumerate(epoch, start=1):  # noqa: B007 - the last one is counted
        samples += len(batch)
        if number in kept:
            chosen.append(batch)
    rest = clock.lap()

    loader = torch.utils.data.DataLoader(trainer.train_dataset, batch_sampler=chosen, collate_fn=trainer.data_collator)
    clock.lap()
    fetched = sum(len(batch["input_ids"]) for batch in loader)
    spent = clock.lap()
    memory.look()
    return {
        "open_seconds": opened,
        "lengths_seconds": lengths,
        "epoch_samples": samples,
        "epoch_batches": number + 1,
        "epoch_microseconds_per_sample": 1e6 * (first + rest) / samples,
        "fetched_samples": fetched,
        "fetch_microseconds_per_sample": 1e6 * spent / fetched,
        **memory.growth(),
    }


class _Clock:
    def __init__(self):
        self.start = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        spent, self.start = now - self.start, now
        return spent


class _Preparing:
    """JSON Lines files of made-up problems, and a child for each that loads and tokenises them."""

    def __init__(self, folder: Path, different: int):
        from mmcot.processing import MMCoTProcessor

        tokenizer, words = make_tokenizer()
        processor = MMCoTProcessor(None, tokenizer)
        self.folder, self.processor = folder, folder / "processor.pickle"
        self.processor.write_bytes(pickle.dumps(processor))
        keys = ("question", "choices", "answer", "context", "lecture", "solution")
        problems = make_problems(draw_lengths(different), processor, words)
        self.lines = [json.dumps({key: problem[key] for key in keys})[1:] for problem in problems]
        self.warm_up = self._write(folder / "warm-up.jsonl", 20)

    def _write(self, path: Path, size: int) -> Path:
        with path.open("w", encoding="utf-8") as file:
            for number in range(size):
                file.write(f'{{"id": "{number}", {self.lines[number % len(self.lines)]}\n')
        return path

    def cost(self, size: int) -> dict:
        path = self._write(self.folder / "problems.jsonl", size)
        with tempfile.TemporaryDirectory(dir=self.folder) as cache:
            arguments = {"path": path, "warm_up": self.warm_up, "processor": self.processor}
            return _in_child("prepare", self.folder, {"HF_DATASETS_CACHE": cache}, **arguments)


def _prepare(out: Path, path: str, warm_up: str, processor: str) -> None:
    """In a child: problems loaded and tokenised, first a few that aren't counted."""
    from mmcot.training.sources import load_problems
    from mmcot.training.stage_data import stage_dataset

    with open(processor, "rb") as file:
        processor = pickle.load(file)
    stage_dataset(load_problems(warm_up), processor, "rationale")
    memory, clock = _Memory(), _Clock()
    problems = load_problems(path)
    loaded = clock.lap()
    memory.look()
    clock.lap()
    samples = stage_dataset(problems, processor, "rationale")
    tokenised = clock.lap()
    memory.look()
    result = {
        "load_seconds_per_1000": 1000 * loaded / len(samples),
        "tokenise_seconds_per_1000": 1000 * tokenised / len(samples),
        "anonymous_bytes": memory.growth()["anonymous_bytes"],
    }
    out.write_text(json.dumps(result))


# -- processes --------------------------------------------------------------------------------------------------------


def process_scaling(
    shape: str, device: torch.device, steps: int = 8, repeats: int = 3, tokens_per_batch: int = TOKENS_PER_BATCH
) -> dict:
    """Two processes of one thread each against one: training of a shape by `StageTrainer`, on a CPU (gloo, DDP).

    Both train on the same 2 × `steps` batches of `tokens_per_batch` tokens, read with picture features from a cache;
    the two take one of each pair. They take turns `repeats` times. Starting up and `WARM_UP_STEPS` steps are left out.

    Returns:
        {"left_out": reason} on a GPU, on fewer than two cores, without torch.distributed; {"failed": reason}; or
        samples: trained on in the time that is measured, the same by one process and by two.
        one, two: {samples_per_second, seconds_per_step} of all processes together, as {median, min, max};
            samples: of each process.
        ratio: samples a second of two over those of one, pair by pair.
        all_reduce_seconds, gradient_bytes: a bare sum of as many bytes as a step's gradients over both processes.
        all_reduce_share: of the two processes' step.
        without_exchange_ratio: where the ratio is below `AIM`: two processes that train at the same time and know
            nothing of each other, over one. What the machine itself has to give; None where it wasn't needed.
    """
    if device.type == "cuda":
        return {"left_out": "measured on a CPU only"}
    if (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) < 2:
        return {"left_out": "there is only one core"}
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        return {"left_out": "PyTorch is built without torch.distributed or gloo"}
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


def _summary(readings: list[dict]) -> dict:
    spreads = {name: measure.spread([reading[name] for reading in readings]) for name in _SPREAD}
    return {**spreads, "samples": readings[0]["samples"]}


_SPREAD = ("samples_per_second", "seconds_per_step")


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
        _start_child("train", folder / f"trained-{number}", None, processes, shape=shape, batches=own)
        for number, own in enumerate(batches)
    ]
    for child in children:
        _wait(child)
    ranks = [
        json.loads(path.read_text())
        for number in range(len(batches))
        for path in (folder / f"trained-{number}.rank{rank}" for rank in range(processes))
    ]
    seconds = max(rank["seconds"] for rank in ranks)
    return {
        "samples": [rank["samples"] for rank in ranks],
        "samples_per_second": sum(rank["samples"] for rank in ranks) / seconds,
        "seconds_per_step": seconds / ranks[0]["steps"],
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
    """When each step ended."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


_ARGUMENTS = {
    "train_sampling_strategy": "group_by_length",
    "optim": "adamw_torch_fused",
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
    from mmcot.training.feature_cache import FeatureCache

    torch.set_num_threads(1)
    processor, samples = pickle.loads((out.parent / "setting.pickle").read_bytes())
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    watch = _Stopwatch()
    trainer = _TimedTrainer(
        model=make_model(shape),
        args=Seq2SeqTrainingArguments(
            output_dir=str(out.parent / "trainer"), max_steps=len(batches) // world, learning_rate=5e-5, **_ARGUMENTS
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


# -- children ---------------------------------------------------------------------------------------------------------


def _start_child(name: str, out: Path, environment: dict | None = None, processes: int = 1, **arguments):
    """This module's function `_name` started in a process of its own, or in several that know of each other."""
    (plan := out.with_name(f"{out.name}.plan")).write_text(json.dumps(arguments, default=str))
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    threads = {"OMP_NUM_THREADS": "1"} if name == "train" else {}
    log = out.with_name(f"{out.name}.log").open("w+", encoding="utf-8")  # a pipe that nobody reads would fill up
    return subprocess.Popen(
        [*command, "-m", "mmcot.training.benchmark_growth", name, str(out), str(plan)],
        env={**os.environ, **quiet, **threads, **(environment or {})},
        stdout=log,
        stderr=subprocess.STDOUT,
    ), log


def _wait(child) -> None:
    process, log = child
    with log:
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            raise
        if code:
            log.seek(0)
            lines = [line for line in log.read().splitlines() if "Error" in line]
            raise RuntimeError(lines[0].strip() if lines else f"a process of the benchmark ended with {code}")


def _in_child(name: str, folder: Path, environment: dict | None = None, **arguments) -> dict:
    """What this module's function `_name` finds in a process of its own."""
    out = folder / f"{name}.json"
    _wait(_start_child(name, out, environment, **arguments))
    return json.loads(out.read_text())


if __name__ == "__main__":
    _functions = {"epoch": _epoch, "prepare": _prepare, "train": _train}
    _functions[sys.argv[1]](Path(sys.argv[2]), **json.loads(Path(sys.argv[3]).read_text()))
