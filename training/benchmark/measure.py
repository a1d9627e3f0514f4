"""How the benchmark measures: times, memory, the device's peak, the arithmetic of a network."""

import os
import platform
import statistics
import time
from collections.abc import Callable

import torch


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of a call, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def too_late(deadline: float | None) -> bool:
    """Whether the time for repeats is up; `deadline` is of `time.perf_counter`."""
    return deadline is not None and time.perf_counter() > deadline


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a square matrix product, the fastest of several."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = min(seconds(lambda: left @ right, device) for _ in range(10))
    return 2 * size**3 / best


def memory_bandwidth(device: torch.device) -> float:
    """Bytes a second that a sum over a large array reads."""
    numbers = torch.ones(2**28 if device.type == "cuda" else 2**25, device=device)
    return numbers.nbytes / min(seconds(numbers.sum, device) for _ in range(5))


class PeakMemory:
    """Peak memory of a block in bytes: of the GPU's allocations, else of the process's resident memory.

    Args:
        model: the one at work. What else lies on the GPU before isn't counted; of a process it is.
    """

    def __init__(self, device: torch.device, model: torch.nn.Module):
        self.device, self.model, self.bytes, self.others = device, model, None, 0

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            own = sum(weight.nbytes for weight in (*self.model.parameters(), *self.model.buffers()))
            self.others = torch.cuda.memory_allocated(self.device) - own
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            try:
                with open("/proc/self/clear_refs", "w") as file:
                    file.write("5")  # Linux: resets the peak of resident memory
            except OSError:
                pass
        return self

    def __exit__(self, *error) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self.others
        else:
            self.bytes = resident("VmHWM")


def resident(which: str = "VmRSS") -> int | None:
    """Resident memory of this process in bytes, now or at its highest (VmHWM); None where /proc isn't."""
    try:
        with open("/proc/self/status") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith(which))
    except (OSError, StopIteration):
        return None


def forward_flops(config, source: int, target: int, patches: int = 0, decoder: bool = True) -> int:
    """Operations of one forward pass over one sample without padding, two for each multiply-add.

    Counted are the matrix products: projections, attention, feed-forward, output layer, fusion. A pass backward takes
    twice as many.
    """
    inner, d_model = config.num_heads * config.d_kv, config.d_model
    feed_forward = d_model * config.d_ff * (3 if config.is_gated_act else 2)
    products = config.num_layers * source * (4 * d_model * inner + feed_forward + 2 * source * inner)
    if config.image_feature_size is not None:
        seen = max(1, patches)
        products += seen * (config.image_feature_size * d_model + 2 * d_model * d_model)  # patches, keys, values
        products += source * (2 * d_model * d_model + 2 * seen * d_model + 2 * d_model * d_model)
    if decoder:
        own = 4 * d_model * inner + feed_forward + target * inner  # each sees half of the others, on average
        crossing = 2 * d_model * inner + 2 * source * inner
        products += config.num_decoder_layers * (target * (own + crossing) + source * 2 * d_model * inner)
        products += target * d_model * config.vocab_size
    return 2 * products


def environment(device: torch.device) -> dict:
    """Device and versions that figures were measured with."""
    import transformers

    import mmcot

    if device.type == "cuda":
        name, memory = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
    else:
        name, memory = _processor_name(), None
    return {
        "device": device.type,
        "device_name": name,
        "device_memory": memory,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "mmcot": mmcot.__version__,
    }


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
