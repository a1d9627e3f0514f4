"""Recipes: what a key means, where it comes from, and what is said of a wrong one."""

import pytest

from mmcot.training.stages.recipe import RECIPES, load_recipe


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
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, text, overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        load_recipe(write(tmp_path, text), overrides)
    assert "\n" not in str(error.value)


def test_unknown_recipe_lists_the_known():
    with pytest.raises(FileNotFoundError, match="base-v5"):
        load_recipe("no-such-recipe")


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_shipped_recipes_are_valid(name):
    recipe = load_recipe(name)
    for stage in ("rationale", "answer"):
        recipe.for_stage(stage)
