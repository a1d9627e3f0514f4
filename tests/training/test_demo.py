"""`mmcot demo --quick`: one skill is learnt, from the pictures, and shown."""

import contextlib
import io
import json
import os
import subprocess
import sys

import pytest

from mmcot.training.demo import ARMS, BLANK, MAIN, write_readme
from mmcot.training.demo import demo as run_demo

LITTLE = ["max_steps=4", "rationale.max_steps=4", "answer.max_steps=4", "warmup_steps=2", "max_new_tokens=8"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A quick demo that hardly trains, and what it shows."""
    folder, shown = tmp_path_factory.mktemp("demo") / "out", io.StringIO()
    with contextlib.redirect_stdout(shown):
        run_demo(folder, quick=True, overrides=[*LITTLE, "data=embedded:n=60,test=20,skills=magnets"])
    return folder, shown.getvalue()


def test_it_leaves_what_it_promises(demo):
    folder, shown = demo
    results = json.loads((folder / "results.json").read_text())
    assert set(results["arms"]) == {MAIN, BLANK} and results["quick"]
    assert {result["n"]["IMG"] for result in results["arms"].values()} == {20}
    assert (folder / "report.png").stat().st_size > 10_000
    for name in ("config.json", "model.safetensors", "README.md", "processing_mmcot.py", "examples/examples.json"):
        assert (folder / "hub" / name).is_file()
    for text in ("IMG", "rationale:", "answer:", "guessing gives"):
        assert text in shown
    assert shown.index("mmcot app") < shown.index("mmcot report") < shown.index("mmcot predict")


@pytest.mark.slow
def test_the_whole_demo_goes_its_way(tmp_path, capsys):
    data = "data=embedded:n=200,test=20,skills=flower+layers+flag+tense"
    summary = run_demo(tmp_path / "out", overrides=[*LITTLE, data])
    assert set(summary["arms"]) == {*ARMS, BLANK} and not summary["quick"]
    assert {result["n"]["Avg"] for result in summary["arms"].values()} == {20}
    assert f"mmcot report {tmp_path / 'out' / 'runs' / 'demo'}" in capsys.readouterr().out


@pytest.mark.slow
def test_quick_learns_a_skill_from_the_pictures_and_shows_right_answers(tmp_path):
    command = [sys.executable, "-m", "mmcot.training.cli", "demo", "--quick", "--output", str(tmp_path / "out")]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["arms"][MAIN]["accuracy"]["IMG"] > 90 > 65 > results["arms"][BLANK]["accuracy"]["IMG"]
    assert done.stdout.count("), right") >= 3 and "In the picture, the" in done.stdout


def test_figures_of_a_quick_demo_stay_out_of_the_readme(demo, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# x\n<!-- demo:begin -->\nold\n<!-- demo:end -->\nrest\n")
    with pytest.raises(ValueError, match="quick"):
        write_readme(readme, demo[0] / "results.json")
    results = json.loads((demo[0] / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps({**results, "quick": False}))
    write_readme(readme, tmp_path / "results.json")
    text = readme.read_text()
    assert "old" not in text and text.endswith("rest\n")
    assert f"{results['arms'][BLANK]['accuracy']['Avg']:.2f}" in text


@pytest.mark.slow
def test_the_papers_argument_is_seen(tmp_path):
    """The whole demo, minutes: pictures and two stages answer, without pictures it is chance."""
    summary = run_demo(tmp_path)
    accuracy = {name: result["accuracy"]["IMG"] for name, result in summary["arms"].items()}
    assert accuracy[MAIN] >= 90 and summary["rationales_right_word_for_word"][MAIN]["IMG"] > 50
    for name in ("(b) two stages, without pictures", BLANK):
        low, high = summary["arms"][name]["ci95"]["IMG"]
        assert low <= summary["chance_on_image_questions"] + 1 and high < 60


@pytest.mark.parametrize("folder", ["a", "mmcot-demo", "a/very/long/name/of/a/folder/that/someone/chose"])
def test_what_to_try_next_is_aligned(folder):
    from pathlib import Path

    from mmcot.training.demo import _next_commands

    lines = _next_commands(Path(folder), "embedded:n=4", Path(folder) / "runs" / "demo").splitlines()
    assert len({line.index("  # ") for line in lines if "  # " in line}) == 1
    assert sum("  # " in line for line in lines) == 5 and sum(line.startswith("  mmcot ") for line in lines) == 8
