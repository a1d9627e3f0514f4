"""Times of training, inference, image features and the data path against the published project's way.

Arms take turns in one process, so that a busy machine slows both; ratios are pair by pair.
"""

import argparse
import time

PARTS = ("train", "generate", "features", "data", "growth")


def benchmark(args) -> dict:
    """Runs the parts that are asked for; after each, what there is so far is written to `args.json`."""
    import torch

    from mmcot.training.benchmark import measure
    from mmcot.training.benchmark.data import benchmark_data, benchmark_features
    from mmcot.training.benchmark.generate import benchmark_generation
    from mmcot.training.benchmark.growth import benchmark_growth
    from mmcot.training.benchmark.train import benchmark_training
    from mmcot.training.common import write_json

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
