"""`predict`: features in place of the backbone, and processes that share the questions."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from mmcot import MMCoTProcessor
from mmcot.training import extract_features, load_problems, predict
from mmcot.training.common import UserError
from mmcot.training.evaluation.predictions import PredictionsWriter, read_header
from mmcot.training.evaluation.reading import read_predictions
from mmcot.training.inference.predict import READ, load_pipeline, prediction_record


@pytest.fixture(scope="module")
def problems():
    return load_problems("embedded:n=9", "test")


@pytest.fixture(scope="module")
def expected(two_stage_repository, problems, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predictions")
    return read_predictions(predict(two_stage_repository, problems, folder / "p.jsonl", device="cpu"))


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for id_, record in found.items():
        other = expected[id_]
        assert record["generated"] == other["generated"] and record["answer"] == other["answer"]
        assert record["scores"] == pytest.approx(other["scores"], abs=1e-4)


@pytest.fixture(scope="module")
def cache(two_stage_repository, problems, tmp_path_factory):
    from mmcot import MMCoTModel

    vision = MMCoTModel.from_pretrained(two_stage_repository).vision
    image_processor = MMCoTProcessor.from_pretrained(two_stage_repository).image_processor
    folder = tmp_path_factory.mktemp("features") / "cache"
    return extract_features(
        problems, vision, folder, image_processor=image_processor, dtype="float32", show_progress=False
    )


@pytest.mark.parametrize("options", [{}, {"num_beams": 2, "max_new_tokens": 5}], ids=["engine", "generate"])
def test_features_stand_in_for_the_backbone(two_stage_repository, problems, cache, tmp_path, monkeypatch, options):
    assert any(problems["images"])
    whole = predict(two_stage_repository, problems, tmp_path / "whole.jsonl", device="cpu", **options)
    monkeypatch.setattr("mmcot.modeling_mmcot_two_stage.get_image_features", None)  # never called
    path = predict(two_stage_repository, problems, tmp_path / "p.jsonl", device="cpu", features=cache.path, **options)
    assert_equal(read_predictions(path), read_predictions(whole))
    assert read_header(path)["features"]["weights"] == cache.info["weights"]


def test_features_of_another_backbone_are_refused(two_stage_repository, problems, cache, tmp_path):
    import torch

    from mmcot import MMCoTModel

    model = MMCoTModel.from_pretrained(two_stage_repository)
    model.processor = MMCoTProcessor.from_pretrained(two_stage_repository)
    with torch.no_grad():
        next(model.vision.parameters()).add_(1)
    with pytest.raises(UserError, match="another backbone"):
        predict(model, problems, tmp_path / "p.jsonl", features=cache)


def test_any_number_of_processes_goes_on_with_what_others_wrote(tmp_path):
    """Two were killed, one goes on; the cut line of one of them is written anew."""
    path, facts = tmp_path / "p.jsonl", {"method": "test"}
    for rank in range(2):
        with PredictionsWriter(path, facts, rank=rank, num_processes=2) as writer:
            writer.add({"id": f"of {rank}", "answer": rank})
    with open(writer.part, "a") as file:
        file.write('{"id": "cut", "ans')
    with PredictionsWriter(path, facts) as writer:
        assert set(writer.done) == {"of 0", "of 1"}
        writer.add({"id": "cut", "answer": 3})
    writer.finish(["cut", "of 1", "of 0"])
    assert [record["answer"] for record in read_predictions(path).values()] == [3, 1, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["p.jsonl"]


COUNTING = """
import os, sys
from mmcot.training.cli import main
from mmcot.training.inference import engine

whole, own = engine.answer_questions, open(f"asked-by-{os.environ['RANK']}", "a")

def counted(model, batches, **options):
    for keys, inputs in batches:
        print(*keys, file=own, flush=True)
        yield from whole(model, [(keys, inputs)], **options)

