"""Blocks of a Markdown page, and a way to run them as a reader does."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"(?:<!-- (?P<note>[^\n]*?) -->\n)?^```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^```", re.M | re.S)
NOT_RUN = "not run: "
ENDLESS = "runs until stopped"


class Block(NamedTuple):
    language: str
    text: str
    note: str  # of the HTML comment right above: "not run: why", "runs until stopped", or nothing


def blocks_of(page: str | Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(found["language"], found["text"], found["note"] or "") for found in FENCE.finditer(text)]


def run_block(block: Block, folder: Path, env: dict[str, str], timeout: float = 300) -> str:
    """Runs a bash or Python block in a folder and returns its stdout; fails with its stderr."""
    command = ["bash", "-ec", block.text] if block.language == "bash" else [sys.executable, "-c", block.text]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{block.text}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def run_until(block: Block, folder: Path, env: dict[str, str], pattern: str, then, timeout: float = 120) -> None:
    """Runs a block that never ends until it writes what matches, calls `then` with the match, and stops it."""
    log = folder / "endless.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            ["bash", "-ec", block.text], cwd=folder, env=env, stdout=file, stderr=file, start_new_session=True
        )
    try:
        limit = time.monotonic() + timeout
        while time.monotonic() < limit and process.poll() is None:
            if found := re.search(pattern, log.read_text()):
                return then(found[0])
            time.sleep(0.2)
        raise AssertionError(f"{block.text}\n{log.read_text()[-3000:]}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
