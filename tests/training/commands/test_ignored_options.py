"""An option that would be ignored is refused by name, in one line, before anything is loaded."""

import json

import pytest

from mmcot.training.cli import main

SOURCE = "embedded:n=4,test=4"
ERRORS = ["errors", SOURCE, "--predictions", "FILE"]
REPORT = ["report", "FILE", "--problems", SOURCE]
REASON = ["reason", "--model", "nowhere/model", "--output", "OUT"]

IGNORED = [
    ([*ERRORS, "--pictures", "DIR"], "--pictures has no effect without --labels FILE"),
    ([*ERRORS, "--hints"], "--hints has no effect without --labels FILE"),
    ([*ERRORS, "--labeller", "ada"], "--labeller has no effect without --labels FILE"),
    ([*ERRORS, "--agreement", "FILE"], "--agreement has no effect without --labels FILE"),
    ([*ERRORS, "--columns", "image=photo"], "--columns has no effect without --labels FILE"),
    ([*ERRORS, "--labels", "OUT", "--count-only", "--hints"], "--hints has no effect with --count-only"),
    ([*ERRORS, "--n", "0"], "--n 0: give a whole number of at least 1"),
    (["errors", SOURCE, "--validate", "--seed", "3"], "--seed has no effect without --predictions"),
    (
        ["evaluate", "--compare", "FILE", "FILE", "--problems", SOURCE, "--similarity-model", "m"],
        "--similarity-model has",
    ),
    (["evaluate", "--compare", "FILE", "FILE", "--problems", SOURCE, "--unparsable", "random"], "--unparsable has no"),
    (["evaluate", "--compare", "FILE", "FILE", "--problems", SOURCE, "--risk-coverage"], "--risk-coverage has no"),
    (["evaluate", "--predictions", "FILE", "--problems", SOURCE, "--seed", "1"], "without --unparsable random"),
    ([*REPORT, "--limit", "-1"], "--limit -1: give a whole number of at least 0"),
    ([*REPORT, "--device", "banana", "--model", "none"], "--device has no effect with --model none"),
    ([*REPORT, "--device", "cpu", "--limit", "0"], "--device has no effect with --limit 0"),
    ([*REPORT, "--output", "a.md", "--model", "m"], "--model has no effect on a Markdown file"),
    ([*REPORT, "--probe", "a=FILE", "--probe", "a=FILE"], "there is a probe of that name already"),
    (["report", "m", SOURCE, "--output", "a.png", "--json", "OUT"], "--json has no effect on a picture"),
    (["report", "m", SOURCE, "--output", "a.svg", "--limit", "2"], "--limit has no effect on an .svg file"),
    (["predict", "m", SOURCE, "--output", "OUT", "--seed", "1"], "--seed has no effect where nothing is sampled"),
    (["predict", "m", SOURCE, "--output", "OUT", "--columns", "image=a", "image=b"], "image is named twice"),
    (["demo", "--write-readme", "README.md", "--quick"], "--quick has no effect with --write-readme"),
    (
        ["features", SOURCE, "--backbone", "vit", "--output", "OUT", "--name-map", "FILE"],
        "--name-map has no effect without",
    ),
    (
        ["features", "--import-original", "FILE", "--name-map", "FILE", "--output", "OUT", "--split", "val"],
        "--split has no",
    ),
    (["convert", "DIR", "OUT", "--output", "OUT"], "two folders are named"),
    (["check", SOURCE, "--samples", "-1"], "--samples -1: give a whole number"),
    ([*REASON, "zero-shot-cot", SOURCE, "--shots", "4"], "--shots has no effect with zero-shot-cot"),
    ([*REASON, "zero-shot-cot", SOURCE, "--concurrency", "4"], "--concurrency has no effect without --endpoint"),
    ([*REASON, "direct", SOURCE, "--prompt-format", "QCM-ALE"], "--prompt-format has no effect with direct"),
    ([*REASON, "few-shot-cot", SOURCE, "--embedding-model", "m"], "--embedding-model has no effect with few-shot-cot"),
    (
        [*REASON, "zero-shot-cot", SOURCE, "--endpoint", "http://localhost:1/v1", "--device", "cpu"],
        "--device has no effect with --endpoint",
    ),
    (
        ["distill", "--teacher", "m", SOURCE, "--output", "OUT", "--shots", "4"],
        "--shots has no effect with zero-shot-cot",
    ),
    (["benchmark", "data", "--slots", "4"], "--slots has no effect on the part data"),
    (["benchmark", "dtypes", "--model", "m", "--repeats", "4"], "--repeats has no effect on the part dtypes"),
    (["benchmark", "train", "--from", "FILE"], "--from has no effect without --write-readme"),
    (["reproduce", "base-v5", "--train", "--answer-weights", "DIR"], "--answer-weights has no effect with --train"),
]


@pytest.mark.parametrize(("arguments", "said"), IGNORED, ids=lambda value: value if isinstance(value, str) else "")
def test_an_option_without_effect_is_refused(tmp_path, capsys, arguments, said):
    lines = [{"header": {"method": "m", "split": "test", "protocol": "generated", "source": SOURCE}}]
    lines += [{"id": f"test-0-{row}", "answer": 0} for row in range(4)]
    places = {"FILE": tmp_path / "p.jsonl", "OUT": tmp_path / "out", "DIR": tmp_path}
    places["FILE"].write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = [str(places.get(argument, argument)).replace("=FILE", f"={places['FILE']}") for argument in arguments]
    assert main(arguments) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert said in err[-1] and err[-1].startswith(f"mmcot {arguments[0]}: error: ") and not places["OUT"].exists()


def test_a_probe_of_pictures_needs_pictures(two_stage_repository, tmp_path, capsys, caplog):
    source = "embedded:n=4,test=4,skills=tense"
    probe = ["probe", str(two_stage_repository), source, "--split", "test", "--device", "cpu", "--output"]
    assert main([*probe, str(tmp_path / "out"), "--probes", "other-picture"]) == 2
    assert "the probe other-picture needs 2 questions with a picture; here 0 have one" in capsys.readouterr().err
    assert main([*probe, str(tmp_path / "out"), "--probes", "blank", "shuffled"]) == 0
    assert "left out: the probe blank, for 0 questions have a picture" in caplog.text
    assert list(json.loads((tmp_path / "out" / "probes.json").read_text())["probes"]) == ["shuffled"]
