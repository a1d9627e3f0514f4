"""`mmcot paper`: rows of the paper's tables, each run once, published beside measured."""

import json

import pytest

from mmcot.training.cli import main
from mmcot.training.common import UserError
from mmcot.training.paper import tables
from mmcot.training.paper.published import PUBLISHED_ROWS
from mmcot.training.paper.rows import TABLES, rows_of, tables_of
from mmcot.training.paper.tables import make_plan, make_tables

SOURCE = "embedded:n=12,val=4,test=8,skills=flower+tense"
TINY = ["max_steps=2", "answer.max_steps=2", "save_steps=2", "max_new_tokens=6", "answer.max_new_tokens=6"]
TINY += ["per_device_train_batch_size=4", "disable_tqdm=true", "use_cpu=true", "start.max_steps=1"]
TINY += ["start.per_device_train_batch_size=4", "start.data=embedded:n=12,skills=word+flower"]
ROWS = ("text-one-stage-qcm-a", "text-only")


def trained(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("model.safetensors"))}


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory):
    """A run that was killed between its two rows."""
    from mmcot.training import train

    folder = tmp_path_factory.mktemp("paper") / "out"
    real = train.run_recipe

    def dies_at_second_row(recipe):
        if recipe.output_dir.endswith("text-only"):
            raise KeyboardInterrupt
        return real(recipe)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "run_recipe", dies_at_second_row)
        with pytest.raises(KeyboardInterrupt):
            make_tables("all", SOURCE, folder, rows=ROWS, overrides=TINY)
    return folder


