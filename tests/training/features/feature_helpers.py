"""What the tests of image features share."""

import json
import os
import traceback
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def in_child(function):
    """The function's result, from a process of its own."""
    return in_children(function)[0]


def only_this_thread() -> None:
    """To be called in a forked process: OpenMP would wait for ever for the threads that it had in the parent."""
    os.environ["OMP_NUM_THREADS"] = "1"  # where it isn't set, accelerate asks for a thread a core
    torch.set_num_threads(1)


def in_children(*functions) -> list:
    """The functions' results, each from a process of its own, all at once; None of one that was killed."""
    children = []
    for function in functions:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            only_this_thread()
            try:
                os.write(writing, json.dumps(function()).encode())
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(writing)
        children.append((child, reading))
    results = []
    for child, reading in children:
        with os.fdopen(reading) as file:
            result = file.read()
        os.waitpid(child, 0)
        results.append(json.loads(result) if result else None)
    return results


def resident(which: str) -> float:
    """Resident memory of this process in MiB, now (VmRSS) or at its highest (VmHWM)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(which)) / 1024


def picture_file(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.BICUBIC).save(path)
    return path


def released(folder: Path, shape: tuple, suffix: str = ".npy", repeat: bool = False) -> tuple[Path, Path, np.ndarray]:
    """A file of features, a name map of every row but row 0 in another order, and the array."""
    array = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    if repeat:
        array[:] = array[:, :1]
    path = folder / f"features{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    else:
        torch.save(torch.from_numpy(array), path)
    (folder / "name_map.json").write_text(json.dumps({str(900 - row): str(row) for row in range(1, shape[0])}))
    return path, folder / "name_map.json", array
