"""Runs of a recipe: whole, resumed, on two processes, and with the data of others."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from mmcot.training.cli import main
from mmcot.training.evaluation.reading import read_predictions
from mmcot.training.stages.recipe import load_recipe
from mmcot.training.train import run_recipe

TINY = [
    "data=embedded:n=48,val=8,test=12",
    "model={d_model: 32, d_kv: 8, d_ff: 64, num_layers: 1, num_heads: 4, dropout_rate: 0.1}",
    "vision={model_type: vit, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32,"
    " image_size: 64, patch_size: 16}",
    "per_device_train_batch_size=8",
    "per_device_eval_batch_size=8",
    "max_new_tokens=8",
    "num_train_epochs=1",
    "disable_tqdm=true",
    "use_cpu=true",
]


def recipe(output_dir, *overrides):
    return load_recipe("embedded", [*TINY, f"output_dir={output_dir}", *overrides])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run_recipe(recipe(folder))


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_run_leaves_everything_joined_by_id(run):
    folder, results = run
    for split, count in (("val", 8), ("test", 12)):
        rationales = read_predictions(folder / f"rationale/predictions_{split}.jsonl")
        answers = read_predictions(folder / f"answer/predictions_{split}.jsonl")
        assert len(rationales) == count and rationales.keys() == answers.keys()
        for id_, answer in answers.items():  # whole predictions: `mmcot evaluate` needs nothing else
            assert answer["rationale"] == rationales[id_]["rationale"]
            assert answer["generated"]["rationale"] == rationales[id_]["generated"]["rationale"]
        assert json.loads((folder / f"results_{split}.json").read_text())["n"]["Avg"] == count
        assert results[split]["protocol"] == "generated"
    card = (folder / "hub" / "README.md").read_text()
    assert f"{results['test']['accuracy']['Avg']:.2f}" in card


def test_repository_answers_as_the_run_did(run):
    """Loaded back, the two stages in one call give the answers that the run wrote in two steps.

    Compared where the network wrote its rationale in the tokenizer's own segmentation: only the run went through text.
    """
    from mmcot import MMCoTModel, MMCoTProcessor
    from mmcot.training.data.problems import load_problems

    folder, _ = run
    problems = list(load_problems("embedded:n=48,val=8,test=12", "test"))
    processor = MMCoTProcessor.from_pretrained(folder / "hub")
    output = MMCoTModel.from_pretrained(folder / "hub").generate(**processor(problems), max_new_tokens=8)
    answers = read_predictions(folder / "answer/predictions_test.jsonl")
    rationales = {id_: answer["generated"]["rationale"] for id_, answer in answers.items()}
    compared = 0
    for problem, ids, result in zip(
        problems, output.rationale_ids.tolist(), processor.post_process(output, problems), strict=True
    ):
        record = answers[problem["id"]]
        assert result["generated"]["rationale"] == rationales[problem["id"]]
        if processor.tokenizer(rationales[problem["id"]])["input_ids"][:-1] == [i for i in ids if i > 1]:
            compared += 1
            assert result["answer_index"] == record["answer"]
            assert result["scores"] == pytest.approx(record["scores"], abs=1e-4)
    assert compared > 0


def test_repository_without_a_generation_config_keeps_the_engine(run, tmp_path):
    """What training does without, a cache, isn't what the networks are left with."""
    from mmcot.training import load_pipeline

    hub = shutil.copytree(run[0] / "hub", tmp_path / "hub")
    (hub / "generation_config.json").unlink()
    assert load_pipeline(hub, "cpu").answering.engine_options("score")


def test_second_run_skips_what_is_done(run):
    folder, results = run
    before = {
        path: path.stat().st_mtime_ns for path in folder.glob("*/model.safetensors") if path.parent.name != "hub"
    }
    assert run_recipe(recipe(folder)) == results
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_other_settings_in_the_same_folder_are_refused(run):
    with pytest.raises(ValueError, match="learning_rate.*choose another output_dir"):
        run_recipe(recipe(run[0], "learning_rate=0.5"))


def test_resumed_equals_uninterrupted(run, tmp_path):
    """Cut off after half of the steps, with dropout on, the run ends with the same weights."""
    from transformers import TrainerCallback

    from mmcot.training.stages import fit

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    folder = tmp_path / "cut"
    settings = ["save_strategy=steps", "save_steps=2", "eval_strategy=no", "load_best_model_at_end=false"]
    settings += ["stages=rationale", "save_total_limit=5"]
    whole = tmp_path / "whole"
    run_recipe(recipe(whole, *settings))
    original = fit.train_stage

    def interrupted(*args, **kwargs):
        return original(*args, **kwargs, callbacks=[Stop()])

    fit.train_stage = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe(folder, *settings))
    finally:
        fit.train_stage = original
    assert not (folder / "rationale" / "model.safetensors").exists()
    run_recipe(recipe(folder, *settings))
    for name, weight in weights(whole / "rationale").items():
        assert torch.equal(weight, weights(folder / "rationale")[name]), name