def test_the_network_that_all_rows_begin_with_is_announced(tmp_path, capsys):
    assert main(["paper", "table2", "embedded:", "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    first = capsys.readouterr().out.splitlines()[1]
    assert f"first {tmp_path / 'out/runs/start-base'}: " in first and "starts from it" in first
    assert main(["paper", "table2", "embedded:", "--dry-run", "model=google/flan-t5-base"]) == 0
    assert "starts from it" not in capsys.readouterr().out


def test_killed_between_rows_it_does_nothing_twice(cut_off, capsys):
    found = json.loads((cut_off / "results.json").read_text())
    assert not found["finished"] and list(found["rows"]) == ["text-one-stage-qcm-a"]
    before = trained(cut_off)
    assert {path.relative_to(cut_off).parts[1] for path in before} == {"start-base", "text-one-stage-qcm-a"}
    command = ["paper", "all", SOURCE, "--output", str(cut_off), "--rows", *ROWS, *TINY, "--quiet"]
    assert main(command) == 0
    after = trained(cut_off)
    assert {path: after[path] for path in before} == before
    assert {path.relative_to(cut_off).parts[1] for path in after.keys() - before.keys()} == {"text-only"}
    content = json.loads((cut_off / "results.json").read_text())
    assert content["finished"] and content["rows"][ROWS[0]]["seconds"] == found["rows"][ROWS[0]]["seconds"]

    # published beside measured, protocol, n, interval; the paired test where a table has two rows
    (row,) = content["tables"]["table2"]["rows"]
    assert row["published"]["accuracy"] == 81.63 and row["published"]["source"] == "[v5]"
    assert row["n"] == 8 and row["protocol"] == "generated" and row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]
    (row,) = content["tables"]["table3"]["rows"]
    assert row["published"]["rouge_l"] == 90.73 and 0 <= row["rouge_l"] <= 100 and row["test"] is None
    lengths = content["lengths"]["text-only"]
    assert lengths["limit"] == 6 and lengths["longest"] <= 6 and lengths["n"] == 8
    page = (cut_off / "results.md").read_text()
    assert "| two stages, text alone | 78.57 | generated |" in page and page in capsys.readouterr().out
    # a third call trains nothing
    make_tables("all", SOURCE, cut_off, rows=ROWS, overrides=TINY)
    assert trained(cut_off) == after


def test_rows_are_tested_against_the_first_on_the_same_questions(tmp_path, cut_off):
    """Rows whose answers are known: 1 question right by A alone, 3 by B alone, of 8; C has all right."""
    from mmcot.training.data.problems import load_problems
    from mmcot.training.paper.results import _tests

    plan = make_plan("table2", SOURCE, cut_off, overrides=TINY)
    answers = load_problems(SOURCE, "test")
    wrong = {problem["id"]: (problem["answer"] + 1) % len(problem["choices"]) for problem in answers}
    gold = dict(zip(answers["id"], answers["answer"], strict=True))
    ids = list(gold)
    right = {"a": {ids[0]}, "b": set(ids[1:4]), "c": set(ids)}
    files = {}
    for row, which in zip(plan.recipes, right.values(), strict=False):
        files[row] = {"predictions": tmp_path / f"{row}.json", "protocol": "generated"}
        files[row]["predictions"].write_text(json.dumps({i: gold[i] if i in which else wrong[i] for i in ids}))
    rows = list(files)
    test, other = _tests(plan, rows, files)
    assert (test["only_a"], test["only_b"], test["difference"]) == (1, 3, 25.0)
    assert test["p_value"] == pytest.approx(0.625) == test["p_holm"] and test["against"] == rows[0]
    assert (other["only_b"], other["p_value"], other["p_holm"]) == (
        7,
        pytest.approx(2 / 2**7),
        pytest.approx(4 / 2**7),
    )


def test_lengths_of_rationales_are_counted_against_the_limit(tmp_path, tiny_tokenizer):
    """A rationale of as many tokens as there may be was cut off, or just fitted."""
    from mmcot.training.paper.results import rationale_lengths
    from mmcot.training.stages.recipe import load_recipe

    tiny_tokenizer.save_pretrained(tmp_path / "rationale")
    lines = [{"header": {}}]
    lines += [{"id": str(n), "generated": {"rationale": "1" * n}} for n in range(1, 6)]  # a digit is a token
    (tmp_path / "rationale/predictions_test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = rationale_lengths(load_recipe("embedded", [f"output_dir={tmp_path}", "rationale.max_new_tokens=5"]))
    assert found == {"mean": 3, "p95": 5, "longest": 5, "limit": 5, "at_limit": 20, "n": 5}


@pytest.mark.parametrize("version", ["v1", "v5"])
def test_every_row_has_a_recipe_and_a_published_figure(version, tmp_path):
    plan = make_plan("all", "data/scienceqa", tmp_path, version=version)
    rows = {row for v, row in PUBLISHED_ROWS if v == version and not row.startswith("aokvqa")}
    assert plan.network == "paper" and set(plan.recipes) == rows
    base = plan.recipes["base"]
    for row, recipe in plan.recipes.items():
        assert recipe.one_stage == ("one-stage" in row)
        assert (recipe.vision is None) == (row.startswith("text") or row.endswith("-only"))
        assert recipe.use_caption == (row == "captions-only" or (version == "v5" and row in ("base", "large"))) or (
            row.startswith("backbone")
        )
        assert recipe.data == "data/scienceqa" and recipe.output_dir == str(tmp_path / "runs" / row)
        if recipe.vision is not None:
            assert recipe.features == str(tmp_path / "features" / recipe.vision)  # one cache a backbone
        assert "large" in recipe.model if row.startswith("large") else recipe.model == base.model
        assert ("unifiedqa" in recipe.model) == (version == "v1")
    formats = {row: plan.recipes[row].answer_format for row in TABLES["table2"][version]}
    assert list(formats.values()) == ["QCM-A", "QCM-LEA", "QCM-ALE"]
    assert base.rationale_format == ("QCM-LE" if version == "v1" else "QCM-E")


@pytest.mark.slow
def test_one_row_of_v1_runs_with_small_networks(tmp_path):
    content = make_tables("table3", SOURCE, tmp_path, version="v1", rows=["base"], overrides=TINY)
    (row,) = content["tables"]["table3"]["rows"]
    assert (
        row["protocol"] == row["published"]["protocol"] == "teacher_forced" and row["published"]["accuracy"] == 84.91
    )
    assert content["rows"]["base"]["recipe"]["vision"]["model_type"] == "detr"


def test_aokvqa_is_reported_on_val(tmp_path):
    plan = make_plan("aokvqa", "HuggingFaceM4/A-OKVQA", tmp_path)
    assert {row: PUBLISHED_ROWS["v5", row].accuracy for row in plan.recipes} == {
        "aokvqa-text-only": 47.86,
        "aokvqa": 50.57,
    }
    for row, recipe in plan.recipes.items():
        assert (recipe.test_split, recipe.eval_split, recipe.use_caption) == ("val", None, False)
        assert (recipe.vision is None) == (row == "aokvqa-text-only") and recipe.gold_rationales == "target"
    with pytest.raises(UserError, match="v1 of the paper has no table aokvqa"):
        make_plan("aokvqa", "x", tmp_path, version="v1")


def test_rows_of_the_papers_networks_share_features(tmp_path, monkeypatch):
    """Two rows that read one backbone: its cache is filled once, before either trains."""
    from mmcot.training.features import extract

    made = []
    monkeypatch.setattr(extract, "extract_features", lambda problems, vision, out, **_: made.append((vision, out)))
    plan = make_plan("all", SOURCE, tmp_path, network="paper", rows=("base", "one-stage-qcm-a", "backbone-clip"))
    tables.begin_rows(plan)
    assert made == [("vit", tmp_path / "features" / "vit"), ("clip", tmp_path / "features" / "clip")]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"version": "v3"}, "no version 'v3'"),
        ({"rows": ["nothing"]}, "has no row 'nothing'; its rows: text-one"),
        ({"network": "huge"}, "no network 'huge'"),
        ({"overrides": ["data=else"]}, "data=else: `mmcot paper` says this itself"),
        ({"network": "paper", "overrides": ["start.max_steps=2"]}, "start.*small"),
        ({"overrides": ["learning_rat=1"]}, "learning_rat"),
        ({"overrides": ["test_split=null"]}, "test_split=null: published figures are compared"),
    ],
)
def test_what_the_user_has_to_mend_is_said(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        make_plan("all", "embedded", tmp_path, **arguments)


def test_wrong_key_of_a_backbone_is_said_before_a_row_trains(tmp_path):
    plan = make_plan("ablations", SOURCE, tmp_path, rows=["base"], overrides=[*TINY, "vision.hidden_sise=3"])
    with pytest.raises(UserError, match="hidden_sise"):
        tables.check_rows(plan)


def test_tables_and_rows():
    assert tables_of("all") == ("table2", "table3", "ablations") and tables_of("table2") == ("table2",)
    assert rows_of(("table3", "ablations"), "v5")[:4] == ("text-only", "captions-only", "base", "one-stage-qcm-a")


def test_the_docs_are_written_from_the_published_figures():
    """`python -c "from mmcot.training.paper.markdown import write_published; write_published()"` writes them."""
    from pathlib import Path

    from mmcot.training.paper.markdown import published_tables

    page = (Path(__file__).parents[3] / "docs" / "protocols.md").read_text(encoding="utf-8")
    between = page.partition("<!-- published:begin -->\n")[2].partition("\n<!-- published:end -->")[0]
    assert between == published_tables()
    assert "| two stages, text alone | `text-only` | 91.76 → 70.53 | not stated | 90.73 → 78.57 | generated |" in page


def test_the_page_of_what_was_measured_is_written_from_its_result_file():
    from pathlib import Path

    from mmcot.training.paper.markdown import MEASURED, measured_tables

    root = Path(__file__).parents[3]
    content = json.loads((root / MEASURED).read_text(encoding="utf-8"))
    page = (root / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert page.partition("<!-- measured:begin -->\n")[2].partition("\n<!-- measured:end -->")[0] == measured_tables(
        content
    )
    # what the page's text says of the figures
    found = {row: content["rows"][row]["accuracy"]["Avg"] for row in content["rows"]}
    assert (
        content["finished"]
        and found["base"] - found["text-only"] > 20
        and found["base"] - found["one-stage-qcm-a"] > 20
    )
    assert abs(found["captions-only"] - found["text-only"]) < 3 and found["large"] < found["base"]
    assert found["text-one-stage-qcm-lea"] >= found["text-one-stage-qcm-a"]
