"""Options of training beyond the paper: cross-fitted rationales, dropout passes, other fusions, two backbones."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState

from mmcot.training.common import UserError
from mmcot.training.evaluation.reading import read_predictions
from mmcot.training.inference.predict import load_pipeline
from mmcot.training.stages import training_arguments
from mmcot.training.stages.batches import LengthBatchSampler
from mmcot.training.stages.build import build_stage_model
from mmcot.training.stages.cross_fit import folds_of
from mmcot.training.stages.recipe import load_recipe
from mmcot.training.stages.run import Run
from mmcot.training.stages.samples import StageCollator
from mmcot.training.stages.trainer import StageTrainer, _Resumption
from mmcot.training.train import run_recipe

SIZES = "{d_model: 16, d_kv: 8, d_ff: 16, num_layers: 1, num_heads: 2, dropout_rate: 0.1}"
TINY = [f"model={SIZES}", "vision=null", "features=null", "keep_images=false", "per_device_train_batch_size=8"]
TINY += ["max_new_tokens=4", "max_steps=2", "eval_strategy=no", "save_strategy=no", "load_best_model_at_end=false"]
TINY += ["disable_tqdm=true", "use_cpu=true", "data=embedded:n=12,val=2,test=2"]
ONE_STAGE = ["rationale_format=null", "answer_format=QCM-A", "blank_probe=false"]
VISION = "vision={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 1, intermediate_size: 16, "
VISION += "image_size: 32, patch_size: 16}"


def recipe(folder, *overrides):
    return load_recipe("embedded", [*TINY, f"output_dir={folder}", *overrides])


def test_folds_share_the_problems_out_by_id():
    ids = [f"q{i}" for i in range(10)]
    folds = folds_of(ids, 3)
    assert sorted(sum(folds, [])) == list(range(10)) and sorted(map(len, folds)) == [3, 3, 4]
    reverse = folds_of(ids[::-1], 3)
    assert [sorted(ids[i] for i in rows) for rows in folds] == [sorted(ids[9 - i] for i in rows) for rows in reverse]


def test_a_question_that_comes_often_is_in_one_fold():
    ids = [f"q{i}{again}" for i in range(6) for again in ("", "#2", "*2", "#2*3")]
    folds = folds_of(ids, 2)
    assert not {ids[i][:2] for i in folds[0]} & {ids[i][:2] for i in folds[1]} and len(folds[0]) == len(folds[1]) == 12


def test_the_answer_stage_trains_on_rationales_of_networks_that_never_saw_the_question(tmp_path, monkeypatch):
    trained = {}
    train = Run.train

    def watched(self, stage):
        trained.setdefault((self.folder.name, stage), list(self.problems["train"]["id"]))
        train(self, stage)

    monkeypatch.setattr(Run, "train", watched)
    plan = recipe(tmp_path / "run", "cross_fit=3")
    assert run_recipe(plan)["test"]["n"]["Avg"] == 2
    everyone = trained["run", "rationale"]
    written = {}
    for number in range(3):
        fold = read_predictions(tmp_path / f"run/cross_fit/fold-{number}/rationale/predictions_test.jsonl")
        assert not set(fold) & set(trained[f"fold-{number}", "rationale"])
        assert set(fold) | set(trained[f"fold-{number}", "rationale"]) == set(everyone)
        written |= {id_: record["generated"]["rationale"] for id_, record in fold.items()}
    assert set(written) == set(everyone)
    run = Run(plan)
    read = run.training_samples("answer")
    expected = run.own_samples("train", "answer", written)
    assert read["input_ids"][:] == expected["input_ids"][:]
    assert read["input_ids"][:] != run.own_samples("train", "answer")["input_ids"][:]
    monkeypatch.setattr(Run, "train", lambda self, stage: pytest.fail(stage) if not self.is_trained(stage) else None)
    assert run_recipe(plan)["test"]["n"]["Avg"] == 2  # nothing is done twice


def test_cross_fitting_is_part_of_the_answer_stages_identity_alone(tmp_path):
    run_recipe(recipe(tmp_path / "run"))
    with pytest.raises(UserError, match=r"run/answer.*cross_fit"):
        run_recipe(recipe(tmp_path / "run", "cross_fit=2"))
    with pytest.raises(UserError, match="cross_fit: 1 is too small"):
        recipe(tmp_path, "cross_fit=1")
    with pytest.raises(UserError, match="cross_fit: shared stages"):
        recipe(tmp_path, "cross_fit=2", "share_stages=true")
    with pytest.raises(UserError, match="cross_fit: a one-stage run"):
        recipe(tmp_path, "cross_fit=2", "rationale_format=null", "answer_format=QCM-A")


def loss_of(trainer, inputs, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        return trainer.compute_loss(trainer.model, dict(inputs)).item()


def test_dropout_passes_average_probabilities(tmp_path):
    run = Run(recipe(tmp_path / "run", "stages=rationale"))
    seen = {}
    init = StageTrainer.__init__

    def kept(self, *args, **kwargs):
        init(self, *args, **kwargs)
        seen["trainer"] = self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageTrainer, "__init__", kept)
        run.train("rationale")
    trainer = seen["trainer"]
    inputs = next(iter(trainer.get_train_dataloader()))
    labels = inputs["labels"]
    trainer.model.train()
    one = loss_of(trainer, inputs)
    trainer.dropout_passes = 3
    mean = loss_of(trainer, inputs)
    assert mean != one
    # by hand, with the same draws of dropout
    torch.manual_seed(0)
    repeated = {name: torch.cat([value] * 3) for name, value in inputs.items()}
    with torch.no_grad():
        probabilities = trainer.model(**repeated).logits.softmax(-1).unflatten(0, (3, -1)).mean(0)
    gold = probabilities.gather(-1, labels.clamp(min=0)[..., None])[..., 0].log()[labels != -100]
    assert mean == pytest.approx(-gold.mean().item(), rel=1e-5)
    # without dropout the passes are equal
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):  # of attention
            module.dropout = 0.0
    trainer.model.train()
    several = loss_of(trainer, inputs)
    trainer.dropout_passes = 1
    assert several == pytest.approx(loss_of(trainer, inputs), rel=1e-5)


def test_dropout_passes_are_part_of_a_stages_identity(tmp_path):
    run_recipe(recipe(tmp_path / "run", "stages=rationale"))
    with pytest.raises(UserError, match="dropout_passes: 1 → 2"):
        run_recipe(recipe(tmp_path / "run", "stages=rationale", "dropout_passes=2"))


def test_another_fusion_is_trained_published_and_answers(tmp_path):
    run_recipe(recipe(tmp_path / "run", VISION, "image_size=32", "fusion_gate=tanh", "fusion_num_heads=4"))
    hub = tmp_path / "run/hub"
    config = json.loads((hub / "config.json").read_text())
    assert config["answer_config"]["fusion_gate"] == "tanh" and config["answer_config"]["fusion_num_heads"] == 4
    weights = load_file(hub / "model.safetensors")
    scales = [value for name, value in weights.items() if name.endswith("fusion.gate_scale")]
    assert len(scales) == 2 and all(scale.item() != 0 for scale in scales)  # trained
    result = load_pipeline(str(hub), "cpu")({"question": "Which?", "choices": ["a", "b"], "image": None})
    assert result["answer"] in ("A", "B")
    with pytest.raises(UserError, match="fusion_gate: 'relu' is not one of"):
        recipe(tmp_path, "fusion_gate=relu")


def test_two_backbones_are_trained_published_and_answer(tmp_path):
    sizes = VISION.removeprefix("vision=")
    other = sizes.replace("patch_size: 16", "patch_size: 8")
    run_recipe(recipe(tmp_path / "run", f"vision=[{sizes}, {other}]", *ONE_STAGE))
    hub = tmp_path / "run/hub"
    config = json.loads((hub / "config.json").read_text())
    assert config["vision_config"]["model_type"] == "mmcot_backbones" and config["image_feature_size"] == 32
    assert "| Image features | vit + vit |" in (hub / "README.md").read_text()
    weights = load_file(hub / "model.safetensors")
    torch.manual_seed(42)  # the recipe's
    fresh = build_stage_model(
        Run(recipe(tmp_path / "run", f"vision=[{sizes}, {other}]", *ONE_STAGE)).recipe, "answer", 9
    )
    for number in (0, 1):
        name = f"encoder.vision.backbones.{number}.embeddings.patch_embeddings.projection.weight"
        assert not torch.equal(weights[name], fresh.state_dict()[name])
    result = load_pipeline(str(hub), "cpu")({"question": "Which?", "choices": ["a", "b"], "image": None})
    assert result["answer"] in ("A", "B")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vision=[vit]", "vision: a list is of two or more names"),
        ("vision=[vit, {patch_size: 16}]", "vision: a list is of two or more names"),
        ("answer.vision=[clip, 3]", "vision: a list is of two or more names"),
        ("vision=[vit, clip];vision_feature=pooler_output", "each of several backbones keeps its own"),
        ("vision=[vit, clip];image_size=32", "image_size: is for a fresh backbone"),
        ("vision=[{patch_size: 16}, {patch: 8}]", "vision.patch: there is no such size .did you mean"),
    ],
)
def test_a_list_that_names_no_backbones_is_refused(tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        run_recipe(recipe(tmp_path / "run", *override.split(";")))


def test_what_a_recipe_says_reaches_the_trainer(tmp_path, monkeypatch):
    """Each of these would be forgotten without an error."""
    seen = {}

    class Begun(Exception):
        pass

    def init(self, *args, **kwargs):
        seen.update(kwargs)
        raise Begun

    monkeypatch.setattr(StageTrainer, "__init__", init)
    options = ["position_bias_lr=3", "tokens_per_batch=99", "dropout_passes=2", "loss_on_padding=true"]
    with pytest.raises(Begun):
        Run(recipe(tmp_path, *options, "max_target_length=77", "keep_images=true")).train("rationale")
    assert (seen["position_bias_lr"], seen["tokens_per_batch"], seen["dropout_passes"]) == (3, 99, 2)
    collator = seen["data_collator"]
    assert collator.label_length == 77 and collator.kept == {}
    rows = [{"input_ids": [5, 1], "labels": [6, 1]}, {"input_ids": [5, 6, 1], "labels": [1]}]
    assert collator(rows)["labels"].shape == (2, 77)  # what counts of padding doesn't depend on the batch


@pytest.mark.parametrize("data_seed, drawn_by", [(None, 5), (9, 9)])
def test_the_order_of_samples_is_the_data_seeds(tmp_path, data_seed, drawn_by):
    overrides = ["seed=5", *([] if data_seed is None else [f"data_seed={data_seed}"])]
    plan = recipe(tmp_path, *overrides)
    run = Run(plan)
    samples = run.samples("train", "rationale")
    model = build_stage_model(plan, "rationale", len(run.processor.tokenizer))
    args = training_arguments(plan, tmp_path, has_eval=False)
    collator = StageCollator(run.processor, with_images=False)
    trainer = StageTrainer(
        model=model, args=args, train_dataset=samples, processing_class=run.processor, data_collator=collator
    )
    expected = LengthBatchSampler(samples["length"][:], samples["target_length"][:], batch_size=8, seed=drawn_by)
    batches = [batch["input_ids"].tolist() for batch in trainer.get_train_dataloader()]
    assert batches == [collator([samples[i] for i in rows])["input_ids"].tolist() for rows in expected]


@pytest.mark.parametrize(("scores", "best"), [([50, 50, 50], 2), ([50, 60, 60], 2), ([60, 50, 50], 0)])
def test_of_equally_good_checkpoints_the_one_of_lowest_loss_is_kept(tmp_path, scores, best):
    """By the metric first; its loss falls from one to the next here."""
    saved = ["eval_strategy=steps", "save_strategy=steps", "eval_steps=4", "save_steps=4", "max_steps=12"]
    saved += ["load_best_model_at_end=true", "answer.metric_for_best_model=accuracy", "learning_rate=1e-2"]
    plan = recipe(tmp_path, *saved, "eval_split=val").for_stage("answer")
    run, given = Run(plan), iter(scores)
    trainer = StageTrainer(
        model=build_stage_model(plan, "answer", len(run.processor.tokenizer)),
        args=training_arguments(plan, tmp_path, has_eval=True),
        train_dataset=run.samples("train", "answer"),
        eval_dataset=run.samples("val", "answer"),
        processing_class=run.processor,
        data_collator=StageCollator(run.processor, with_images=False),
        compute_metrics=lambda predictions: {"accuracy": next(given)},
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 3, "the test needs a loss that falls"
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{4 * (best + 1)}")
    assert trainer.state.best_metric == max(scores)
    kept = load_file(tmp_path / f"checkpoint-{4 * (best + 1)}" / "model.safetensors")
    found = dict(trainer.model.named_parameters())
    assert all(torch.equal(kept[name], found[name]) for name in kept if name in found)


def test_a_run_that_was_moved_keeps_its_best_checkpoint(tmp_path):
    state = TrainerState(best_model_checkpoint="/where/it/was/rationale/checkpoint-7")
    _Resumption().on_train_begin(SimpleNamespace(output_dir=str(tmp_path)), state, None)
    assert state.best_model_checkpoint == str(tmp_path / "checkpoint-7")


def test_backbones_may_want_pictures_that_are_no_squares():
    from mmcot.training.stages.build import _height_and_width

    assert list(map(_height_and_width, (None, 64, [48, 64]))) == [None, [64, 64], [48, 64]]