def test_cut_off_predictions_are_gone_on_with(run, tmp_path):
    """Records written before a crash are kept, a line cut in the middle is written again."""
    folder = tmp_path / "copy"
    shutil.copytree(run[0], folder)
    done = folder / "rationale" / "predictions_test.jsonl"
    lines = done.read_text().splitlines(keepends=True)
    marked = lines[1].replace('"rationale": "', '"rationale": "kept ', 1)
    part = done.with_name(f"{done.name}.partial-records")
    part.write_text(lines[0] + marked + lines[2][:15])
    expected = {id_: record["rationale"] for id_, record in read_predictions(done).items()}
    done.unlink()
    run_recipe(recipe(folder))
    found = {id_: record["rationale"] for id_, record in read_predictions(done).items()}
    first = json.loads(lines[1])["id"]
    assert found.pop(first) == f"kept {expected.pop(first)}"
    assert found == expected


def test_shared_stages_train_one_set_of_weights(tmp_path):
    results = run_recipe(recipe(tmp_path, "share_stages=true", "max_steps=3"))
    assert results["test"]["n"]["Avg"] == 12
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["share_stages"] and not (tmp_path / "answer" / "model.safetensors").exists()


def test_one_stage_and_text_only_are_recipes(tmp_path):
    for name, overrides in {
        "one": ["rationale_format=null", "answer_format=QCM-LEA"],
        "text": ["vision=null", "use_caption=true"],
    }.items():
        results = run_recipe(recipe(tmp_path / name, "max_steps=2", *overrides))
        assert results["test"]["n"]["Avg"] == 12
    assert "fusion" not in " ".join(weights(tmp_path / "text" / "answer"))


def test_teacher_forced_protocol_is_labelled(tmp_path):
    results = run_recipe(recipe(tmp_path, "protocol=teacher_forced", "max_steps=2"))
    assert results["test"]["protocol"] == "teacher_forced"
    assert "teacher_forced" in (tmp_path / "hub" / "README.md").read_text()


def test_real_problems_train_without_a_lost_record(tmp_path, shared_dir):
    """The original folder layout and T5's vocabulary; scores are as poor as such networks are."""
    results = run_recipe(
        recipe(
            tmp_path,
            f"data={shared_dir / 'data' / 'scienceqa'}",
            f"tokenizer={shared_dir / 'data' / 't5_tokenizer.json'}",
            "max_train_samples=16",
            "max_eval_samples=6",
            "max_test_samples=20",
            "max_source_length=512",
            "use_caption=true",
            "image_size=64",
        )
    )
    assert (results["val"]["n"]["Avg"], results["test"]["n"]["Avg"]) == (6, 20)
    assert len(read_predictions(tmp_path / "rationale" / "predictions_test.jsonl")) == 20
    assert "cc-by-nc-sa-4.0" in (tmp_path / "hub" / "README.md").read_text()


def test_two_processes_give_the_metrics_of_one(tmp_path):
    """Two CPU processes (gloo) with half the batch each: the same samples a step, so the same model and scores."""
    settings = ["train_sampling_strategy=random", "model.dropout_rate=0.0", "logging_steps=1", "max_steps=5"]
    base = [argument for argument in TINY if not argument.startswith("per_device_train")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    histories, results = [], []
    for processes, batch in ((1, 8), (2, 4)):
        folder = tmp_path / str(processes)
        arguments = [*base, *settings, f"per_device_train_batch_size={batch}", f"output_dir={folder}"]
        done = subprocess.run(
            [*command, str(processes), "-m", "mmcot.training.train", "embedded", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        manifest = json.loads((folder / "rationale" / "manifest.json").read_text())
        histories.append([entry["loss"] for entry in manifest["history"] if "loss" in entry])
        results.append(json.loads((folder / "results_test.json").read_text()))
    assert histories[0] == pytest.approx(histories[1], abs=2e-3)
    assert results[0]["n"] == results[1]["n"]
    assert results[0]["accuracy"] == pytest.approx(results[1]["accuracy"], abs=1e-6)


def test_killed_command_leaves_nothing_half_written(tmp_path):
    """Killed at any moment, what stands under a final name is whole, and the same command finishes the run."""
    arguments = ["train", "embedded", *TINY, f"output_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "mmcot.training.cli", *arguments]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    manifest = tmp_path / "run" / "rationale" / "manifest.json"
    limit = time.monotonic() + 120
    while not manifest.exists() and time.monotonic() < limit:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads(manifest.read_text())["finished"] is False
    assert main(arguments) == 0
    assert json.loads(manifest.read_text())["finished"] is True
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_errors_of_users_are_one_line_and_exit_with_2(tmp_path, capsys):
    assert main(["train", "no-such-recipe"]) == 2
    assert main(["train", "embedded", "data=no/such/folder", f"output_dir={tmp_path}"]) == 2
    assert main(["train", "embedded", "stages=answer", *TINY, f"output_dir={tmp_path}"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("mmcot train: error:")]
    assert len(errors) == 3 and "train the rationale stage first" in errors[2]
