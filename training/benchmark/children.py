"""Processes of their own: their memory and start are looked at, or they train together."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

QUIET = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


class Child:
    """A function at work in a process of its own, or in several that know of each other (`torch.distributed`).

    Args:
        function: "module:function"; it takes the arguments, and what it returns is found.
        out: where it lies in between, `<out>.<rank>`; in a folder that exists.
        processes: how many.
        environment: variables beside this process's.
        arguments: for the function; JSON.
    """

    def __init__(self, function: str, out: Path, processes: int = 1, environment=None, **arguments):
        self.out, self.count = out, processes
        plan = out.with_name(f"{out.name}.plan")
        plan.write_text(json.dumps(arguments, default=str))
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        self.log = out.with_name(f"{out.name}.log").open("w+", encoding="utf-8")  # a pipe nobody reads would fill up
        self.process = subprocess.Popen(
            [sys.executable, *(launch if processes > 1 else []), "-m", __name__, function, str(out), str(plan)],
            env={**os.environ, **QUIET, **(environment or {})},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def found(self) -> list[dict]:
        """What each process returned, when all have ended; a RuntimeError with the first line on an error."""
        with self.log:
            if code := self.process.wait():
                self.log.seek(0)
                lines = [line for line in self.log.read().splitlines() if "Error" in line]
                raise RuntimeError(lines[0].strip() if lines else f"a process of the benchmark ended with {code}")
        return [json.loads(self.out.with_name(f"{self.out.name}.{r}").read_text()) for r in range(self.count)]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()


def found_in_child(function: str, out: Path, environment: dict | None = None, **arguments):
    """What a function returns in a process of its own."""
    return Child(function, out, environment=environment, **arguments).found()[0]


def call(function: str, arguments: dict):
    """What "module:function" returns."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(**arguments)


if __name__ == "__main__":
    function, out, plan = sys.argv[1:]
    found = call(function, json.loads(Path(plan).read_text()))
    Path(f"{out}.{os.environ.get('RANK', 0)}").write_text(json.dumps(found))
