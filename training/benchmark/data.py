"""The data path, timed: the feature cache, an epoch's batches by number of samples, the start of a training run.

Each in a process of its own, whose memory is looked at; files have just been written, so that no disk is read.
"""

import json
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from mmcot.training.benchmark.children import found_in_child
from mmcot.training.benchmark.inputs import PATCHES, VOCABULARY, WIDTH, draw_lengths, make_problems, make_tokenizer
from mmcot.training.benchmark.measure import resident

CACHE_BATCH, CACHE_BATCHES = 64, 20
TOKENS_PER_BATCH, FETCHED_BATCHES = 2048, 50
ROWS = 10000  # of the table that larger files repeat
BYTES_OF_SAMPLE = 1000  # about, in an Arrow table


def benchmark_data(shape: str, device: torch.device, options) -> dict:
    """The figures of `mmcot benchmark data`: {"cache": …, "samples": […], "start_up": …}."""
    with tempfile.TemporaryDirectory(prefix="mmcot-benchmark-") as name:
        folder = Path(name)
        return {
            "cache": cache_costs(folder, options.cached_pictures),
            "samples": [sample_costs(folder, size) for size in options.sample_sizes],
            "start_up": start_up(folder, options.problems),
        }


def cache_costs(folder: Path, pictures: int) -> dict:
    """Opening a cache of so many pictures and reading batches from it; fewer where the disk has no room."""
    from mmcot.training.features.shards import FeatureWriter, write_index

    pictures = min(pictures, max(256, shutil.disk_usage(folder).free // (4 * PATCHES * WIDTH)))
    block = torch.randn(256, PATCHES, WIDTH).to(torch.float16)
    with FeatureWriter(folder / "cache", {"backbone": "random", "keys": "image content"}, block.dtype) as writer:
        for first in range(0, pictures, len(block)):
            count = min(len(block), pictures - first)
            writer.add([f"{number:032x}" for number in range(first, first + count)], block[:count])
    write_index(folder / "cache")
    found = found_in_child(f"{__name__}:read_cache", folder / "read", path=folder / "cache", pictures=pictures)
    shutil.rmtree(folder / "cache")
    return {"pictures": pictures, **found}


def read_cache(path: str, pictures: int) -> dict:
    """In a child."""
    from mmcot.training.features.cache import FeatureCache

    before, start = resident(), time.perf_counter()
    cache = FeatureCache.open(path)
    opened, after = time.perf_counter() - start, resident()
    draw = np.random.default_rng(0)
    keys = [[[f"{n:032x}"] for n in draw.choice(pictures, CACHE_BATCH)] for _ in range(CACHE_BATCHES + 1)]
    cache.collate(keys[0])
    start = time.perf_counter()
    size = sum(cache.collate(own)["image_features"].nbytes for own in keys[1:])
    spent, highest = time.perf_counter() - start, resident("VmHWM")
    return {
        "open_seconds": opened,
        "open_resident_bytes": after and after - before,
        "batch": CACHE_BATCH,
        "batch_bytes": size // CACHE_BATCHES,
        "read_bytes_per_second": size / spent,
        "reading_peak_resident_bytes": highest and highest - after,
    }


def sample_costs(folder: Path, count: int) -> dict:
    """What a sample costs in an epoch over so many on disk, and the process's memory; or why it was `left_out`."""
    if count * BYTES_OF_SAMPLE > shutil.disk_usage(folder).free / 2:
        return {"samples": count, "left_out": "the disk has no room for it"}
    path = folder / "samples.arrow"
    write_samples(path, count)
    found = found_in_child(f"{__name__}:read_samples", folder / "samples", path=path)
    path.unlink()
    return {"samples": count, **found}


def write_samples(path: Path, count: int) -> None:
    """An Arrow file of samples as `stage_dataset` leaves them, without pictures: ScienceQA's lengths, random ids."""
    import pyarrow as pa

    drawn, draw = draw_lengths(min(count, ROWS)), np.random.default_rng(0)
    columns = {"id": pa.array([str(number) for number in range(len(drawn))])}
    for tokens, column, length in (("input_ids", "length", "source"), ("labels", "target_length", "target")):
        lengths = np.array([getattr(row, length) for row in drawn])
        dtype = np.int32 if tokens == "input_ids" else np.int64
        values = pa.array(draw.integers(2, VOCABULARY, lengths.sum(), dtype=dtype))
        columns[tokens] = pa.ListArray.from_arrays(pa.array(np.append(0, lengths.cumsum()), pa.int32()), values)
        columns[column] = pa.array(lengths)
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        for first in range(0, count, len(table)):
            writer.write_table(table.slice(0, min(len(table), count - first)), max_chunksize=1000)


def read_samples(path: str) -> dict:
    """In a child: batches of an epoch, some of them read and padded."""
    from datasets import Dataset

    from mmcot.training.stages.batches import LengthBatchSampler
    from mmcot.training.stages.samples import StageCollator

    before = resident("RssAnon")
    samples = Dataset.from_file(path)
    lengths = [np.asarray(samples.with_format("numpy")[name][:]) for name in ("length", "target_length")]
    start = time.perf_counter()
    epoch = list(LengthBatchSampler(*lengths, tokens_per_batch=TOKENS_PER_BATCH))
    drawing, after = time.perf_counter() - start, resident("RssAnon")
    tokenizer = SimpleNamespace(pad_token_id=0)  # padding takes nothing else of a processor
    collate = StageCollator(SimpleNamespace(tokenizer=tokenizer, image_processor=None), with_images=False)
    kept = [epoch[i] for i in np.linspace(0, len(epoch) - 1, min(FETCHED_BATCHES, len(epoch))).astype(int)]
    start = time.perf_counter()
    fetched = sum(
        len(batch["input_ids"])
        for batch in torch.utils.data.DataLoader(samples, batch_sampler=kept, collate_fn=collate)
    )
    return {
        "epoch_samples": sum(map(len, epoch)),
        "epoch_microseconds_per_sample": 1e6 * drawing / len(samples),
        "fetch_microseconds_per_sample": 1e6 * (time.perf_counter() - start) / fetched,
        "anonymous_bytes": after and after - before,
    }


def start_up(folder: Path, problems: int) -> dict:
    """Seconds until the samples of a run on JSON Lines are there; the first time, and again."""
    from mmcot.processing import MMCoTProcessor

    tokenizer, words = make_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    with open(folder / "problems.jsonl", "w", encoding="utf-8") as file:
        for problem in make_problems(draw_lengths(problems), MMCoTProcessor(None, tokenizer), words):
            file.write(json.dumps({**problem, "split": "train"}) + "\n")
    environment = {"HF_DATASETS_CACHE": str(folder / "datasets")}
    first, again = (
        found_in_child(f"{__name__}:start_run", folder / f"start-{turn}", environment, folder=folder)
        for turn in range(2)
    )
    return {**again, "first_seconds": first["seconds"]}


def start_run(folder: str) -> dict:
    """In a child."""
    start = time.perf_counter()
    from mmcot.training.stages.recipe import from_dict
    from mmcot.training.train import Run

    recipe = {
        "data": f"{folder}/problems.jsonl",
        "tokenizer": f"{folder}/tokenizer",
        "eval_split": None,
        "test_split": None,
        "output_dir": f"{folder}/run",
        "model": {"d_model": 16, "d_kv": 4, "d_ff": 16},
        "use_cpu": True,
    }
    samples = Run(from_dict(recipe)).training_samples("rationale")
    return {"problems": len(samples), "seconds": time.perf_counter() - start}
