"""`mmcot benchmark dtypes`: the same questions in every dtype, compared one by one."""

import json

from mmcot.training.benchmark.dtypes import DTYPES, compare_dtypes
from mmcot.training.cli import main
from mmcot.training.evaluation.predictions import read_header


def test_a_model_is_compared_with_itself_in_every_dtype(two_stage_repository, tmp_path, capsys):
    command = ["benchmark", "dtypes", "--model", str(two_stage_repository), "--source", "embedded:n=12"]
    command += ["--limit", "8", "--predictions", str(tmp_path / "kept"), "--json", str(tmp_path / "dtypes.json")]
    assert main(command) == 0
    found = json.loads((tmp_path / "dtypes.json").read_text())["shapes"]["demo"]["dtypes"]
    assert list(found["dtypes"]) == list(DTYPES) and found["questions"] == 8
    assert found["dtypes"]["float32"]["equal_rationales"] == found["dtypes"]["float32"]["equal_answers"] == 100
    for dtype in DTYPES:
        assert read_header(tmp_path / "kept" / f"predictions-{dtype}.jsonl")["dtype"] == dtype
    assert "8 questions in int8, equal to float32's: rationales" in capsys.readouterr().out
    path = tmp_path / "kept" / "predictions-int8.jsonl"
    lines = path.read_text().splitlines()
    changed = json.loads(lines[1])
    changed["rationale"] += " and more"
    path.write_text("\n".join([lines[0], json.dumps(changed), *lines[2:]]) + "\n")
    again = compare_dtypes(two_stage_repository, "embedded:n=12", limit=8, folder=tmp_path / "kept")["dtypes"]["int8"]
    assert again["equal_rationales"] == found["dtypes"]["int8"]["equal_rationales"] - 12.5
    assert again["seconds"] is None and again["equal_answers"] == found["dtypes"]["int8"]["equal_answers"]


def test_a_model_has_to_be_named(capsys):
    assert main(["benchmark", "dtypes"]) == 2
    assert "--model" in capsys.readouterr().err
