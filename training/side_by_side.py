"""Several recipes at once, each in a process with its share of this one's threads."""

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any


def run_side_by_side(arms: dict[str, str], options: dict[str, list[str]]) -> Iterator[tuple[str, float | None]]:
    """Runs recipes in processes that share this one's threads: networks so small don't fill them.

    Args:
        arms: name → recipe; bars bear the first three letters of the name.
        options: name → the recipe's `key=value`.

    Yields:
        each arm when its process has ended, with its seconds; or with None, where it is left to do here: one arm
        alone, one thread, or a process that failed.
    """
    import torch

    threads = torch.get_num_threads() // len(arms) or 1
    if len(arms) == 1 or torch.get_num_threads() == 1:
        yield from ((name, None) for name in arms)
        return
    if sys.platform == "linux":  # libraries are imported once, by a process that computes nothing
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["mmcot.training.stages.fit", "mmcot.training.stages.trainer"])
    else:
        context = multiprocessing.get_context("spawn")
    lock, began = context.RLock(), time.perf_counter()
    running = {
        name: context.Process(target=_arm, args=(recipe, options[name], threads, name, 1 + place, lock))
        for place, (name, recipe) in enumerate(arms.items())
    }
    try:
        with _later_interrupts():  # Ctrl-C is for this process, which ends the others
            for process in running.values():
                process.start()
        while running:
            ended = multiprocessing.connection.wait([process.sentinel for process in running.values()])
            took = time.perf_counter() - began
            for name, process in list(running.items()):
                if process.sentinel in ended:
                    del running[name]
                    process.join()
                    yield name, None if process.exitcode else took
    finally:
        for process in running.values():
            if process.pid is not None:
                process.terminate()
                process.join()


@contextlib.contextmanager
def _later_interrupts() -> Iterator[None]:
    """Interrupts wait for the end of the block, and never reach processes that are started in it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _arm(recipe: str, options: list[str], threads: int, name: str, place: int, lock) -> None:
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
    tqdm.set_lock(lock)
    begin = tqdm.__init__

    def begin_here(bar, *args, desc=None, **kwargs):
        begin(bar, *args, desc=f"{name[:3]} {desc or ''}".strip(), **{"mininterval": 0.5, **kwargs, "position": place})

    tqdm.__init__ = begin_here
    try:
        run_recipe(load_recipe(recipe, options))
    except BaseException:  # it is done again where it is heard
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
