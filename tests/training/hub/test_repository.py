"""What a run leaves in hub/: complete, honest about its data, and nothing of this machine in it."""

import json
import re
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from mmcot.training import (
    extract_features,
    generate_problems,
    load_pipeline,
    load_problems,
    load_recipe,
    run_recipe,
)
from mmcot.training.hub.cards import _starting_point
from mmcot.training.hub.extras import choose_example
from mmcot.training.hub.push import check_repository
from mmcot.training.hub.repository import run_facts

QUICK = ["max_steps=2", "max_new_tokens=6", "use_cpu=true", "disable_tqdm=true"]
EMBEDDED = "data=embedded:n=24,val=4,test=8"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A small ViT with its image processor, as `vision=` and `--backbone` take it."""
    folder = tmp_path_factory.mktemp("backbone") / "vit"
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(image_size=64, patch_size=16, **sizes)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("stages", ["one", "two"])
def test_trained_on_cached_features_it_sees_pictures(backbone, tmp_path, stages):
    from mmcot.training import load_problems

    for split in ("train", "val", "test"):
        problems = load_problems("embedded:n=24,val=4,test=8", split)
        extract_features(problems, backbone, tmp_path / "features", device="cpu", show_progress=False)
    settings = [f"vision={backbone}", f"features={tmp_path / 'features'}", f"output_dir={tmp_path / 'run'}"]
    settings += ["rationale_format=null", "answer_format=QCM-A"] if stages == "one" else []
    run_recipe(load_recipe("embedded", [EMBEDDED, *QUICK, *settings, "image_size=null"]))
    pipeline = load_pipeline(tmp_path / "run" / "hub", "cpu")
    problem = next(problem for problem in generate_problems(20, seed=3) if len(problem["images"]) == 1)
    seen, blank = (pipeline({**problem, "images": images})["scores"] for images in (problem["images"], []))
    assert seen != blank
    assert check_repository(tmp_path / "run" / "hub")
    config = (tmp_path / "run" / "hub" / "config.json").read_text()
    assert str(tmp_path) not in config


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    """Own questions with pictures, and a run on them that starts from an earlier run's stage."""
    folder = tmp_path_factory.mktemp("own") / "quiz"
    folder.mkdir()
    rows = []
    for number in range(48):
        colour = ("red", "blue")[number % 2]
        Image.new("RGB", (64, 64), colour).save(folder / f"{number}.png")
        split = "train" if number < 32 else "val" if number < 40 else "test"
        rows.append({"id": str(number), "question": "Which colour?", "choices": ["red", "blue"], "answer": number % 2})
        rows[-1] |= {"image": f"{number}.png", "solution": f"It is {colour}.", "split": split}
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = folder.parent / "runs"
    first = load_recipe("embedded", [f"data={folder}", *QUICK, f"output_dir={runs / 'start'}"])
    run_recipe(first)
    start = runs / "start" / "answer"
    again = [f"data={folder}", "data_license=cc0-1.0", *QUICK, f"output_dir={runs / 'again'}", f"model={start}"]
    return folder, runs / "again", run_recipe(load_recipe("embedded", [*again, f"tokenizer={start}"]))


def test_card_tells_the_data_and_the_users_licence(own_data):
    folder, run, results = own_data
    card = (run / "hub" / "README.md").read_text()
    assert "license: cc0-1.0" in card and "Data: quiz" in card
    assert "ScienceQA" not in card.replace("lu2022learn", "")
    assert "| Started from | start |" in card and "answer |" not in card.split("| Started from |")[1].splitlines()[0]


def test_card_shows_the_test_splits_figures(own_data):
    _, run, results = own_data
    from mmcot.training.hub.cards import model_card

    facts = {"model_type": "mmcot_two_stage", "dataset": "embedded", "split": "test"}
    changed = {**results["test"], "accuracy": {"Avg": 12.34}, "n": {"Avg": 81}, "ci95": {"Avg": [6.91, 21.07]}}
    assert "12.34" in model_card(changed, facts)
    written = []
    import mmcot.training.hub.repository as repository

    original = repository.model_card
    repository.model_card = lambda chosen, facts: written.append((chosen, facts["split"])) or original(chosen, facts)
    try:
        from mmcot import MMCoTForConditionalGeneration
        from mmcot.training.train import Run

        recipe = load_recipe("embedded", [EMBEDDED, *QUICK, f"output_dir={run.parent / 'card'}"])
        stages = [MMCoTForConditionalGeneration.from_pretrained(run / stage) for stage in ("rationale", "answer")]
        one = Run(recipe)
        one.processor = load_pipeline(run / "hub", "cpu").processor
        repository.write_repository(one, *stages, {"val": {**changed, "accuracy": {"Avg": 99.0}}, "test": changed})
    finally:
        repository.model_card = original
    assert written == [(changed, "test")]


