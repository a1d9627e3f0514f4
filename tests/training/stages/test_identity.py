"""What each step of a run depends on: settings that change what comes out change the step's identity, others don't."""

import json

import pytest

from mmcot.training.stages.identity import predictions_identity, training_identity
from mmcot.training.stages.manifest import mark_step
from mmcot.training.stages.recipe import load_recipe
from mmcot.training.stages.run import Run
from mmcot.training.stages.shared_folder import remove_stale

BASE = ["model={d_model: 16, d_kv: 8, d_ff: 16, num_layers: 1, num_heads: 2}", "data=embedded:n=8,val=2,test=2"]
BASE += ["eval_strategy=no", "load_best_model_at_end=false", "use_cpu=true"]
TEXT = ["vision=null", "features=null", "keep_images=false"]
VISION = ["vision={model_type: vit, hidden_size: 16, image_size: 32, patch_size: 16}", "image_size=null"]
BOTH = ("rationale", "answer")


def trained_by(folder, *overrides):
    run = Run(load_recipe("embedded", [*BASE, f"output_dir={folder}", *overrides]))
    return {stage: training_identity(run, stage) for stage in BOTH}


@pytest.mark.parametrize(
    "override, stages",
    [
        ("seed=7", BOTH),
        ("weight_decay=0.3", BOTH),
        ("use_caption=true", BOTH),
        ("max_source_length=99", BOTH),
        ("max_target_length=99", BOTH),
        ("source_truncation=end", BOTH),
        ("loss_on_padding=true", BOTH),
        ("tokens_per_batch=99", BOTH),
        ("position_bias_lr=3", BOTH),
        ("dropout_passes=2", BOTH),
        ("max_train_samples=5", BOTH),
        ("rationale_format=QCM-LE", BOTH),
        ("answer_format=CQMG-A", ("answer",)),
        ("gold_rationales=lecture_and_solution", ("answer",)),
        ("cross_fit=2", ("answer",)),
        ("answer.learning_rate=0.1", ("answer",)),
        ("rationale.learning_rate=0.1", ("rationale",)),
        ("num_beams=2", ()),
        ("max_new_tokens=9", ()),
        ("answer_mode=generate", ()),
        ("per_device_eval_batch_size=3", ()),
        ("logging_steps=3", ()),
        ("run_name=other", ()),
        ("card_example=false", ()),
    ],
)
def test_what_a_stages_weights_depend_on(tmp_path, override, stages):
    before, after = trained_by(tmp_path, *TEXT), trained_by(tmp_path, *TEXT, override)
    assert [stage for stage in BOTH if before[stage] != after[stage]] == list(stages)


@pytest.mark.parametrize(
    "override",
    ["fusion_gate=tanh", "fusion_num_heads=2", "image_size=16", "freeze_vision=true", "image_rule=original"]
    + ["vision_feature=pooler_output", "vision={model_type: vit, hidden_size: 32, image_size: 32, patch_size: 16}"],
)
def test_what_they_depend_on_where_they_see(tmp_path, override):
    before, after = trained_by(tmp_path, *VISION), trained_by(tmp_path, *VISION, override)
    assert all(before[stage] != after[stage] for stage in BOTH)


@pytest.mark.parametrize(
    "override, stages",
    [
        ("num_beams=2", BOTH),
        ("max_new_tokens=9", BOTH),
        ("protocol=teacher_forced", BOTH),
        ("answer_mode=generate", BOTH),
        ("dtype=float32", BOTH),
        ("generation_config=some/folder", BOTH),
        ("max_test_samples=1", BOTH),
        ("answer.num_beams=2", ("answer",)),
        ("per_device_eval_batch_size=3", ()),
        ("disable_tqdm=true", ()),
        ("card_example=false", ()),
    ],
)
def test_what_predictions_depend_on(tmp_path, override, stages):
    def predicted_by(*overrides):
        run = Run(load_recipe("embedded", [*BASE, *TEXT, f"output_dir={tmp_path}", *overrides]))
        return {stage: predictions_identity(run, stage, "test") for stage in BOTH}

    (tmp_path / "rationale").mkdir()
    rationales = tmp_path / "rationale" / "predictions_test.jsonl"
    rationales.write_text(json.dumps({"id": "1"}) + "\n")
    before, after = predicted_by(), predicted_by(override)
    assert [stage for stage in BOTH if before[stage] != after[stage]] == list(stages)
    rationales.write_text(json.dumps({"id": "2"}) + "\n")  # answers are of the rationales that they read
    assert predicted_by()["answer"] != before["answer"] and predicted_by()["rationale"] == before["rationale"]


@pytest.mark.parametrize("beams, kept", [(1, True), (2, False)])
def test_begun_predictions_are_gone_on_with_only_under_the_same_settings(tmp_path, beams, kept):
    """Else the writer would refuse what others began, and the run stop."""
    file = tmp_path / "predictions_test.jsonl"
    parts = [tmp_path / f"{file.name}.partial-records{end}" for end in ("", ".0of2", ".1of2")]
    for part in parts:
        part.write_text("{}\n")
    mark_step(file, {"num_beams": 1}, finished=False)
    remove_stale(file, {"num_beams": beams})
    assert [part.exists() for part in parts] == [kept] * 3
