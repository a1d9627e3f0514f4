"""Time training, inference, image features and the data path against the published project's way.

  mmcot benchmark train --shape small --json train.json
  mmcot benchmark all --device cuda --json gpu.json
  mmcot benchmark --write-readme README.md --from gpu.json cpu.json

Arms take turns in one process, so that a busy machine slows both; ratios are pair by pair. Networks have random
weights; questions are as long as ScienceQA's. Without --shape: small on a CPU, base and large on a GPU.
"""

import argparse
import json
import time
from pathlib import Path

PARTS = ("train", "generate", "features", "data", "growth")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def number(name: str, default, text: str) -> None:
        parser.add_argument(name, type=int, default=default, metavar="N", help=text)

    parser.add_argument("part", nargs="?", choices=(*PARTS, "all"), help="what to time")
    parser.add_argument(
        "--shape",
        choices=("tiny", "small", "base", "large"),
        nargs="+",
        help="T5's (default small, or base and large)",
    )
    parser.add_argument(
        "--features", choices=("vit", "detr", "clip", "resnet"), default="vit", help="train, generate: of pictures"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--json", metavar="OUT", help="write the figures here")
    number("--threads", None, "threads on a CPU (default: PyTorch's)")
    number("--repeats", 3, "pairs of runs (default 3)")
    number("--seconds", None, "repeat no more after this time (default on a GPU: 420)")
    number("--batch-size", None, "train: the recipe's batch (default 4 on a CPU, 8 on a GPU)")
    parser.add_argument("--tokens-per-batch", type=int, nargs="+", metavar="N", help="train: larger batches to try")
    number("--samples", None, "train: samples in one of our runs (default 48, or 1,024 on a GPU)")
    number("--original-steps", None, "train: steps in one run of the original (default 1, or 5)")
    number("--loss-steps", 3, "train: steps of the comparison of losses; 0: none")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="train: also compiled (default: GPU)")
    number("--questions", None, "generate: questions in one of our runs (default 256, or 4,241)")
    number("--original-questions", 8, "generate: questions in one run of the original (default 8)")
    number("--max-new-tokens", None, "generate: limit of a rationale (default 32, or 512)")
    number("--slots", None, "generate: rows written at a time (default 64, or 512)")
    number("--pictures", None, "train, generate: different pictures (default 64, or 1,024)")
    number("--feature-pictures", None, "features: pictures (default 128, or 6,144)")
    number("--feature-batch", None, "features: batch of the backbone (default 8, or 128)")
    number("--cached-pictures", 11208, "data: pictures in the cache")
    number("--problems", 12726, "data: problems of the run that is started")
    parser.add_argument("--write-readme", metavar="FILE", help="write the speed table between the file's markers")
    parser.add_argument("--from", dest="results", nargs="+", metavar="JSON", help="results for --write-readme")


def run(args) -> int:
    if args.write_readme:
        from mmcot.training.benchmark_report import write_table

        if not args.results:
            raise ValueError("--write-readme needs --from RESULTS.json …")
        write_table(args.write_readme, [json.loads(Path(path).read_text()) for path in args.results])
        return 0
    if args.part is None:
        raise ValueError(f"what to time? One of {', '.join((*PARTS, 'all'))}")
    from mmcot.training.benchmark_report import describe

    result = benchmark(args)
    print(describe(result))
    return 0


def benchmark(args) -> dict:
    """Runs the parts that are asked for; after each, what there is so far is written to `args.json`."""
    import torch

    from mmcot.training import benchmark_measure as measure
    from mmcot.training.benchmark_data import benchmark_data, benchmark_features
    from mmcot.training.benchmark_generate import benchmark_generation
    from mmcot.training.benchmark_growth import benchmark_growth
    from mmcot.training.benchmark_train import benchmark_training
    from mmcot.training.files import write_json

    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no GPU here")
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.threads:
        torch.set_num_threads(args.threads)
    options = with_defaults(args, device.type)
    everything = PARTS if device.type == "cpu" else PARTS[:-1]  # growth is measured on a CPU
    parts = everything if args.part == "all" else (args.part,)
    # part, shape, share of the time: what depends on a shape once for each, the rest once
    work = [(part, shape, 4) for shape in options.shape for part in parts if part in ("train", "generate")]
    work += [(part, options.shape[0], 1) for part in parts if part not in ("train", "generate")]
    functions = {
        "train": lambda shape: benchmark_training(shape, device, options),
        "generate": lambda shape: benchmark_generation(shape, device, options),
        "features": lambda shape: benchmark_features(shape, device, options),
        "data": lambda shape: benchmark_data(device, options),
        "growth": lambda shape: benchmark_growth(shape, device, options),
    }
    results = {shape: {"shape": shape, "environment": measure.environment(device)} for shape in options.shape}
    result = {**results[options.shape[0]], "options": dict(vars(options)), "more_shapes": []}
    results[options.shape[0]] = result
    result["more_shapes"] = [results[shape] for shape in options.shape[1:]]
    begin, seconds = time.perf_counter(), options.seconds
    for i, (part, shape, share) in enumerate(work):
        started, left = time.perf_counter(), sum(share for _, _, share in work[i:])
        options.deadline = seconds and started + (begin + seconds - started) * share / left
        results[shape][part] = functions[part](shape)
        results[shape][part]["took_seconds"] = time.perf_counter() - started
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if args.json:
            write_json(args.json, result)
    return result


def with_defaults(args, device_type: str) -> argparse.Namespace:
    """The options, what was not given chosen for the device."""
    gpu = device_type == "cuda"
    defaults = {
        "shape": ["base", "large"] if gpu else ["small"],
        "seconds": 420 if gpu else None,
        "tokens_per_batch": [16384, 65536] if gpu else [1024, 2048],
        "samples": 1024 if gpu else 48,
        "pool": 4096 if gpu else 2000,
        "original_steps": 5 if gpu else 1,
        "compile": gpu,
        "questions": 4241 if gpu else 256,
        "max_new_tokens": 512 if gpu else 32,
        "pictures": 1024 if gpu else 64,
        "feature_pictures": 6144 if gpu else 128,
        "feature_batch": 128 if gpu else 8,
        "sampler_sizes": [10**3, 10**4, 10**5, 10**6],
        "record_sizes": [10**3, 10**4, 10**5, 10**6],
        "growth_batches": 50,
        "growth_steps": 3,
    }
    given = {name: value for name, value in vars(args).items() if value is not None}
    left_out = ("part", "json", "write_readme", "results", "device", "threads")
    options = {"batch_size": None, "slots": None, "deadline": None, **defaults, **given}
    return argparse.Namespace(**{name: value for name, value in options.items() if name not in left_out})
