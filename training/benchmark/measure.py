"""How the benchmark measures: arms that take turns, times, memory, the device's peak, a network's arithmetic."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

WARM_UP = "one run of each arm before the first pair, left out"


@dataclass
class Arm:
    """One of the ways that are compared.

    Attributes:
        run: number of the turn → {"count": what was done, "seconds": …}.
        model: at work in it.
    """

    name: str
    run: Callable[[int], dict]
    model: torch.nn.Module | None = None


def take_turns(
    arms: Sequence[Arm], repeats: int, device: torch.device, deadline: float | None = None
) -> tuple[dict[str, dict], dict[str, str]]:
    """Runs arms one after the other, again and again, so that a busy machine slows all of them.

    Args:
        arms: the first is what the others are compared with.
        repeats: runs of each that count; before them one that doesn't.
        deadline: no more repeats after this `time.perf_counter`.

    Returns:
        name → {"per_second", "ratio" (pair by pair, to the first arm), "peak_memory_bytes" (of a GPU), "repeats",
        "readings"}; and name → reason of arms that failed, such as for want of memory.
    """
    readings: dict[str, list[dict]] = {arm.name: [] for arm in arms}
    failed: dict[str, str] = {}
    for turn in range(repeats + 1):
        if turn > 1 and deadline is not None and time.perf_counter() > deadline:
            break
        for arm in arms if turn % 2 else arms[::-1]:
            if arm.name in failed:
                continue
            others = start_of_peak(device, arm.model)
            try:
                reading = arm.run(turn)
            except RuntimeError as error:  # torch.OutOfMemoryError, or a graph that doesn't compile
                if arm is arms[0]:
                    raise
                failed[arm.name] = str(error).strip().partition("\n")[0]
                continue
            if turn:
                if device.type == "cuda":
                    reading["peak_memory"] = torch.cuda.max_memory_allocated(device) - others
                readings[arm.name].append(reading)
    first = [rate(reading) for reading in readings[arms[0].name]]
    found = {}
    for name, taken in readings.items():
        if name in failed:
            continue
        rates = [rate(reading) for reading in taken]
        found[name] = {
            "per_second": spread(rates),
            "ratio": spread([own / other for own, other in zip(rates, first, strict=True)]),
            "peak_memory_bytes": max((r["peak_memory"] for r in taken if "peak_memory" in r), default=None),
            "repeats": len(taken),
            "warm_up": WARM_UP,
            "readings": taken,
        }
    return found, failed


def start_of_peak(device: torch.device, model: torch.nn.Module | None) -> int:
    """Bytes that lie on the GPU for other arms: they aren't counted in an arm's peak, which starts here."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    own = () if model is None else (*model.parameters(), *model.buffers())
    return torch.cuda.memory_allocated(device) - sum(weight.nbytes for weight in own)


def rate(reading: dict) -> float:
    return reading["count"] / reading["seconds"]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock time of a call, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a square matrix product, the fastest of several."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: left @ right, device) for _ in range(10))


def forward_flops(make_model: Callable[[], torch.nn.Module]) -> Callable[[int, int, int], float]:
    """Operations of a forward pass over one sample without padding, by its source and target length and patches.

    PyTorch counts them (`FlopCounterMode`) on a network without memory, at a few lengths; they are a polynomial of
    second degree in both lengths. A pass backward takes twice as many.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = make_model().eval()

    def counted(source: int, target: int, patches: int) -> int:
        ids = torch.zeros(1, source, dtype=torch.long, device="meta")
        inputs = {"input_ids": ids, "labels": ids.new_zeros(1, target)}
        if patches:
            inputs["image_features"] = torch.zeros(1, patches, model.config.image_feature_size, device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**inputs, use_cache=False)
        return counter.get_total_flops()

    def terms(source: int, target: int) -> list[float]:
        return [1, source, target, source**2, target**2, source * target]

    points = [(8, 8), (8, 64), (64, 8), (64, 64), (128, 64), (64, 128)]
    fits: dict[int, np.ndarray] = {}

    def operations(source: int, target: int, patches: int = 0) -> float:
        if patches not in fits:
            fits[patches] = np.linalg.solve([terms(*p) for p in points], [counted(*p, patches) for p in points])
        return float(np.dot(terms(source, target), fits[patches]))

    return operations


def resident(which: str = "VmRSS") -> int | None:
    """Memory of this process in bytes: resident now, at its highest (VmHWM), its own (RssAnon); None without /proc."""
    found = _line_of("/proc/self/status", which)
    return None if found is None else 1024 * int(found.split()[0])


def environment(device: torch.device) -> dict:
    """Device and versions that figures were measured with."""
    import transformers

    import mmcot

    cuda = device.type == "cuda"
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if cuda else _processor_name(),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "mmcot": mmcot.__version__,
    }


def _processor_name() -> str:
    return _line_of("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def _line_of(path: str, name: str) -> str | None:
    """What stands behind the colon of the first line that begins with `name`; None without such a file or line."""
    try:
        with open(path) as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith(name)), None)
    except OSError:
        return None
