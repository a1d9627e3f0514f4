"""Recipes: what a key means, where it comes from, and what is said of a wrong one."""

import pytest

from mmcot.training.common import UserError
from mmcot.training.stages.recipe import load_recipe
from mmcot.training.stages.recipe_file import recipe_files


def write(tmp_path, text, name="mine"):
    path = tmp_path / f"{name}.yaml"
    path.write_text(text)
    return path


def test_command_line_goes_before_the_file_and_sections_before_both(tmp_path):
    path = write(tmp_path, "model: t5\nlearning_rate: 1e-4\nseed: 1\nanswer:\n  seed: 2\n")
    recipe = load_recipe(path, ["seed=3", "answer.learning_rate=5e-5", "model.d_model=8"][:2])
    assert recipe.for_stage("rationale").training == {"learning_rate": 1e-4, "seed": 3}
    assert recipe.for_stage("answer").training == {"learning_rate": 5e-5, "seed": 2}


def test_sizes_of_a_fresh_network_can_be_set_one_by_one(tmp_path):
    recipe = load_recipe(write(tmp_path, "model: {d_model: 8, d_ff: 16}\n"), ["model.d_ff=32"])
    assert recipe.model == {"d_model": 8, "d_ff": 32}


def test_a_wrong_value_is_blamed_on_who_gave_it(tmp_path):
    for override in ("learning_rate=abc", "lerning_rate=1", "answer.num_beams=two", "rationale_format=null"):
        with pytest.raises(UserError, match="^command line: "):
            load_recipe("own-data", [override])
    with pytest.raises(UserError, match="mine.yaml: num_beams: 'two'"):
        load_recipe(write(tmp_path, "num_beams: two\n"), ["seed=3"])
    with pytest.raises(UserError, match="^command line: num_beams: 'one'"):
        load_recipe(write(tmp_path, "num_beams: two\n"), ["num_beams=one"])


def test_extends_takes_what_the_file_leaves_open(tmp_path):
    write(tmp_path, "model: t5\nseed: 1\nanswer: {seed: 7, max_target_length: 9}\n", "base")
    recipe = load_recipe(write(tmp_path, "extends: base\nmodel: other\nanswer: {seed: 8}\n"))
    assert recipe.model == "other" and recipe.training["seed"] == 1
    answer = recipe.for_stage("answer")
    assert (answer.training["seed"], answer.max_target_length) == (8, 9)


