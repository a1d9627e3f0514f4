"""Recipes side by side: each is done once, beside the others or here."""

import multiprocessing
import os
import signal
import sys
import time

import pytest
import torch

from mmcot.training import side_by_side
from mmcot.training.side_by_side import run_side_by_side

ARMS = {"(a) one": "one", "(b) two": "two", "(c) three": "three"}
OPTIONS = {name: [] for name in ARMS}


def arm(recipe, options, threads, name, place):
    """In place of a training: one fails, one is killed, one takes longer."""
    if recipe == "one":
        os._exit(1)
    if recipe == "two":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1.5)


def all_well(recipe, options, threads, name, place):
    assert threads == 1 and name in ARMS


@pytest.fixture
def threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    folder = os.path.dirname(__file__)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")])))


@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by a signal")
def test_what_fails_is_left_to_do_here_when_the_others_are_through(threads, monkeypatch):
    monkeypatch.setattr(side_by_side, "_arm", arm)
    found = list(run_side_by_side(ARMS, OPTIONS))
    assert [name for name, _ in found][0] == "(c) three" and found[0][1] >= 1.5
    assert sorted(found[1:]) == [("(a) one", None), ("(b) two", None)]
    assert not multiprocessing.active_children()


def test_all_of_them_end_with_their_seconds(threads, monkeypatch):
    monkeypatch.setattr(side_by_side, "_arm", all_well)
    found = dict(run_side_by_side(ARMS, OPTIONS))
    assert set(found) == set(ARMS) and all(took > 0 for took in found.values())


def test_a_machine_that_starts_no_processes_does_one_after_the_other(threads, monkeypatch):
    def refuse(*args):
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(side_by_side, "_start", refuse)
    assert list(run_side_by_side(ARMS, OPTIONS)) == [(name, None) for name in ARMS]


def test_one_arm_or_one_thread_starts_no_process(monkeypatch):
    monkeypatch.setattr(side_by_side, "_start", None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert list(run_side_by_side(ARMS, OPTIONS)) == [(name, None) for name in ARMS]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert list(run_side_by_side({"a": "one"}, {"a": []})) == [("a", None)]
