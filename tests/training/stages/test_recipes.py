"""Every shipped recipe and launch configuration is read; the ablations run, at tiny sizes, on embedded data."""

import json

import pytest
import torch
import yaml

from mmcot.training.stages.recipe import Recipe, load_recipe
from mmcot.training.stages.recipe_file import RECIPES, recipe_files

NAMES = sorted(recipe_files())
RUN = [name for name in NAMES if not name.endswith("-v1")]  # those of v1 run in paper/test_tables.py
LAUNCH = sorted((RECIPES.parent / "launch").glob("*.yaml"))
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
# a picture becomes 2 x 2 patches and a class token
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VIT |= {"model_type": "vit", "image_size": 32, "patch_size": 16}
TINY = {
    "data": "embedded:n=8",
    "model": T5,
    "tokenizer": "train",
    "vision": VIT,
    "features": None,
    "max_steps": 2,
    "max_source_length": 160,
    "max_target_length": 48,
    "max_new_tokens": 4,
    "answer.max_target_length": 48,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "eval_strategy": "no",
    "save_strategy": "no",
    "max_eval_samples": 2,
    "use_cpu": True,
    "disable_tqdm": True,
}


def run_tiny(name: str, folder, **changes) -> dict:
    """The results of a shipped recipe with everything large made small."""
    from mmcot.training.train import run_recipe

    values = {**TINY, "output_dir": str(folder / name), **changes}
    return run_recipe(load_recipe(name, [f"{key}={json.dumps(value)}" for key, value in values.items()]))


@pytest.mark.parametrize("name", NAMES)
def test_shipped_recipe_is_read(name):
    recipe = load_recipe(name)
    assert isinstance(recipe, Recipe)
    for stage in ("rationale", "answer"):
        of_stage = recipe.for_stage(stage)
        assert isinstance(of_stage.training.get("learning_rate", 5e-5), float)  # 5e-5 is text to YAML
        forced = name.endswith("v1") and "one-stage" not in name
        assert of_stage.protocol == ("teacher_forced" if forced else "generated")
    assert recipe.one_stage == ("one-stage" in name)


def test_recipes_hold_the_papers_settings():
    v1, large, v5 = load_recipe("base-v1"), load_recipe("large-v1"), load_recipe("base-v5")
    assert (v1.model, v1.vision, v1.rationale_format, v1.use_caption) == (
        "allenai/unifiedqa-t5-base",
        "detr",
        "QCM-LE",
        False,
    )
    assert (large.training["per_device_train_batch_size"], v1.training["per_device_train_batch_size"]) == (8, 16)
    assert (v5.model, v5.vision, v5.rationale_format, v5.use_caption) == (
        "declare-lab/flan-alpaca-base",
        "vit",
        "QCM-E",
        True,
    )
    assert (v5.training["learning_rate"], v5.training["num_train_epochs"]) == (8e-5, 20)
    stages = [load_recipe("large-v5").for_stage(stage) for stage in ("rationale", "answer")]
    batches = [
        stage.training["per_device_train_batch_size"] * stage.training["gradient_accumulation_steps"]
        for stage in stages
    ]
    assert batches == [2 * 4, 4 * 4]  # four GPUs in the original's commands
    assert all(recipe.loss_on_padding and recipe.source_truncation == "end" for recipe in (v1, large, v5, *stages))
    for recipe, metric in [(r, m) for r in (v1, large, v5) for m in ("rougeL", "accuracy")]:
        training = recipe.for_stage("rationale" if metric == "rougeL" else "answer").training
        assert training["metric_for_best_model"] == metric and training["bf16"] is training["fp16"] is False
        assert recipe.answer_mode == "generate" and recipe.num_beams == 1 and recipe.max_source_length == 512
        assert (training["weight_decay"], training["lr_scheduler_type"], training["warmup_steps"]) == (
            0.01,
            "linear",
            0,
        )
        assert training["predict_with_generate"] == (recipe.protocol == "generated")
        assert training["load_best_model_at_end"] == (recipe is v5)
    assert (v1.training["learning_rate"], v1.training["num_train_epochs"]) == (5e-5, 20)
    for stage, length in zip(stages, (512, 64), strict=True):
        assert stage.max_target_length == length and stage.training["num_train_epochs"] == 50


