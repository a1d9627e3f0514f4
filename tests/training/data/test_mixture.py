"""Several sources as one: weights in training, ids that tell sources apart, figures of each."""

import json
from collections import Counter

import pytest
from record_files import json_lines, picture, problem

from mmcot.training.cli import main
from mmcot.training.common import MissingFileError, UserError
from mmcot.training.data.mixture import source_of
from mmcot.training.data.problems import load_problems
from mmcot.training.evaluation.scoring import evaluate_sources


@pytest.fixture
def mixture(tmp_path):
    """Generated questions and a user's own file beside the mixture, whose test answers are withheld."""
    for split, count in (("train", 4), ("val", 3)):
        json_lines(
            tmp_path / "own" / f"{split}.jsonl", *(problem(id=f"{split}-{i}", image="p.png") for i in range(count))
        )
    picture(tmp_path / "own" / "p.png")
    json_lines(tmp_path / "own" / "test.jsonl", {**problem(id="t"), "answer": None})

    def write(**changes):
        own = {"source": "own", "splits": {"test": "val"}, **changes.pop("own", {})}
        content = {"sources": {"made": "embedded:n=10,test=6,skills=flower", "own": own}, **changes}
        path = tmp_path / "mix.yaml"
        path.write_text(json.dumps(content))  # JSON is YAML
        return path

    return write


def counts(problems):
    return Counter(source_of(id_) for id_ in problems["id"])


def test_sources_follow_one_another(mixture):
    path = mixture()
    train = load_problems(path, "train")
    assert counts(train) == {"made": 10, "own": 4} and train["id"][10:] == [f"own/train-{i}" for i in range(4)]
    assert set(train["split"]) == {"train"} and all(train["images"]) and len(set(train["id"])) == 14
    test = load_problems(path, "test")  # val stands in for a test split without answers
    assert counts(test) == {"made": 6, "own": 3} and test["id"][-1] == "own/val-2" and set(test["split"]) == {"test"}
    assert counts(load_problems(mixture(own={"splits": {"test": None}}), "test")) == {"made": 6}


@pytest.mark.parametrize("weight, expected", [(1, 4), (2, 8), (0.5, 2), (1.5, 6), (0.25, 1)])
def test_a_weight_is_how_often_a_question_comes(mixture, weight, expected):
    path = mixture(own={"weight": weight})
    train = load_problems(path, "train")
    assert counts(train) == {"made": 10, "own": expected}
    often = Counter(id_.partition("*")[0] for id_ in train["id"][10:])
    assert max(often.values()) - min(often.values()) <= 1 and len(set(train["id"])) == len(train)
    assert train["id"] == load_problems(path, "train")["id"]  # the draw is the seed's
    assert counts(load_problems(path, "val")) == {"made": 10, "own": 3}  # weights are of training


def test_another_seed_draws_others(mixture):
    drawn = {seed: load_problems(mixture(own={"weight": 0.5}, seed=seed), "train")["id"][10:] for seed in range(4)}
    assert len(set(map(tuple, drawn.values()))) > 1


@pytest.mark.parametrize(
    "content, message",
    [
        ("[1]", "expected `sources:`"),
        ("sources: {}", "expected `sources:`"),
        ("sources: {a: {source: x, wieght: 2}}", "a: there is no key 'wieght' .did you mean weight"),
        ("sources: {a: {source: x, weight: 0}}", "a: weight must be a number above 0, but is 0"),
        ("sources: {a: {weight: 1}}", "a: expected a source"),
        ("sources: {a/b: x}", "so it has no /"),
        ("sources: {a: {source: x, weight: 1.0e+12}}", "a: weight is 1000 at most"),
        ('sources: {a: {source: x, allow_urls: "no"}}', "a: allow_urls must be true or false, but is 'no'"),
        ("sources: {a: {source: x, splits: {tst: val}}}", "a: splits has no 'tst'; ours are train, val, test"),
        ("{seed: 2024-13-45, sources: {a: x}}", "is not YAML"),
        ("sources: {a: other.yaml}", "isn't part of another one"),
        ("sources: {a: x}\nmore: 1", "no key 'more'"),
        ("sources: {a: x}\nseed: x", "seed must be a whole number"),
        ("sources: {a: {source: 'embedded:n=2,skills=tense', splits: [1]}}", "splits must map"),
        ("sources: {a: 'embedded:n=3', b: nowhere}", "b: nowhere: no such file"),
        ("sources: {a: {source: 'embedded:n=2', weight: 0.1}}", "leaves none of its 2"),
        ("sources: [", "is not YAML"),
    ],
)
def test_what_the_user_has_to_mend(content, message, tmp_path):
    (tmp_path / "mix.yaml").write_text(content)
    with pytest.raises(UserError, match=f"mix.yaml: .*{message}|{message}"):
        load_problems(tmp_path / "mix.yaml", "train")
    with pytest.raises(MissingFileError, match="no such file"):
        load_problems(tmp_path / "not-there.yaml")


