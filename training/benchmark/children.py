"""Processes of their own for what the benchmark measures: their memory is looked at, or they train together."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def start(module: str, name: str, out: Path, environment: dict | None = None, processes: int = 1, **arguments):
    """A module's function `_name` started in a process of its own, or in several that know of each other.

    The module's `__main__` is `run_as_child({...})`, and the function takes `out`, where to write what it found.
    """
    (plan := out.with_name(f"{out.name}.plan")).write_text(json.dumps(arguments, default=str))
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    log = out.with_name(f"{out.name}.log").open("w+", encoding="utf-8")  # a pipe that nobody reads would fill up
    return subprocess.Popen(
        [*command, "-m", module, name, str(out), str(plan)],
        env={**os.environ, **quiet, **(environment or {})},
        stdout=log,
        stderr=subprocess.STDOUT,
    ), log


def wait(child) -> None:
    """Until a child has ended; a RuntimeError with its first line about an error where it failed."""
    process, log = child
    with log:
        if code := process.wait():
            log.seek(0)
            lines = [line for line in log.read().splitlines() if "Error" in line]
            raise RuntimeError(lines[0].strip() if lines else f"a process of the benchmark ended with {code}")


def found_in_child(module: str, name: str, folder: Path, environment: dict | None = None, **arguments) -> dict:
    """What a module's function `_name` finds in a process of its own."""
    out = folder / f"{name}.json"
    wait(start(module, name, out, environment, **arguments))
    return json.loads(out.read_text())


def run_as_child(functions: dict[str, Callable[..., None]]) -> None:
    """What a module's `__main__` does."""
    functions[sys.argv[1]](Path(sys.argv[2]), **json.loads(Path(sys.argv[3]).read_text()))