@pytest.mark.parametrize("path", LAUNCH, ids=lambda path: path.stem)
def test_launch_configuration_is_read_by_accelerate(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.distributed_type and isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize("name", [name for name in RUN if name.startswith("one-stage")])
def test_one_stage_ablation_runs(name, tmp_path):
    from mmcot import MMCoTForConditionalGeneration

    result = run_tiny(name, tmp_path)["test"]
    assert result["n"]["Avg"] == 8 and result["protocol"] == "generated" and result["rationale"] == {}
    model = MMCoTForConditionalGeneration.from_pretrained(tmp_path / name / "hub")
    assert model.config.prompt_format == name.removeprefix("one-stage-").upper()
    assert model.config.has_fusion and not (tmp_path / name / "rationale").exists()


@pytest.mark.parametrize("name", ["text-only", "captions-only"])
def test_ablation_without_pictures_runs(name, tmp_path):
    from mmcot import MMCoTModel, MMCoTProcessor

    result = run_tiny(name, tmp_path, vision=None)["test"]
    assert result["n"]["Avg"] == 8 and 0 <= result["rationale"]["rougeL"] <= 100
    model = MMCoTModel.from_pretrained(tmp_path / name / "hub")
    assert model.vision is None and not model.answer.config.has_fusion
    processor = MMCoTProcessor.from_pretrained(tmp_path / name / "hub")
    problem = {"question": "Which?", "choices": ["a", "b"], "hint": "", "caption": "A red square."}
    text = processor.tokenizer.decode(processor(problem, stage="rationale")["input_ids"][0])
    assert ("red" in text) == (name == "captions-only")


@pytest.mark.parametrize("name", [name for name in RUN if name.startswith("backbone")])
def test_backbone_ablation_runs_on_cached_features(name, tmp_path):
    """The recipes read features of their backbone from a cache; a tiny backbone stands in for the large one."""
    from transformers import AutoModel, ViTConfig

    from mmcot import MMCoTModel
    from mmcot.processing import image_processor_for
    from mmcot.training.data.problems import load_problems
    from mmcot.training.features.extract import extract_features

    problems = load_problems("embedded:n=8", image_rule="original")
    torch.manual_seed(0)
    vision = tmp_path / "vision"
    AutoModel.from_config(ViTConfig(**VIT)).save_pretrained(vision)
    image_processor_for(32).save_pretrained(vision)
    features = extract_features(problems, str(vision), tmp_path / "features", device="cpu", num_workers=0)
    assert load_recipe(name).vision == name.removeprefix("backbone-")
    result = run_tiny(name, tmp_path, vision=str(vision), features=str(features.path))["test"]
    assert result["n"]["Avg"] == 8 and result["rationale_n"] == 8
    model = MMCoTModel.from_pretrained(tmp_path / name / "hub")
    assert model.vision is not None and model.rationale.config.image_feature_size == 16


def test_loss_on_padding_is_of_the_originals_length(tiny_tokenizer, tmp_path):
    """Its code pads every target to the full length with token 0, and takes the loss on all of it."""
    from mmcot import MMCoTConfig, MMCoTForConditionalGeneration, MMCoTProcessor
    from mmcot.training.stages.samples import StageCollator

    torch.manual_seed(0)
    config = MMCoTConfig(vocab_size=len(tiny_tokenizer), loss_on_padding=True, **T5)
    model = MMCoTForConditionalGeneration(config).eval()
    rows = [{"input_ids": [5, 6, 1], "labels": [7, 1]}, {"input_ids": [5, 1], "labels": [8, 9, 10, 1]}]
    batch = StageCollator(MMCoTProcessor(tokenizer=tiny_tokenizer), with_images=False, label_length=12)(rows)
    assert batch["labels"].shape == (2, 12)
    padded = torch.tensor([row["labels"] + [0] * (12 - len(row["labels"])) for row in rows])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=padded).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), padded.flatten())
    assert torch.allclose(model(**batch).loss, expected, atol=1e-6)
