"""What other commands measured stands in the report, with its own numbers."""

import json

import pytest

from mmcot.training.cli import main
from mmcot.training.common import UserError
from mmcot.training.data.problems import load_problems
from mmcot.training.report.evidence import evidence_texts, read_evidence

SOURCE = "embedded:n=8,skills=flower+tense"


def rate(percent, n=8, name="percent"):
    return {"n": n, name: percent, "ci95": [percent - 1, percent + 1]}


@pytest.fixture
def files(tmp_path):
    compared = {"accuracy": rate(40.0), "before": rate(90.0), "same_answer": rate(45.0)}
    probes = {"blank": {**compared, "same_rationale": rate(12.0)}, "truncated": {"25": compared}}
    probes["edited"] = {"follows": rate(70.0), "stays": rate(20.0), "neither": rate(10.0), "not_editable": 0}
    quantiles = {"5": 0.1, "25": 0.2, "50": 0.3, "75": 0.4, "95": 0.5}
    row = {"questions": 8, "tokens": 80, "mean": 0.31, "std": 0.1, "quantiles": quantiles, "histogram": [4] * 20}
    stages = {"rationale": {"all": row, "with_picture": row, "skills": {"Read a map": row}, "tokens": {}}}
    errors = {"questions": 8, "wrong": 3, "drawn": ["a", "b"], "indicator": {"wrong": rate(66.0, 3, "hallucinated")}}
    errors["labels"] = {"n": 2, "shares": {"logic": {"count": 1, **rate(50.0, 2, "share")}, "other": {"count": 0}}}
    errors["agreement"] = {"agree": 75.0, "kappa": 0.5, "n": 4}
    errors["corrected"] = {"all": rate(33.0, 3, "corrected")}
    contents = {"probes": {"model": "demo/hub", "probes": probes}, "gate": {"model": "demo/hub", "stages": stages}}
    contents["errors"] = {"model": None, **errors}
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return [tmp_path / f"{name}.json" for name in contents]


def test_each_file_is_a_section(files):
    texts = {one["kind"]: evidence_texts(one) for one in read_evidence(files)}
    title, text, [(head, rows)] = texts["probes"]
    assert title == "Faithfulness: demo/hub" and "follows it in 70.0 [69.0, 71.0] %" in text and len(head) == 6
    assert rows[0][:4] == ["without the picture", "8", "40.0 [39.0, 41.0]", "90.0 [89.0, 91.0]"]
    assert rows[1][0] == "the first 25 % of its rationale's words" and rows[1][-1] == ""
    _, _, [(head, rows)] = texts["gate"]
    assert rows[-1] == ["Read a map", "8", "0.310", "0.100", "0.300", "0.500"] and len(rows) == 3
    title, text, [(_, rows)] = texts["errors"]
    assert title == "Errors: errors.json" and "Cohen's kappa 0.50" in text
    assert [row[2].split()[0] for row in rows] == ["66.0", "50.0", "33.0"]


def test_they_stand_in_the_report(files, tmp_path):
    problems = load_problems(SOURCE, "test")
    lines = [{"header": {"protocol": "generated", "split": "test", "source": SOURCE, "rationale_format": "QCM-E"}}]
    lines += [{"id": p["id"], "answer": p["answer"], "rationale": p["solution"]} for p in problems]
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [
        "report",
        str(file),
        "--output",
        str(tmp_path / "r.md"),
        "--json",
        str(tmp_path / "r.json"),
        "--evidence",
    ]
    assert main([*command, *map(str, files)]) == 0
    page = (tmp_path / "r.md").read_text()
    for title in ("## Faithfulness: demo/hub", "## Gate: demo/hub", "## Errors: errors.json"):
        assert title in page
    assert [one["kind"] for one in json.loads((tmp_path / "r.json").read_text())["evidence"]] == [
        "probes",
        "gate",
        "errors",
    ]


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"accuracy": 1}')
    with pytest.raises(UserError, match="x.json: expected what `mmcot probe`"):
        read_evidence([tmp_path / "x.json"])
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_evidence([tmp_path / "x.json"])
    with pytest.raises(UserError, match="no file"):
        read_evidence([tmp_path / "y.json"])
