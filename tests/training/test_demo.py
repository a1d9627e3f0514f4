"""`mmcot demo --quick`: everything that the demo does, hardly trained."""

import json
import os
import subprocess
import sys

import pytest

from mmcot.training.demo import ARMS, BLANK, write_readme


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    done = subprocess.run(
        [sys.executable, "-m", "mmcot.training.cli", "demo", "--quick", "--output", str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


def test_it_leaves_what_it_promises(demo):
    folder, shown = demo
    results = json.loads((folder / "results.json").read_text())
    assert set(results["arms"]) == {*ARMS, BLANK}
    assert {result["n"]["Avg"] for result in results["arms"].values()} == {40}
    assert all(results["arms"][BLANK]["n"][column] > 0 for column in ("NAT", "SOC", "LAN", "TXT", "IMG", "NO"))
    assert (folder / "report.png").stat().st_size > 10_000
    for name in ("config.json", "model.safetensors", "README.md", "processing_mmcot.py"):
        assert (folder / "hub" / name).is_file()
    for text in ("G7-12", "rationale:", "answer:", "mmcot predict", "guessing gives"):
        assert text in shown


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
    from mmcot.training.demo import MAIN, demo

    summary = demo(tmp_path)
    accuracy = {name: result["accuracy"]["IMG"] for name, result in summary["arms"].items()}
    assert accuracy[MAIN] >= 90 and summary["rationales_right_word_for_word"][MAIN]["IMG"] > 50
    for name in ("(b) two stages, without pictures", BLANK):
        low, high = summary["arms"][name]["ci95"]["IMG"]
        assert low <= summary["chance_on_image_questions"] + 1 and high < 60
