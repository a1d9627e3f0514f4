"""The speed table that README prints is what the result files in docs/results say."""

import json
from pathlib import Path

import pytest

from mmcot.training.benchmark.table import speed_table

ROOT = Path(__file__).parents[3]


def test_readmes_speed_table_is_that_of_the_result_files():
    files = sorted((ROOT / "docs" / "results").glob("speed-*.json"))
    if not files:
        pytest.skip("docs/results has no speed-*.json: run `mmcot benchmark PART --json docs/results/speed-PART.json`")
    files += [file for file in [ROOT / "docs" / "results" / "dtypes.json"] if file.exists()]
    printed = (ROOT / "README.md").read_text(encoding="utf-8")
    printed = printed.split("<!-- speed:begin -->")[1].split("<!-- speed:end -->")[0].strip()
    assert printed == speed_table([json.loads(file.read_text(encoding="utf-8")) for file in files]).strip()
