"""The command line: quick to help, clear in errors."""

import json
import re
import subprocess
import sys
import time

import pytest
from PIL import Image

from mmcot.errors_mmcot import ModelError
from mmcot.processing.prompts_mmcot import ProblemError
from mmcot.training.cli import COMMANDS, main
from mmcot.training.common import MissingFileError, UserError


def test_help_is_fast_and_imports_nothing_heavy():
    code = (
        "import sys; from mmcot.training.cli import main; main(['--help']);"
        "assert not {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "mmcot.training.cli", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def test_importing_the_package_imports_no_torch():
    code = "import sys, mmcot, mmcot.processing, mmcot.training; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_without_torch(name):
    code = (
        "import sys\nfrom mmcot.training.cli import main\n"
        f"try: main(['{name}', '--help'])\nexcept SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"usage: mmcot {name}" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_begins_with_commands_to_copy(name):
    from mmcot.training.cli import command_parser

    shown = command_parser(name)[0].format_help()
    head = shown.split("usage:")[0]
    examples = [line.strip() for line in head.splitlines() if line.startswith("  ")]
    assert head.strip() and not head.startswith("`mmcot"), "first what it does"
    assert any(re.match(rf"(accelerate launch -m )?mmcot(\.training\.cli)? {name}\b", line) for line in examples)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name):
    from mmcot.training.cli import command_parser

    assert not [one.option_strings or one.dest for one in command_parser(name)[0]._actions if not one.help]


def test_train_without_a_recipe_lists_recipes_a_line_each(capsys):
    from mmcot.training.stages.recipe_file import recipe_files

    assert main(["train"]) == 2
    lines = capsys.readouterr().err.splitlines()
    for name in recipe_files():
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert len(line.split(maxsplit=1)[1]) > 15 and "The same" not in line


def test_unknown_command_and_version(capsys):
    assert main(["trian"]) == 2
    assert "trian" in capsys.readouterr().err
    assert main(["--version"]) == 0


def test_predict_evaluate_and_report_work_together(two_stage_repository, tmp_path, capsys):
    source = "embedded:n=12"
    predictions, scores, figure = tmp_path / "predictions.jsonl", tmp_path / "scores.json", tmp_path / "report.png"
    model = str(two_stage_repository)
    assert main(["predict", model, source, "--split", "test", "--output", str(predictions), "--device", "cpu"]) == 0
    evaluate = ["evaluate", "--predictions", str(predictions), "--problems", source, "--split", "test"]
    assert main([*evaluate, "--json", str(scores)]) == 0
    assert json.loads(scores.read_text())["n"]["Avg"] == 12
    report = ["report", model, source, "--split", "test", "--limit", "3", "--output", str(figure), "--device", "cpu"]
    assert main(report) == 0
    with Image.open(figure) as image:
        assert image.width > 800 and len(set(image.convert("L").resize((40, 40)).tobytes())) > 20
    assert main(["predict", model, source, "--split", "test", "--output", str(predictions)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_predictions_go_on_where_they_were_cut(two_stage_repository, tmp_path):
    """A record that was written is kept, a line that was cut off is made again."""
    whole = tmp_path / "whole.jsonl"
    command = ["predict", str(two_stage_repository), "embedded:n=6", "--split", "test", "--device", "cpu", "--output"]
    assert main([*command, str(whole)]) == 0
    lines = whole.read_text().splitlines(keepends=True)
    kept = json.dumps({**json.loads(lines[1]), "rationale": "kept"}) + "\n"
    cut = tmp_path / "cut.jsonl"
    cut.with_name("cut.jsonl.partial-records").write_text(lines[0] + kept + lines[2][:20])
    assert main([*command, str(cut)]) == 0
    found, expected = ([json.loads(line) for line in text.splitlines()] for text in (cut.read_text(), "".join(lines)))
    assert found[1].pop("rationale") == "kept" and expected[1].pop("rationale") != "kept"
    for record, other in zip(found[1:], expected[1:], strict=True):
        assert record.pop("scores") == pytest.approx(other.pop("scores"), abs=1e-4)
    assert all(records[0]["header"].pop("seconds_per_question") > 0 for records in (found, expected))
    assert found == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.jsonl", "whole.jsonl"]


@pytest.mark.parametrize(
    "options, said",
    [
        (("--save-gate", "OUTPUT"), "is --output too"),
        (("--rationales", "2", "--temperature", "0"), "--temperature 0.0: give a number above 0"),
        (("--rationales", "2", "--temperature", "nan"), "--temperature nan"),
        (("--rationales", "2", "--mode", "generate", "--choose", "scores"), "needs the options' scores"),
        (("--rationales", "0"), "--rationales 0"),
        (("--rationales", "3", "--num-beams", "2"), "has 2 at most"),
        (("--choose", "votes"), "--choose has no effect"),
        (("--blank-images", "--features", "nowhere"), "--features has no effect"),
        (("--device", "banana"), "--device banana: PyTorch has no such device"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_loaded(tmp_path, capsys, options, said):
    output = tmp_path / "p.jsonl"
    options = [str(output) if option == "OUTPUT" else option for option in options]
    assert main(["predict", str(tmp_path), "embedded:n=2", "--output", str(output), *options]) == 2
    assert said in capsys.readouterr().err and not output.exists()


def test_a_gate_is_of_the_predictions_that_are_asked_for(two_stage_repository, tmp_path, capsys):
    command = ["predict", str(two_stage_repository), "embedded:n=2", "--split", "test", "--device", "cpu"]
    command += ["--output", str(tmp_path / "p.jsonl")]
    assert main(command) == 0
    gate = ["--save-gate", str(tmp_path / "gate.json")]
    for other in (["--mode", "generate"], ["--max-new-tokens", "3"], ["--rationales", "2"], ["--dtype", "int8"]):
        assert main([*command, *gate, *other]) == 2
        assert "p.jsonl is there already, with another" in capsys.readouterr().err
    assert not (tmp_path / "gate.json").exists()
    assert main([*command, *gate]) == 0


def test_app_without_gradio_says_what_to_install(two_stage_repository, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", str(two_stage_repository)]) == 2
    assert "pip install 'mmcot[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("data.jsonl: line 3: what is wrong"), 2),
        (MissingFileError("there is no file x"), 2),
        (ProblemError("problem 7: what is wrong"), 2),
        (ModelError("model: what is wrong"), 2),
        (OSError(28, "No space left on device", "/somewhere/x"), 2),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2),
        (PermissionError(13, "Permission denied", "/somewhere/x"), 2),
        (ValueError("a fault of ours"), None),
        (KeyError("a fault of ours"), None),
        (FileNotFoundError(2, "No such file or directory", "x"), None),
    ],
)
def test_only_what_a_user_can_mend_is_one_line(monkeypatch, capsys, error, status):
    """Everything else shows its traceback."""
    from mmcot.training.commands import predict

    def fail(args):
        raise error

    monkeypatch.setattr(predict, "run", fail)
    arguments = ["predict", "model", "source", "--output", "out"]
    if status is None:
        with pytest.raises(type(error)):
            main(arguments)
        return
    assert main(arguments) == status
    printed = capsys.readouterr().err
    assert printed.startswith("mmcot predict: error: ") and printed.count("\n") == 1
    with pytest.raises(type(error)):
        main([*arguments, "--traceback"])
    monkeypatch.setenv("MMCOT_TRACEBACK", "1")
    with pytest.raises(type(error)):
        main(arguments)


def test_help_tells_of_traceback_and_loudness(capsys):
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    printed = capsys.readouterr().out
    assert (
        "--traceback" in printed and "MMCOT_TRACEBACK" in printed and "--quiet" in printed and "--verbose" in printed
    )


def test_a_typo_gets_a_suggestion(capsys):
    assert main(["trian"]) == 2
    assert "did you mean `mmcot train`?" in capsys.readouterr().err


def test_quiet_leaves_the_result_alone(two_stage_repository, tmp_path):
    """In a process of its own: tqdm reads its variables when it is imported."""
    arguments = [str(two_stage_repository), "embedded:n=4", "--split", "test", "--device", "cpu", "--batch-size", "1"]
    for loudness in (["--quiet"], []):
        output = ["--output", str(tmp_path / f"p{len(loudness)}.jsonl")]
        command = [sys.executable, "-m", "mmcot.training.cli", "predict", *arguments, *output, *loudness]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "4 predictions in" in found.stdout
        assert (found.stderr == "") if loudness else found.stderr.count("/4 [") == 2  # in a log: beginning and end


def test_a_source_that_calls_its_fields_otherwise(two_stage_repository, tmp_path, capsys):
    """`--columns`, `--allow-outside` and `--limit` of the commands that read a source."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    folder = tmp_path / "data"
    folder.mkdir()
    row = {"ask": "What is it?", "choices": ["red", "blue"], "bild": "../red.png"}
    (folder / "q.jsonl").write_text("".join(json.dumps({**row, "id": str(i)}) + "\n" for i in range(3)))
    arguments = ["predict", str(two_stage_repository), str(folder / "q.jsonl"), "--device", "cpu", "--limit", "2"]
    columns = ["--columns", "question=ask", "image=bild"]
    output = ["--output", str(tmp_path / "p.jsonl")]
    assert main([*arguments, *output, *columns]) == 2
    assert "allow" in capsys.readouterr().err
    assert main([*arguments, *output, *columns, "--allow-outside"]) == 0
    assert "2 predictions" in capsys.readouterr().out
    assert main([*arguments, *output, "--columns", "question"]) == 2
    assert "--columns question" in capsys.readouterr().err


def test_an_option_that_does_not_exist_comes_with_the_one_that_was_meant(capsys):
    with pytest.raises(SystemExit) as end:
        main(["demo", "--quik"])
    assert end.value.code == 2 and "--quik: did you mean --quick?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--output_dir", "runs/quiz"], ["--output_dir=runs/quiz"], ["--output_dir"]])
def test_a_key_that_is_written_as_an_option_is_told_how_keys_are_written(capsys, words):
    for command in ("train", "check"):
        with pytest.raises(SystemExit) as end:
            main([command, "quiz.csv", *words])
        told = f"keys of a recipe are written output_dir={'runs/quiz' if 'runs' in words[-1] else '…'}"
        assert end.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["check", "embedded:n=6", "--html"],
        ["evaluate", "--predictions", "p.jsonl", "--problems", "embedded:n=6", "--json"],
        ["compare", "embedded:n=6", "--run", "a=a.jsonl", "--run", "b=b.jsonl", "--json"],
        ["predict", "model", "embedded:n=6", "--output"],
        ["report", "runs/a", "--output"],
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys, command):
    (tmp_path / "file").write_text("")
    assert main([*command, str(tmp_path)]) == 2
    assert f"error: {command[-1]} {tmp_path}: is a folder: name a file" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "file" / "deep" / "x.jsonl")]) == 2
    assert f"{tmp_path / 'file'} is a file, not a folder: choose another place" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_file_in_place_of_an_output_folder_is_refused_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--output", str(tmp_path / "file")]) == 2
    assert f"--output {tmp_path / 'file'}: {tmp_path / 'file'} is a file, not a folder" in capsys.readouterr().err