def test_repository_has_example_predictions_and_needs(own_data):
    _, run, results = own_data
    hub = run / "hub"
    card = (hub / "README.md").read_text()
    assert "![the picture of the question](example.png)" in card and Image.open(hub / "example.png").size == (64, 64)
    blanked = f"pictures blanked {results['test_blank']['accuracy']['IMG']:.2f} %"
    assert results["test_blank"]["images"] == "blank" and results["test_blank"]["n"]["IMG"] == 8 and blanked in card
    assert "On questions with a picture: guessing 50.00 %" in card and "`test` 8 (8 with a picture)" in card
    assert re.search(r"Trained in \d+ s with CPU .* transformers \d", card)
    needed = (hub / "requirements.txt").read_text().split()
    assert any(line.startswith("transformers>=5") for line in needed) and not any("timm" in line for line in needed)
    assert json.loads((hub / "results.json").read_text())["test"]["accuracy"] == results["test"]["accuracy"]
    written = [json.loads(line) for line in (hub / "predictions_test.jsonl").read_text().splitlines()]
    assert written[0]["header"]["source"] == "quiz" and len(written) == 9 and "rationale" in written[1]
    assert {"example.png", "requirements.txt", "predictions_test.jsonl", "results.json"} <= set(check_repository(hub))
    assert not (hub / ".eval_results").exists()  # the data set isn't one of the Hub


def test_figures_on_a_hub_data_set_are_written_for_its_leaderboard(tmp_path):
    from huggingface_hub import parse_eval_result_entries

    from mmcot.training.hub.extras import write_extras

    scores = {"accuracy": {"Avg": 85.3124}, "n": {"Avg": 4241}, "protocol": "generated"}
    write_extras(tmp_path, [], {"test": scores}, None, {"id": "derek-thomas/ScienceQA"})
    [entry] = parse_eval_result_entries(yaml.safe_load((tmp_path / ".eval_results/scienceqa.yaml").read_text()))
    assert (entry.dataset_id, entry.value) == ("derek-thomas/ScienceQA", 85.31)
    assert entry.notes == "split test, n = 4241, protocol: generated"


def test_nothing_of_this_machine_is_published(own_data):
    folder, run, _ = own_data
    for path in filter(Path.is_file, (run / "hub").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path
        content = path.read_bytes()
        assert str(folder.parent).encode() not in content, path
        assert not re.search(rb"/(tmp|home|root)/", content) or path.suffix == ".safetensors", path


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (None, "new weights"),
        ("google/flan-t5-base", "google/flan-t5-base"),
        ("/home/me/runs/start/answer", "start"),
        ("/home/me/t5-folder/", "t5-folder"),
        ("./answer", "own weights"),
    ],
)
def test_starting_point(base, said):
    assert _starting_point(base) == said


def test_a_token_is_told_nowhere():
    recipe = load_recipe("embedded", ["push_to_hub=true", "hub_token=hf_secret", "hub_model_id=me/mine"])
    model = SimpleNamespace(num_parameters=lambda: 1)
    assert "hf_secret" not in str(run_facts(recipe, model)) + str(recipe.identity())


def test_it_decodes_as_it_was_measured_and_publishes_questions_only_where_it_may(own_data, tmp_path):
    from mmcot import MMCoTForConditionalGeneration
    from mmcot.training.hub.repository import write_repository
    from mmcot.training.train import Run

    _, run, results = own_data
    settings = [EMBEDDED, *QUICK, "num_beams=3", "card_example=false", f"output_dir={tmp_path}"]
    one = Run(load_recipe("embedded", settings))
    one.processor = load_pipeline(run / "hub", "cpu").processor
    (tmp_path / "answer").mkdir()
    (tmp_path / "answer/predictions_test.jsonl").write_bytes((run / "answer/predictions_test.jsonl").read_bytes())
    stages = [MMCoTForConditionalGeneration.from_pretrained(run / stage) for stage in ("rationale", "answer")]
    hub = write_repository(one, *stages, {"test": results["test"]})
    options = json.loads((hub / "generation_config.json").read_text())
    assert (options["num_beams"], options["max_new_tokens"]) == (3, 6)
    assert not {"examples", "predictions_test.jsonl", "example.png"} & {path.name for path in hub.iterdir()}
    assert "## Example" not in (hub / "README.md").read_text()


def test_the_cards_example_is_seen_and_answered_rightly_if_there_is_one():
    problems = load_problems("embedded:n=12", "test")
    shown = [problem for problem in problems if problem["images"]]
    wrong = {problem["id"]: {"answer": None} for problem in problems}
    for known, expected in (([], shown[0]), ([shown[2]], shown[2]), ([shown[3], shown[2]], shown[2])):
        right = {problem["id"]: {"answer": problem["answer"]} for problem in known}
        assert choose_example(problems, {**wrong, **right})["problem"]["id"] == expected["id"]
    blind = next(problem for problem in problems if not problem["images"])
    found = choose_example(problems, {**wrong, blind["id"]: {"answer": blind["answer"]}})
    assert found["problem"]["images"], "a picture counts more"
