"""The data path, timed: the feature cache, the batches, the start of a training run, the extraction of features."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from mmcot.training.benchmark import measure
from mmcot.training.benchmark.inputs import PATCHES, WIDTH, draw_lengths

ALL_PICTURES = 11208  # rows of ScienceQA's features
BATCH = 64


def benchmark_data(device: torch.device, options) -> dict:
    """The figures of `mmcot benchmark data`."""
    result = {"sampler": sampler_costs(options.sampler_sizes)}
    with tempfile.TemporaryDirectory(prefix="mmcot-benchmark-") as folder:
        folder = Path(folder)
        free = shutil.disk_usage(folder).free
        pictures = options.cached_pictures
        if 2 * pictures * PATCHES * WIDTH * 2 > free:
            pictures = max(256, int(free / 4 / (PATCHES * WIDTH * 2)))
        result["cache"] = cache_costs(folder / "features", pictures)
        if importlib.util.find_spec("datasets") is not None:
            result["start_up"] = start_up(folder, options.problems)
        else:
            result["start_up"] = {"left_out": "the package `datasets` is not installed"}
    return result


def cache_costs(path: Path, pictures: int) -> dict:
    """Opening a cache and reading batches from it, in a process of its own, whose memory is looked at."""
    from mmcot.training.features.shards import FeatureWriter, write_index

    block = torch.randn(256, PATCHES, WIDTH).to(torch.float16)
    start = time.perf_counter()
    with FeatureWriter(path, {"backbone": "random", "keys": "image content"}, torch.float16) as writer:
        for first in range(0, pictures, len(block)):
            count = min(len(block), pictures - first)
            writer.add([f"{number:032x}" for number in range(first, first + count)], block[:count])
    write_index(path)
    written = time.perf_counter() - start
    size = sum(file.stat().st_size for file in path.iterdir())
    command = [sys.executable, "-c", f"{_IN_CHILD}main({str(path)!r}, {pictures}, {BATCH})"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return {"pictures": pictures, "bytes": size, "write_bytes_per_second": size / written, **found}


_IN_CHILD = """
import json, sys, time
import numpy as np
from mmcot.training.benchmark.measure import resident
from mmcot.training.features.cache import FeatureCache

def main(path, pictures, batch):
    before = resident()
    start = time.perf_counter()
    cache = FeatureCache.open(path)
    opened = time.perf_counter() - start
    after = resident()
    draw = np.random.default_rng(0)
    batches = [[[f"{n:032x}"] for n in draw.choice(pictures, batch, replace=False)] for _ in range(20)]
    cache.collate(batches[0])
    start = time.perf_counter()
    size = sum(cache.collate(keys)["image_features"].nbytes for keys in batches[1:])
    spent = time.perf_counter() - start
    memory = None if before is None else after - before
    grown = None if before is None else resident("VmHWM") - after
    print(json.dumps({
        "open_seconds": opened, "open_resident_bytes": memory, "batch": batch,
        "read_bytes_per_second": size / spent, "batch_bytes": size // 19, "reading_peak_resident_bytes": grown,
    }))

"""


def sampler_costs(sizes: list[int]) -> list[dict]:
    """Time and memory of an epoch's batches, by number of samples: flat per sample."""
    from mmcot.training.stages.batches import LengthBatchSampler, padded_share

    lengths = draw_lengths(10000)
    source = np.array([length.source for length in lengths])
    target = np.array([length.target for length in lengths])
    costs = []
    for size in sizes:
        sampler = LengthBatchSampler(np.resize(source, size), np.resize(target, size), tokens_per_batch=16000)
        start = time.perf_counter()
        batches = sum(1 for _ in sampler)
        spent = time.perf_counter() - start
        share = padded_share(sampler) if size <= 100000 else None
        costs.append(
            {"samples": size, "batches": batches, "microseconds_per_sample": 1e6 * spent / size, "padding": share}
        )
    return costs


