"""Probes: what is changed, what is counted, and that an unchanged question gives an unchanged answer."""

import json

import pytest

from mmcot.training.cli import main
from mmcot.training.common import UserError
from mmcot.training.data.problems import load_problems
from mmcot.training.inference import probe as probes
from mmcot.training.inference.probe import edited, new_order, other_pictures, probe, truncated

SOURCE = "embedded:n=12,skills=flower+tense"


@pytest.fixture(scope="module")
def found(two_stage_repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probes")
    command = ["probe", str(two_stage_repository), SOURCE, "--split", "test", "--output", str(folder)]
    assert main([*command, "--batch-size", "4", "--device", "cpu", "--quiet"]) == 0
    return folder


@pytest.mark.parametrize(
    "rationale, chosen, other, expected",
    [
        (
            "The petals are red. So, it has red petals.",
            "red petals",
            "blue petals",
            "The petals are blue. So, it has blue petals.",
        ),
        ("Red is reddish.", "red", "blue", "blue is reddish."),
        ("It is in the past tense.", "past tense", "present tense", "It is in the present tense."),
        ("So, heat flows up.", "up", "to the left", "So, heat flows to the left."),
        ("It is a cat.", "dog", "cow", None),
        ("Worth $5 (net).", "$5 (net)", r"\1", r"Worth \1."),
    ],
)
def test_an_edited_rationale_names_the_other_option(rationale, chosen, other, expected):
    assert edited(rationale, chosen, other) == expected


def test_what_is_changed():
    assert [truncated("a b c d", kept) for kept in (0, 25, 50, 75, 100)] == ["", "a", "a b", "a b c", "a b c d"]
    records = [{"id": str(i), "images": [i], "choices": list("abcd"[: 2 + i % 3])} for i in range(7)]
    swapped = other_pictures(records, seed=3)
    assert all(new["images"] != old["images"] for new, old in zip(swapped, records, strict=True))
    assert sorted(new["images"][0] for new in swapped) == list(range(7)) and swapped == other_pictures(records, seed=3)
    for record in records:
        order = new_order(record, seed=0)
        assert sorted(order) == list(range(len(record["choices"]))) and all(i != j for i, j in enumerate(order))


def test_all_probes_are_counted(found, capsys):
    result = json.loads((found / "probes.json").read_text())
    assert result["n"] == 12 and result["protocol"] == "generated" and list(result["probes"]) == list(probes.PROBES)
    for name, n in (("blank", 6), ("other-picture", 6), ("shuffled", 12)):  # half of them have a picture
        one = result["probes"][name]
        assert {key: row["n"] for key, row in one.items()} == dict.fromkeys(
            ("accuracy", "before", "same_answer", "same_rationale"), n
        )
        (low, high), percent = one["same_answer"]["ci95"], one["same_answer"]["percent"]
        assert low - 1e-9 <= percent <= high + 1e-9
    assert list(result["probes"]["truncated"]) == ["0", "25", "50", "75"]
    assert {"base", "blank", "other-picture", "shuffled", "truncated-50"} <= {
        path.stem for path in found.glob("*.jsonl")
    }


def test_nothing_is_asked_twice(found, two_stage_repository, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in found.glob("*.jsonl")}
    monkeypatch.setattr(probes, "answer_batches", lambda *a, **k: pytest.fail("asked again"))
    problems = load_problems(SOURCE, "test")
    result = probe(two_stage_repository, problems, found, device="cpu", source=SOURCE)
    assert result == json.loads((found / "probes.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in found.glob("*.jsonl")} == before
    with pytest.raises(UserError, match="base.jsonl: is there already, with another seed"):
        probe(two_stage_repository, problems, found, device="cpu", seed=1)
    with pytest.raises(UserError, match="base.jsonl: is there already, with another questions|no picture"):
        probe(two_stage_repository, problems.select(range(3)), found, device="cpu")


def test_the_answer_stage_reads_the_rationale_that_it_is_given(two_stage_repository, tmp_path):
    """As through the processor, which puts the whole source together from text."""
    from mmcot.answers_mmcot import score_options
    from mmcot.training.inference.predict import load_pipeline

    records = [dict(problem) for problem in load_problems(SOURCE, "test")]
    texts = {record["id"]: f"Solution: {record['solution']}" for record in records}
    pipeline = load_pipeline(two_stage_repository, "cpu")
    asking = probes._Asking(pipeline, tmp_path, 5, {}, {"seed": 0, "fingerprint": "x"})
    found = asking.answers("gold", records, texts)
    model, processor = pipeline.model, pipeline.processor
    for record in records:
        inputs = processor(record, stage="answer", rationales=texts[record["id"]])
        images = model._image_inputs(inputs["pixel_values"], None, None, inputs["image_attention_mask"])
        hidden = model.answer.get_encoder()(input_ids=inputs["input_ids"], return_dict=True, **images)[0]
        options = (model.config.option_prefix_ids, model.config.option_letter_ids)
        scores = score_options(model.answer, hidden, inputs["attention_mask"], *options)[0, : len(record["choices"])]
        expected = dict(zip("ABCDE", scores.softmax(-1).tolist(), strict=False))
        assert found[record["id"]]["scores"] == pytest.approx(expected, abs=1e-4)


def test_shuffled_options_are_told_in_the_problems_own_order(two_stage_repository, tmp_path, monkeypatch):
    """A model that always answers the first option shown names the option that stands there."""
    records = [dict(problem) for problem in load_problems(SOURCE, "test").select(range(4))]

    def first_shown(pipeline, batches, *args, **kwargs):
        for batch in batches:
            for record in batch:
                scores = {chr(65 + i): 0.9 if i == 0 else 0.1 for i in range(len(record["choices"]))}
                generated = {"rationale": record["choices"][0], "answer": None}
                yield (
                    record["id"],
                    {"answer": "A", "rationale": record["choices"][0], "scores": scores, "generated": generated},
                )

    monkeypatch.setattr(probes, "answer_batches", first_shown)
    found = probes._Asking(None, tmp_path, 2, {}, {"seed": 0, "fingerprint": "x"}).shuffled("shuffled", records, 0)
    for record in records:
        answered = found[record["id"]]
        assert record["choices"][answered["answer"]] == answered["rationale"]
        assert max(answered["scores"], key=answered["scores"].get) == chr(65 + answered["answer"])


def test_what_the_user_has_to_mend(two_stage_repository, tmp_path, capsys):
    command = ["probe", str(two_stage_repository), SOURCE, "--output", str(tmp_path), "--probes", "nonsense"]
    assert main(command) == 2
    assert "no probe 'nonsense': choose from blank, other-picture" in capsys.readouterr().err


def test_answers_of_other_options_are_not_taken(two_stage_repository, tmp_path, capsys):
    command = ["probe", str(two_stage_repository), "embedded:n=2", "--split", "test", "--device", "cpu"]
    command += ["--output", str(tmp_path), "--probes", "blank", "--max-new-tokens"]
    assert main([*command, "4"]) == 0
    assert main([*command, "3"]) == 2
    assert "base.jsonl: is there already, with another decoding" in capsys.readouterr().err
