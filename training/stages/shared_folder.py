"""The processes of a run and the folder that they share."""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from transformers.utils import logging

from mmcot.training.common import UserError
from mmcot.training.stages.manifest import changes, manifest_of, read_manifest
from mmcot.training.stages.recipe import Recipe

logger = logging.get_logger("mmcot")


def start_processes(recipe: Recipe):
    """accelerate's `PartialState`, started with the recipe's device, backend and time limit."""
    from accelerate import PartialState

    options: dict[str, Any] = {}
    if recipe.training.get("ddp_backend") is not None:
        options["backend"] = recipe.training["ddp_backend"]
    if recipe.training.get("ddp_timeout") is not None:
        options["timeout"] = timedelta(seconds=recipe.training["ddp_timeout"])
    return PartialState(cpu=bool(recipe.training.get("use_cpu")), **options)


def remove_stale(file: Path, identity: dict[str, Any]) -> None:
    """Removes predictions that another stage, split or decoding made, whole ones and begun ones."""
    found = read_manifest(file)
    if found is None:  # of an earlier version: what was begun knows its model, and is checked by it
        file.unlink(missing_ok=True)
        return
    other = changes(found["settings"], identity)
    if not other and not file.exists():
        return
    if other:
        logger.warning(f"{file}: was made with other settings ({', '.join(other[:3])}), and is made anew")
        for part in file.parent.glob(f"{file.name}.partial-records*"):
            part.unlink()
    file.unlink(missing_ok=True)
    manifest_of(file).unlink(missing_ok=True)


def check_shared(folder: Path, state) -> None:
    """Refuses nodes that don't share the run's folder: each reads what the others' processes wrote."""
    if state.num_processes == 1:
        return
    from accelerate.utils import gather_object

    token = folder / ".shared"
    if state.is_main_process:
        token.touch()
    state.wait_for_everyone()
    limit = time.monotonic() + 10  # network file systems take a moment to show a new file
    while not (seen := folder.is_dir() and token.name in os.listdir(folder)) and time.monotonic() < limit:
        time.sleep(0.2)
    everyone = gather_object([seen])
    if state.is_main_process:
        token.unlink(missing_ok=True)
    if not all(everyone):
        raise UserError(
            f"output_dir: {folder.absolute()}: {everyone.count(False)} of {len(everyone)} processes don't see what "
            "the first one writes there; give a folder on a file system that all nodes share"
        )
