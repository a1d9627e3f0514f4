"""Several recipes at once, each in a process with its share of this one's threads."""

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import Any


def run_side_by_side(arms: dict[str, str], options: dict[str, list[str]]) -> Iterator[tuple[str, float | None]]:
    """Runs recipes in processes that share this one's threads: networks so small don't fill them.

    Args:
        arms: name → recipe; bars bear the first three letters of the name.
        options: name → the recipe's `key=value`.

    Yields:
        each arm when its process has ended, with its seconds; then, with None, those that are left to do here: one
        arm alone, one thread, a process that failed, a machine that starts none.
    """
    import torch

    threads = torch.get_num_threads() // len(arms) or 1
    if len(arms) == 1 or torch.get_num_threads() == 1:
        yield from ((name, None) for name in arms)
        return
    running: dict[str, Any] = {}
    began, failed = time.perf_counter(), []
    try:
        try:
            _start(arms, options, threads, running)
        except (OSError, ImportError, EOFError, RuntimeError):  # no room for sockets or processes
            _end(running)
            running.clear()
            failed = list(arms)
        while running:
            ended = multiprocessing.connection.wait([process.sentinel for process in running.values()])
            took = time.perf_counter() - began
            done = [name for name, process in running.items() if process.sentinel in ended]
            for name in done:
                process = running.pop(name)
                process.join()
                if process.exitcode:
                    failed.append(name)
                else:
                    yield name, took
        yield from ((name, None) for name in failed)  # with all of the memory to themselves
    finally:
        _end(running)


def _start(arms: dict[str, str], options: dict[str, list[str]], threads: int, running: dict[str, Any]) -> None:
    """Starts a process for each arm, and puts it into `running`."""
    if sys.platform == "linux":  # libraries are imported once, by a process that computes nothing
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["mmcot.training.stages.fit", "mmcot.training.stages.trainer"])
    else:
        context = multiprocessing.get_context("spawn")
    with _without_main():
        for place, (name, recipe) in enumerate(arms.items(), 1):
            process = context.Process(target=_arm, args=(recipe, options[name], threads, name, place))
            process.start()
            running[name] = process


def _end(running: dict[str, Any]) -> None:
    for process in running.values():
        process.terminate()
    for process in running.values():
        process.join()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Processes that are started within don't run this one's script again, of which they need nothing."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _arm(recipe: str, options: list[str], threads: int, name: str, place: int) -> None:
    """A recipe in a process of its own. It shows bars, on a line of its own; what there is to know of the data, which
    is the same for all, the first one says."""
    import torch
    from tqdm import tqdm

    from mmcot.training.stages.recipe import load_recipe
    from mmcot.training.train import run_recipe

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    only_our_lines()
    if place > 1:
        logging.getLogger("mmcot").setLevel(logging.ERROR)
    tqdm.set_lock(threading.RLock())  # its own: one that is shared stays locked when a process is killed
    begin = tqdm.__init__

    def begin_here(bar, iterable=None, desc=None, *args, **kwargs):
        shown = f"{name[:3]} {desc or ''}".strip()
        begin(bar, iterable, shown, *args, **{"mininterval": 0.5, **kwargs, "position": place})

    tqdm.__init__ = begin_here
    try:
        run_recipe(load_recipe(recipe, options))
    except BaseException:  # interrupted, as all of them are, or it is done again where it is heard
        os._exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def only_our_lines() -> None:
    """Only our own lines and progress bars: no notes of libraries that a first reader can do nothing about."""
    import warnings

    import datasets
    import transformers

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # of loading, which takes a moment
    logging.getLogger("mmcot").setLevel(logging.WARNING)  # one line a training, not its table
    datasets.disable_progress_bars()
