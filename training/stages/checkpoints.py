"""Checkpoints that a training can go on from: whole ones. One that was being written when its process was killed, or
the disk was full, is put aside."""

import json
import re
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

logger = logging.get_logger("mmcot")

STATE = "trainer_state.json"
DAMAGED = "damaged-"


def last_whole_checkpoint(folder: str | Path, processes: tuple[int, ...] = (1,), sharded: bool = False) -> Path | None:
    """The last `checkpoint-N` of a folder from which a training goes on to the same end, or None.

    Args:
        processes: how many may have written it; each leaves a state of its random numbers.
        sharded: FSDP or DeepSpeed wrote it, in files of their own; only what the Trainer itself writes is checked.
    """
    whole = (path for path in _checkpoints(folder) if what_is_missing(path, processes, sharded) is None)
    return next(whole, None)


def put_damaged_aside(folder: str | Path, processes: tuple[int, ...] = (1,), sharded: bool = False) -> None:
    """Renames the last checkpoints that nothing can go on from, and says so: they would count as the newest, and the
    Trainer remove whole ones for them. To be called by one process; arguments as above."""
    for path in _checkpoints(folder):
        fault = what_is_missing(path, processes, sharded)
        if fault is None:
            return
        aside, number = path.with_name(f"{DAMAGED}{path.name}"), 1
        while aside.exists():
            number += 1
            aside = path.with_name(f"{DAMAGED}{path.name}-{number}")
        path.rename(aside)
        logger.warning(f"{path}: {fault}, so it is passed over, and kept as {aside.name}")


def what_is_missing(path: Path, processes: tuple[int, ...] = (1,), sharded: bool = False) -> str | None:
    """Why a training can't go on from a checkpoint, in a few words; None if it can."""
    try:
        best = json.loads((path / STATE).read_text(encoding="utf-8")).get("best_model_checkpoint")
    except (OSError, ValueError, AttributeError):
        return f"its {STATE} is missing or damaged"
    if sharded:
        return None
    for name in ("optimizer.pt", "scheduler.pt"):
        fault = _fault_of_archive(path / name)
        if fault is not None:
            return f"its {name} {fault}"
    faults = [_fault_of_random_states(path, number) for number in processes]
    if all(faults):
        return f"its {faults[0]}"
    fault = _fault_of_weights(path)
    if fault is None and best is not None and Path(best).name != path.name:
        fault = _fault_of_weights(path.parent / Path(best).name)
        return fault and f"the best one so far, {Path(best).name}, is no more whole ({fault})"
    return fault and f"its {fault}"


def _fault_of_random_states(path: Path, processes: int) -> str | None:
    names = ["rng_state.pth"] if processes == 1 else [f"rng_state_{i}.pth" for i in range(processes)]
    return next((f"{name} {fault}" for name in names if (fault := _fault_of_archive(path / name))), None)


def _checkpoints(folder: str | Path) -> list[Path]:
    """Newest first."""
    found = {}
    for path in Path(folder).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and path.is_dir():
            found[int(match[1])] = path
    return [found[step] for step in sorted(found, reverse=True)]


def _fault_of_archive(path: Path) -> str | None:
    """What is wrong with a file of `torch.save`: a zip archive, with a checksum of each part."""
    if not path.is_file():
        return "is missing"
    try:
        with zipfile.ZipFile(path) as archive:
            return "is damaged" if archive.testzip() is not None else None
    except (zipfile.BadZipFile, OSError, EOFError):
        return "is damaged"


def _fault_of_weights(path: Path) -> str | None:
    """What is wrong with the weights: missing, cut off, or not finite."""
    index = path / "model.safetensors.index.json"
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.is_file() else None
    except (ValueError, KeyError, AttributeError):
        return f"{index.name} is damaged"
    for name in sorted(names or {"model.safetensors"}):
        if not (path / name).is_file():
            return f"{name} is missing"
        try:
            with safe_open(path / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    tensor = file.get_tensor(key)
                    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                        return f"weights {key} aren't finite"
        except (SafetensorError, OSError):
            return f"{name} is damaged"
    return None