engine.answer_questions = counted
sys.exit(main(sys.argv[1:]))
"""


def test_processes_share_the_questions(two_stage_repository, expected, tmp_path):
    """Each question is asked once, by one of two; what an earlier, killed run wrote is kept."""
    path = tmp_path / "p.jsonl"
    command = ["predict", str(two_stage_repository), "embedded:n=9", "--split", "test", "--device", "cpu"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    program = tmp_path / "command.py"
    program.write_text(COUNTING)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(program), *command, "--output", str(path)],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_equal(read_predictions(path), expected)
    asked = [(tmp_path / f"asked-by-{rank}").read_text().split() for rank in range(2)]
    assert all(asked) and sorted(asked[0] + asked[1]) == sorted(expected)
    assert not list(tmp_path.glob("*partial*")) and json.loads(path.read_text().splitlines()[0])


@pytest.mark.parametrize("content", ["", "[]", '{"model_type": "mmcot_two_sta', "\ud800"])
@pytest.mark.parametrize("name", [name for name in READ if "index" not in name and "special" not in name])
def test_damaged_files_of_a_model_are_named(two_stage_repository, tmp_path, name, content):
    folder = shutil.copytree(two_stage_repository, tmp_path / "model")
    (folder / name).write_bytes(content.encode("utf-16" if content == "\ud800" else "utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=f"model: {name} is damaged or incomplete: download it again"):
        load_pipeline(folder)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json"])
def test_missing_files_of_a_model_are_named(two_stage_repository, tmp_path, name):
    folder = shutil.copytree(two_stage_repository, tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"model: has no {name}"):
        load_pipeline(folder)


def test_half_a_tokenizer_is_named(two_stage_repository, tmp_path):
    folder = shutil.copytree(two_stage_repository, tmp_path / "model")
    for content in ("{}", None):
        (folder / "tokenizer_config.json").write_text("{}")
        if content is None:
            (folder / "tokenizer_config.json").unlink()
        with pytest.raises(UserError, match="model: tokenizer_config.json is missing or names no pad_token: download"):
            load_pipeline(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="model: tokenizer.json is damaged or incomplete: download it again"):
        load_pipeline(folder)


def test_sampled_rationales_are_the_seeds(two_stage_repository, problems, tmp_path):
    """The file says which seed, so that it isn't gone on with under another one; greedy ones have none."""
    few, sampled = problems.select(range(4)), {"do_sample": True, "temperature": 3.0, "max_new_tokens": 8}
    files = {
        name: predict(two_stage_repository, few, tmp_path / f"{name}.jsonl", device="cpu", seed=seed, **sampled)
        for name, seed in (("one", 1), ("other", 2), ("again", 1))
    }
    texts = {name: [one["rationale"] for one in read_predictions(file).values()] for name, file in files.items()}
    assert texts["one"] == texts["again"] != texts["other"]
    assert read_header(files["one"])["decoding"]["seed"] == 1 and read_header(files["other"])["decoding"]["seed"] == 2
    lines = files["one"].read_text().splitlines(keepends=True)
    (tmp_path / "new.jsonl.partial-records").write_text("".join(lines[:2]))
    with pytest.raises(UserError, match="begun with another decoding"):
        predict(two_stage_repository, few, tmp_path / "new.jsonl", device="cpu", seed=2, **sampled)
    greedy = predict(two_stage_repository, few, tmp_path / "greedy.jsonl", device="cpu", seed=1, max_new_tokens=8)
    assert "seed" not in read_header(greedy)["decoding"]


def test_scores_keep_six_digits():
    """Enough for a calibration, and to tell two close options apart."""
    scores = {"A": 0.4999996, "B": 0.5000004}
    result = {"answer": "B", "rationale": "", "scores": scores, "generated": {}}
    assert prediction_record("1", result)["scores"] == {"A": 0.5, "B": 0.5}
    close = {"A": 0.499994, "B": 0.500006}
    assert prediction_record("1", {**result, "scores": close})["scores"] == close
