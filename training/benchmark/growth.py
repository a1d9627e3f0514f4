"""Growth, measured: what a sample costs in a set a thousand times as large, and what a second process brings.

Each size is measured in a process of its own, whose memory is looked at. Run as a module, this file is such a process.
"""

import importlib.util
import json
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import Seq2SeqTrainingArguments

from mmcot.training.benchmark import measure
from mmcot.training.benchmark.children import found_in_child, run_as_child
from mmcot.training.benchmark.inputs import VOCABULARY, draw_lengths, make_model, make_problems, make_tokenizer
from mmcot.training.benchmark.processes import CHILD_ARGUMENTS, TOKENS_PER_BATCH, process_scaling
from mmcot.training.stages.samples import StageCollator
from mmcot.training.stages.trainer import StageTrainer

ROWS_OF_WRITER = 1000  # that `datasets` writes together: a table of a million rows comes in a thousand pieces
PREPARED_AT_MOST = 10**4  # records that are tokenised here; more would take minutes and tell nothing new
DIFFERENT_PROBLEMS = 1000  # made up; larger files repeat them under other ids
BYTES_OF_SAMPLE = 1000  # about, in an Arrow table
ROUNDS = 3  # of batches that are fetched


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
            without pictures; {median, min, max} of `ROUNDS` times, each with other batches.
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
        cost = {
            "samples": size,
            "bytes": path.stat().st_size,
            **found_in_child(__spec__.name, "epoch", folder, **arguments),
        }
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
        args=Seq2SeqTrainingArguments(output_dir=str(out.parent / "trainer"), **CHILD_ARGUMENTS),
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

    memory = _Memory()
    opening, trainer.train_dataset = _timed(lambda: Dataset.from_file(path))
    lengths, sampler = _timed(lambda: trainer.get_train_dataloader().batch_sampler)
    memory.look()
    kept = set(np.linspace(0, len(sampler) - 1, min(ROUNDS * batches, len(sampler))).astype(int).tolist())

    def pass_through(epoch) -> tuple[list[int], list[list[int]]]:
        """Samples of each batch, and the batches that are kept."""
        sizes, chosen = [], []
        for number, batch in enumerate(epoch):
            sizes.append(len(batch))
            if number in kept:
                chosen.append(batch)
        return sizes, chosen

    epoch = iter(sampler)
    drawing, first = _timed(lambda: next(epoch))
    memory.look()  # the first batch comes when all of them are there
    passing, (sizes, chosen) = _timed(lambda: pass_through(chain([first], epoch)))

    fetched, costs = 0, []
    for part in filter(None, (chosen[turn::ROUNDS] for turn in range(ROUNDS))):
        loader = torch.utils.data.DataLoader(
            trainer.train_dataset, batch_sampler=part, collate_fn=trainer.data_collator
        )
        spent, count = _timed(lambda: sum(len(batch["input_ids"]) for batch in loader))  # noqa: B023 - called at once
        costs.append(1e6 * spent / count)
        fetched += count
    memory.look()
    return {
        "open_seconds": opening,
        "lengths_seconds": lengths,
        "epoch_samples": sum(sizes),
        "epoch_batches": len(sizes),
        "epoch_microseconds_per_sample": 1e6 * (drawing + passing) / sum(sizes),
        "fetched_samples": fetched,
        "fetch_microseconds_per_sample": measure.spread(costs),
        **memory.growth(),
    }


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call took, and what it returned."""
    start = time.perf_counter()
    value = function()
    return time.perf_counter() - start, value


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
            return found_in_child(__spec__.name, "prepare", self.folder, {"HF_DATASETS_CACHE": cache}, **arguments)


def _prepare(out: Path, path: str, warm_up: str, processor: str) -> None:
    """In a child: problems loaded and tokenised, first a few that aren't counted."""
    from mmcot.training.data.problems import load_problems
    from mmcot.training.stages.samples import stage_dataset

    with open(processor, "rb") as file:
        processor = pickle.load(file)
    stage_dataset(load_problems(warm_up), processor, "rationale")
    memory = _Memory()
    loading, problems = _timed(lambda: load_problems(path))
    memory.look()
    tokenising, samples = _timed(lambda: stage_dataset(problems, processor, "rationale"))
    memory.look()
    result = {
        "load_seconds_per_1000": 1000 * loading / len(samples),
        "tokenise_seconds_per_1000": 1000 * tokenising / len(samples),
        "anonymous_bytes": memory.growth()["anonymous_bytes"],
    }
    out.write_text(json.dumps(result))


if __name__ == "__main__":
    run_as_child({"epoch": _epoch, "prepare": _prepare})
