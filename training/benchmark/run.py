"""The parts of `mmcot benchmark`, one after the other, each shape in turn."""

import argparse
import time

PARTS = ("train", "generate", "peers", "data", "processes")
OF_A_SHAPE = ("train", "generate", "peers")
# of options that weren't given, on a CPU and on a GPU
DEFAULTS = {
    "shape": (["small"], ["base", "large"]),
    "seconds": (None, 420),
    "tokens_per_batch": ([1024, 2048], [16384, 65536]),
    "samples": (48, 1024),
    "pool": (2000, 4096),
    "original_steps": (1, 5),
    "compile": (False, True),
    "questions": (128, 4241),
    "max_new_tokens": (32, 512),
    "slots": (64, 512),
    "pictures": (64, 1024),
    "sample_sizes": ([10**3, 10**4, 10**5, 10**6],) * 2,
    "process_steps": (3, 3),
}


def benchmark(args: argparse.Namespace) -> dict:
    """Runs the parts that are asked for; after each, what there is so far is written to `args.json`.

    Returns:
        {"environment": …, "options": …, "shapes": {shape: {part: figures}}}

    Raises:
        UserError: a GPU is asked for that isn't there.
    """
    import torch

    from mmcot.training.benchmark import data, generate, measure, peers, processes, train
    from mmcot.training.common import UserError, write_json

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here; leave it out, or say cpu")
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.threads:
        torch.set_num_threads(args.threads)
    options = with_defaults(args, device.type)
    parts = PARTS if args.part == "all" else (args.part,)
    if args.part == "all" and device.type != "cpu":
        parts = tuple(part for part in PARTS if part != "peers")  # which compares on a CPU
    # part, shape: what depends on a shape once for each, the rest once
    work = [(part, shape) for shape in options.shape for part in parts if part in OF_A_SHAPE]
    work += [(part, options.shape[0]) for part in parts if part not in OF_A_SHAPE]
    functions = {
        "train": train.benchmark_training,
        "generate": generate.benchmark_generation,
        "peers": peers.benchmark_peers,
        "data": data.benchmark_data,
        "processes": processes.benchmark_processes,
    }
    result = {"environment": measure.environment(device), "options": vars(options), "shapes": {}}
    begin = time.perf_counter()
    for number, (part, shape) in enumerate(work):
        started = time.perf_counter()
        left = None if options.seconds is None else max(0.0, begin + options.seconds - started)
        options.deadline = None if left is None else started + left / (len(work) - number)
        found = functions[part](shape, device, options)
        for arm in found.get("arms", {}).values():
            del arm["readings"]
        result["shapes"].setdefault(shape, {})[part] = {**found, "took_seconds": time.perf_counter() - started}
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if args.json:
            write_json(args.json, result)
    return result


def with_defaults(args: argparse.Namespace, device_type: str) -> argparse.Namespace:
    """The options; what was not given is chosen for the device."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    chosen = {name: values[device_type == "cuda"] for name, values in DEFAULTS.items()}
    left_out = ("part", "json", "write_readme", "results", "device", "threads", "command")
    options = {"batch_size": None, "deadline": None, **chosen, **given}
    return argparse.Namespace(**{name: value for name, value in options.items() if name not in left_out})
