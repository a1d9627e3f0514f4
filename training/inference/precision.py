"""The dtype that answers are computed in: what `auto` means on a device, and what a device takes."""

import functools
import os
import sys
from pathlib import Path

import torch

from mmcot.training.common import UserError

DTYPES = ("auto", "float32", "bfloat16", "int8")
# processors whose own instructions multiply bf16: AVX512-BF16 and AMX of x86, BF16 of Arm
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}

# what oneDNN, which does these products, may be held to by its variable ONEDNN_MAX_CPU_ISA
WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"}


def has_native_bf16(device_type: str | None = None) -> bool:
    """Whether a device multiplies bf16 by instructions of its own; others emulate it, slower than float32.

    Args:
        device_type: "cpu" or "cuda" (ROCm's GPUs too); default: cuda where there is one.
    """
    device_type = device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    if device_type == "cuda":
        if not torch.cuda.is_available():
            return False
        if torch.version.hip:
            return torch.cuda.is_bf16_supported()
        return torch.cuda.get_device_capability()[0] >= 8  # NVIDIA's before compute capability 8 emulate it
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in WITHOUT_BF16:
        return False
    return device_type == "cpu" and bool(BF16_FLAGS & cpu_flags()) and torch.backends.mkldnn.is_available()


@functools.lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """What the processor can do, in the kernel's words; empty where the system doesn't tell.

    PyTorch's own question, `mkldnn._is_mkldnn_bf16_supported`, is answered yes by processors that emulate it.
    """
    if sys.platform == "darwin":
        import subprocess

        command = ["sysctl", "-n", "hw.optional.arm.FEAT_BF16"]
        told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        return frozenset({"bf16"} if told == "1" else ())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    names = ("flags", "Features")  # of x86 and of Arm
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith(names)), ()))


def check_dtype(name: str) -> None:
    """Raises a UserError unless it is one of `DTYPES`."""
    if name not in DTYPES:
        raise UserError(f"dtype is one of {', '.join(DTYPES)}, not {name!r}")


def answering_dtype(name: str, device: torch.device | str) -> torch.dtype:
    """The dtype of products and attention: "auto" is bfloat16 where the device has it, else float32.

    In any of them embeddings, the sums of the residual stream and norms stay as the model has them, softmax over the
    vocabulary in float32.

    Raises:
        UserError: an unknown name; int8 on a GPU, or on a processor for which PyTorch has no kernels.
    """
    check_dtype(name)
    device = torch.device(device)
    if name == "auto":
        return torch.bfloat16 if has_native_bf16(device.type) else torch.float32
    if name == "int8":
        if device.type != "cpu":
            raise UserError(f"dtype int8 is for CPUs, and the device is {device.type}: give bfloat16, or --device cpu")
        from mmcot.training.inference.matrices import int8_engine

        if int8_engine() is None:
            raise UserError("dtype int8: this build of PyTorch has no int8 kernels for the processor: give float32")
    return getattr(torch, name)