@pytest.mark.parametrize(
    "text, overrides, message",
    [
        ("learning_rat: 1\n", [], "did you mean learning_rate"),
        ("answer: {learning_rat: 1}\n", [], "learning_rat"),
        ("stages: all\n", [], "stages: 'all' is not one of both, rationale, answer"),
        ("a: [\n", [], "is not YAML"),
        ("just text\n", [], "holds no keys"),
        ("seed: 1\n", ["seed"], "key=value"),
        ("rationale_format: null\nshare_stages: true\n", [], "share_stages"),
        ("rationale_format: null\n", [], "answer_format: QCMG-A reads a rationale"),
        ("rationale_format: QCM-A\n", [], "rationale_format: QCM-A gives the answer away"),
        ("answer_format: QCM-A\n", [], "answer_format: QCM-A reads no rationale"),
        ("answer_format: QCMG-X\n", [], "answer_format: .*does not exist"),
        ("answer: 3\n", [], "answer: a section is a mapping"),
        ("extends: mine\n", [], "extends itself"),
        ("seed: 1\n", ["data=[a"], "'data=\\[a': the value is not YAML"),
        ("seed: 1\n", ["=3"], "key=value"),
        ("num_beams: two\n", [], "num_beams: 'two' is not of type int"),
        ("num_beams: 1.5\n", [], "num_beams: 1.5 is not of type int"),
        ("num_beams: true\n", [], "num_beams: True is not of type int"),
        ("answer: {num_beams: two}\n", [], "answer.num_beams: 'two' is not of type int"),
        ("learning_rate: fast\n", [], "learning_rate: 'fast' is not of type float"),
        ("learning_rate: .nan\n", [], "learning_rate: nan"),
        ("learning_rate: null\n", [], "learning_rate: None is not of type float"),
        ("bf16: maybe\n", [], "bf16: 'maybe' is not of type bool"),
        ("output_dir: null\n", [], "output_dir: None is not of type str"),
        ("tokenizer: false\n", [], "tokenizer: False is not of type null or str"),
        ("columns: img\n", [], "columns: 'img' is not of type dict or null"),
        ("lr_scheduler_type: steep\n", [], "lr_scheduler_type: 'steep' is not one of linear, cosine"),
        ("max_train_samples: -1\n", [], "max_train_samples: -1 is too small; it must be at least 1"),
        ("per_device_eval_batch_size: 0\n", [], "per_device_eval_batch_size: 0 is too small"),
        ("num_train_epochs: 0\n", [], "num_train_epochs: 0.* must be above 0"),
        ("seed: -1\n", [], "seed: -1 is too small"),
        ("answer: {data: x}\n", [], "answer.data: holds for the whole run"),
        ("answer: {max_source_length: 9}\n", [], "answer.max_source_length: holds for the whole run"),
        ("rationale: {use_cpu: true}\n", [], "rationale.use_cpu: holds for the whole run"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, text, overrides, message):
    with pytest.raises(UserError, match=message) as error:
        load_recipe(write(tmp_path, text), overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, key, value",
    [
        ("num_beams: 2.0\n", "num_beams", 2),
        ("learning_rate: 5e-5\n", "learning_rate", 5e-5),
        ("max_steps: 1e3\n", "max_steps", 1000),
        ("bf16: 'yes'\n", "bf16", True),
        ("bf16: null\n", "bf16", None),
        ("bf16: auto\n", "bf16", None),
        ("eval_strategy: no\n", "eval_strategy", "no"),
        ("model: 5\n", "model", "5"),
        ("lr_scheduler_kwargs: {num_decay_steps: 3}\n", "lr_scheduler_kwargs", {"num_decay_steps": 3}),
        ("report_to: [tensorboard]\n", "report_to", ["tensorboard"]),
        ("save_total_limit: null\n", "save_total_limit", None),
    ],
)
def test_values_have_their_keys_type(tmp_path, text, key, value):
    found = load_recipe(write(tmp_path, text)).to_dict()[key]
    assert found == value and type(found) is type(value)


def test_a_data_file_in_a_recipes_place_is_own_data(tmp_path):
    (tmp_path / "my.jsonl").write_text("{}\n")
    recipe = load_recipe(tmp_path / "my.jsonl", ["seed=3"])
    assert recipe.data == str(tmp_path / "my.jsonl") and recipe.training["seed"] == 3
    assert recipe.model == load_recipe("own-data").model
    assert load_recipe(tmp_path).data == str(tmp_path)  # a folder of problems


def test_unknown_recipe_names_close_ones_or_where_they_are_listed():
    with pytest.raises(FileNotFoundError, match="bse-v5: did you mean base-v5 or "):
        load_recipe("bse-v5")
    with pytest.raises(FileNotFoundError, match="a name that `mmcot train` lists"):
        load_recipe("no-such-recipe")


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_shipped_recipes_are_valid(name):
    recipe = load_recipe(name)
    for stage in ("rationale", "answer"):
        recipe.for_stage(stage)


def test_a_key_said_twice_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: own-data\nlearning_rate: 1e-4\nanswer:\n  seed: 1\nlearning_rate: 1e-5\n")
    with pytest.raises(UserError, match=r"mine.yaml is not YAML: key 'learning_rate' occurs twice \(line 5\)"):
        load_recipe(path)
    with pytest.raises(UserError, match="key 'd_model' occurs twice"):
        load_recipe("embedded", ["model={d_model: 8, d_model: 16}"])