def test_figures_of_each_source_in_one_table(mixture, tmp_path, capsys):
    path = mixture()
    problems = load_problems(path, "test")
    predictions = {
        record["id"]: record["answer"] if source_of(record["id"]) == "own" else (record["answer"] + 1) % 2
        for record in problems.remove_columns("images")
    }
    found = evaluate_sources(problems.remove_columns("images"), predictions)
    assert list(found) == ["made", "own"] and found["own"]["accuracy"]["Avg"] == 100 and found["made"]["n"]["Avg"] == 6
    (tmp_path / "p.json").write_text(json.dumps(predictions))
    command = ["evaluate", "--predictions", str(tmp_path / "p.json"), "--problems", str(path), "--split", "test"]
    assert main([*command, "--protocol", "generated", "--json", str(tmp_path / "r.json")]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["n"]["Avg"] == 9 and result["sources"]["own"]["accuracy"]["Avg"] == 100
    rows = [line.partition("  ")[0] for line in capsys.readouterr().out.splitlines() if line and line[0] not in " A"]
    assert rows == ["p", "p · made", "p · own"]


def test_a_run_trains_on_a_mixture(mixture, tmp_path):
    """Both stages on weighted training questions of two sources; the check and the card know it too."""
    from mmcot.training.stages.recipe import load_recipe
    from mmcot.training.train import run_recipe

    path = mixture(own={"weight": 2})
    assert main(["check", str(path)]) in (0, None)
    sizes = "{d_model: 16, d_kv: 8, d_ff: 16, num_layers: 1, num_heads: 2}"
    overrides = [
        f"data={path}",
        f"output_dir={tmp_path / 'run'}",
        f"model={sizes}",
        "vision=null",
        "keep_images=false",
    ]
    overrides += ["max_steps=2", "max_new_tokens=4", "eval_strategy=no", "save_strategy=no", "use_cpu=true"]
    result = run_recipe(load_recipe("embedded", [*overrides, "per_device_train_batch_size=4", "disable_tqdm=true"]))
    assert result["test"]["n"]["Avg"] == 9
    assert {name: own["n"]["Avg"] for name, own in result["test"]["sources"].items()} == {"made": 6, "own": 3}
    predicted = [
        json.loads(line) for line in (tmp_path / "run/answer/predictions_test.jsonl").read_text().splitlines()
    ]
    assert Counter(source_of(record["id"]) for record in predicted[1:]) == {"made": 6, "own": 3}


def test_a_source_named_twice_is_refused(tmp_path, capsys):
    """YAML's reader keeps the last of two equal keys, and half of the data would be missing without a word."""
    path = tmp_path / "mix.yaml"
    path.write_text("sources:\n  own: embedded:n=4\n  other: embedded:n=4\n  own: embedded:n=8\n")
    with pytest.raises(UserError, match=r"mix.yaml: is not YAML: key 'own' occurs twice \(line 4\)"):
        load_problems(path, "train")
    assert main(["check", str(path)]) == 2
    assert "key 'own' occurs twice" in capsys.readouterr().err
    path.write_text("sources:\n  1: embedded:n=4\n  '1': embedded:n=8\n")
    with pytest.raises(UserError, match="key '1' occurs twice"):
        load_problems(path, "train")


def test_merged_keys_of_yaml_may_be_replaced(tmp_path):
    path = tmp_path / "mix.yaml"
    path.write_text(
        "sources:\n  a: &a {source: 'embedded:n=4,skills=flower', weight: 2}\n  b: {<<: *a, weight: 1}\n  c: *a\n"
    )
    assert counts(load_problems(path, "train")) == {"a": 8, "b": 4, "c": 8}


def test_a_sources_own_options_go_before_the_callers(mixture):
    train = load_problems(mixture(own={"image_rule": "none"}), "train", image_rule="all")
    shown = {source_of(record["id"]): bool(record["images"]) for record in train}
    assert shown == {"made": True, "own": False}


def test_a_part_of_a_mixture_is_of_all_its_sources(mixture, tmp_path):
    """`max_train_samples` draws, the same rows each time, in their order; of a plain source it takes the first."""
    from mmcot.training.stages.recipe import load_recipe
    from mmcot.training.stages.run import Run

    def ids(data):
        settings = [f"data={data}", f"output_dir={tmp_path}", "max_train_samples=9", "eval_split=null"]
        return Run(load_recipe("embedded", [*settings, "test_split=null", "use_cpu=true"])).problems["train"]["id"][:]

    path = mixture()
    drawn, whole = ids(path), load_problems(path, "train")["id"][:]
    assert {source_of(id_) for id_ in drawn} == {"made", "own"} and drawn == ids(path)
    assert drawn == [id_ for id_ in whole if id_ in drawn] and len(drawn) == 9
    plain = "embedded:n=12,skills=flower"
    assert ids(plain) == load_problems(plain, "train")["id"][:9]