def start_up(folder: Path, problems: int) -> dict:
    """Seconds from the command to the first training step of a run on JSON Lines; the first time, and again."""
    from mmcot.processing import MMCoTProcessor
    from mmcot.training.benchmark.inputs import make_problems, make_tokenizer

    tokenizer, words = make_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    keys = ("id", "question", "choices", "answer", "context", "lecture", "solution")
    with open(folder / "problems.jsonl", "w", encoding="utf-8") as file:
        for problem in make_problems(draw_lengths(problems), MMCoTProcessor(None, tokenizer), words):
            file.write(json.dumps({**{key: problem[key] for key in keys}, "split": "train"}) + "\n")
    code = f"""
import time
start = time.perf_counter()
from mmcot.training.stages.recipe import from_dict
from mmcot.training.train import Run
run = Run(from_dict({{
    "data": {str(folder / "problems.jsonl")!r}, "tokenizer": {str(folder / "tokenizer")!r}, "eval_split": None,
    "test_split": None, "output_dir": {str(folder / "run")!r}, "model": {{"d_model": 16, "d_kv": 4, "d_ff": 16}},
    "use_cpu": True,
}}))
samples = run.training_samples("rationale")
samples[0], samples["length"][:], samples["target_length"][:]
print(len(samples), time.perf_counter() - start)
"""
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "datasets"), "HF_HUB_OFFLINE": "1"}
    times = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1]}
        count, spent = done.stdout.split()[-2:]
        times.append(float(spent))
    return {"problems": int(count), "first_seconds": times[0], "seconds": times[1]}


def benchmark_features(shape: str, device: torch.device, options) -> dict:
    """Extraction from picture files against the backbone alone on pictures in memory, at the same batch size."""
    from PIL import Image
    from transformers import ViTConfig, ViTModel

    from mmcot.processing import image_processor_for
    from mmcot.training.features.extract import extract_features
    from mmcot.vision_mmcot import get_image_features

    sizes = {
        "tiny": dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=64),
        "small": dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536),
    }  # else ViT-L/32 at 384 pixels, as the paper's
    large = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    config = ViTConfig(**{"image_size": 384, "patch_size": 32, **sizes.get(shape, large)})
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    vision = ViTModel(config, add_pooling_layer=False).to(device, dtype).eval()
    batch, count = options.feature_batch, options.feature_pictures
    with tempfile.TemporaryDirectory(prefix="mmcot-benchmark-") as folder:
        folder = Path(folder)
        (folder / "pictures").mkdir()

        def draw(number: int) -> None:
            pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels).resize((640, 480), Image.BICUBIC)  # smooth, as diagrams and photos are
            picture.save(folder / "pictures" / f"{number}.png", compress_level=1)

        with ThreadPoolExecutor() as pool:
            list(pool.map(draw, range(count)))
        pixels = torch.randn(batch, 3, config.image_size, config.image_size, device=device, dtype=dtype)
        rounds = max(1, count // batch)

        @torch.no_grad()
        def alone():
            for _ in range(rounds):
                get_image_features(vision, pixels)

        alone()
        few = max(1, count // 4)
        (folder / "few").mkdir()
        for number in range(few):
            os.link(folder / "pictures" / f"{number}.png", folder / "few" / f"{number}.png")

        def extraction(pictures: str, turn: int) -> float:
            start = time.perf_counter()
            extract_features(
                folder / pictures,
                vision,
                folder / f"features-{pictures}-{turn}",
                image_processor=image_processor_for(config.image_size),
                batch_size=batch,
                device=device.type,
                show_progress=False,
                dtype="bfloat16",
            )
            return time.perf_counter() - start

        pairs = []
        for turn in range(options.repeats):
            if turn and measure.too_late(options.deadline):
                break
            own = rounds * batch / measure.seconds(alone, device)
            # what more pictures take: starting up is the same for few and many
            pairs.append(((count - few) / (extraction("pictures", turn) - extraction("few", turn)), own))
        return {
            "pictures": count,
            "batch_size": batch,
            "parameters": sum(weight.numel() for weight in vision.parameters()),
            "extracted_per_second": measure.spread([taken for taken, _ in pairs]),
            "backbone_alone_per_second": measure.spread([own for _, own in pairs]),
            "ratio": measure.spread([taken / own for taken, own in pairs]),
        }
