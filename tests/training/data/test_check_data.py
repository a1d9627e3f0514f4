"""`check_data`: what it finds, what it lets pass, what it says."""

import re

import pytest
from record_files import json_lines, picture, problem

from mmcot.processing import MMCoTProcessor
from mmcot.training import check_data, load_problems
from mmcot.training.common import MissingFileError
from mmcot.training.data.check.guessing import guessing_baselines
from mmcot.training.data.check.html_page import write_check_page
from mmcot.training.data.check.lengths import check_lengths
from mmcot.training.data.check.text import format_check


@pytest.fixture
def processor(tiny_tokenizer):
    return MMCoTProcessor(tokenizer=tiny_tokenizer, max_source_length=100)


def numbered(count: int, **changes) -> list[dict]:
    return [
        problem(id=f"q{i}", question=f"Which of number {i}?", split="train" if i % 3 else "test", solution="So it is.")
        | changes
        for i in range(count)
    ]


def test_sound_data_has_no_fault_and_its_facts_are_right(tmp_path, processor):
    picture(tmp_path / "a.png")
    records = numbered(9)
    records[1]["image"] = "a.png"
    records[2]["answer"] = 0
    found = check_data(json_lines(tmp_path / "q.jsonl", *records), processor=processor)
    assert found["faults"] == [] and found["splits"] == {"train": 6, "test": 3} and not found["made_splits"]
    assert found["images"]["with"] == {"train": 1, "test": 0}
    assert found["images"]["widths"]["max"] == 5 and found["images"]["heights"]["max"] == 4
    assert found["rationales"]["train"] == {"solution": 100.0, "lecture": 0.0, "words": 3.0}
    assert {letter: place["n"] for letter, place in found["options"]["answers"].items()} == {"A": 1, "B": 8}
    assert found["guessing"]["chance"] == 50 and found["guessing"]["letter"] == 100
    assert found["duplicates"]["equal"] == {} and found["duplicates"]["contradicting"] == []


def test_columns_are_told_with_what_they_were_taken_for(tmp_path):
    record = {"question": "Q?", "options": ["x", "y"], "answer": "A", "img": "", "soltuion": "?", "note": 1, "b": None}
    found = check_data(json_lines(tmp_path / "q.jsonl", *[record] * 4), columns={"topic": "note"})
    taken = {column["key"]: (column["field"], column["how"]) for column in found["columns"]}
    assert taken["question"] == ("question", "ours") and taken["options"] == ("choices", "alias")
    assert taken["img"] == ("images", "guessed") and taken["note"] == ("topic", "mapped")
    assert taken["soltuion"] == (None, "not read")
    assert next(column for column in found["columns"] if column["key"] == "soltuion")["nearest"] == "solution"
    assert next(column for column in found["columns"] if column["key"] == "b")["filled"] == 0
    assert "did you mean solution?" in format_check(found)


def test_suggested_fields_are_alike_and_not_filled_by_another_key(tmp_path, caplog):
    record = {"Frage": "Q?", "Optionen": "x | y", "Antwort": "A", "Bild": "a.png"}
    found = check_data(json_lines(tmp_path / "q.jsonl", *[record] * 4))
    near = {column["key"]: column["nearest"] for column in found["columns"]}
    assert near == {"Frage": None, "Optionen": "options", "Antwort": None, "Bild": None}
    source = json_lines(tmp_path / "p.jsonl", *[problem(image=None, images_=3, optoins=2)] * 4)
    found = check_data(source, columns={"image": "photo"})
    assert {column["nearest"] for column in found["columns"]} == {None}
    load_problems(source)
    assert "'optoins' (4 records)" in caplog.text and "'images_' (4 records)" in caplog.text


def test_broken_and_missing_pictures_are_faults_and_the_rest_is_told_all_the_same(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    records = numbered(6)
    records[1]["image"], records[2]["image"] = "broken.png", "a.png"
    source = json_lines(tmp_path / "q.jsonl", *records)
    found = check_data(source)
    assert len(found["faults"]) == 1 and "q1" in found["faults"][0] and "broken.png" in found["faults"][0]
    records[4]["image"] = "gone.png"
    found = check_data(json_lines(source, *records))
    assert len(found["faults"]) == 1 and "gone.png" in found["faults"][0] and found["splits"]["train"] == 4


def test_bad_records_are_the_fault_and_columns_are_shown(tmp_path):
    found = check_data(json_lines(tmp_path / "q.jsonl", problem(), problem(answer=7), problem(choices=["one"])))
    assert "line 2" in found["faults"][0] and "line 3" in found["faults"][0]
    assert [column["key"] for column in found["columns"]] == ["question", "choices", "answer"]
    assert "to mend (1)" in format_check(found)


def test_no_training_questions_and_no_answers(tmp_path):
    found = check_data(json_lines(tmp_path / "q.jsonl", problem(split="test"), problem(split="dev")))
    assert "no question to train on" in found["faults"][0]
    found = check_data(json_lines(tmp_path / "r.jsonl", *numbered(6, answer=None)))
    assert "4 training questions have no answer" in " ".join(found["faults"])


def test_what_the_limit_cuts_is_counted_where_it_is_cut(tmp_path, processor):
    records = numbered(8)
    records[1]["context"] = "one two three " * 60  # of the context in both stages
    records[2]["solution"] = "It is this one here. " * 30  # of the rationale in the answer stage
    found = check_data(json_lines(tmp_path / "q.jsonl", *records), processor=processor, max_target_length=50)
    lengths = found["lengths"]
    assert lengths["rationale"]["cut"] == {"context": 1} and lengths["rationale"]["cut_ids"] == ["q1"]
    assert lengths["answer"]["cut"] == {"context": 1, "rationale": 1}
    assert lengths["rationale"]["target_cut"] == 1 and lengths["rationale"]["source"]["max"] > 100
    records[4]["question"] = "Which of these words here? " * 40
    found = check_data(json_lines(tmp_path / "q.jsonl", *records), processor=processor)
    assert any("q4" in fault and "max_source_length" in fault for fault in found["faults"])


def test_characters_that_the_tokenizer_lacks(shared_dir, tmp_path):
    from mmcot.training import tokenizer_from_file

    processor = MMCoTProcessor(tokenizer=tokenizer_from_file(shared_dir / "data" / "t5_tokenizer.json"))
    records = numbered(6, question="What is {x}\n in {y}?")
    found = check_data(json_lines(tmp_path / "q.jsonl", *records), processor=processor)
    assert found["unknown_characters"] == {"{": 12, "}": 12}


def test_guessing_rules_that_need_no_question_are_found(tmp_path):
    records = [
        problem(id=f"q{i}", question=f"Which {i}?", choices=["no", "a long one"], split=("train", "test")[i % 2])
        for i in range(120)
    ]
    found = check_data(json_lines(tmp_path / "q.jsonl", *records))
    assert found["guessing"]["longest"] == found["guessing"]["frequent"] == found["guessing"]["letter"] == 100
    assert found["options"]["p_value"] < 1e-6
    told = " ".join(found["warnings"])
    assert "longest option" in told and "stand at (B)" in told


def test_questions_of_test_that_occur_in_train(tmp_path):
    words = "the quick brown fox jumps over the lazy dog while seven old owls watch from a tall tree in the park"
    for name, color in (("a", "red"), ("b", "red"), ("c", "blue")):
        picture(tmp_path / f"{name}.png", color)
    records = [
        problem(id="1", split="train", question="Who is it, then?", choices=["Ann", "Bob"]),
        problem(id="2", split="test", question="who is it then", choices=["Bob", "Ann"], answer=0),  # the same
        problem(id="3", split="train", question=f"Who sees that {words}?"),
        problem(id="4", split="test", question=f"Who saw that {words}?"),  # nearly
        problem(id="5", split="train", question="What is shown?", image="a.png"),
        problem(id="6", split="test", question="What is shown?", image="b.png", answer=0),  # same picture, other file
        problem(id="7", split="test", question="What is shown?", image="c.png"),  # another picture
    ]
    found = check_data(json_lines(tmp_path / "q.jsonl", *records))["duplicates"]
    assert found["equal"] == {"test": [("2", "1"), ("6", "5")]}
    assert found["near"] == {"test": [("4", "3")]}
    assert found["contradicting"] == [("6", "5")]  # 2 has its options in another order, and the same answer


def test_made_splits_are_said_and_a_missing_source_is_an_error(tmp_path):
    records = [problem(question=f"Which {i}?") for i in range(40)]
    found = check_data(json_lines(tmp_path / "q.jsonl", *records))
    assert found["made_splits"] and sum(found["splits"].values()) == 40
    assert "made: the source names none" in format_check(found)
    with pytest.raises(MissingFileError):
        check_data(tmp_path / "none.jsonl")


def test_the_page_holds_everything_and_needs_nothing(tmp_path, processor):
    picture(tmp_path / "a.png")
    records = numbered(6, question="Is <b>this</b> & that?", image="a.png")
    found = check_data(json_lines(tmp_path / "q.jsonl", *records), processor=processor)
    text = write_check_page(found, tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;this&lt;/b&gt; &amp; that?" in text and "<b>this" not in text
    assert 'src="data:image/png;base64,' in text and not re.search(r'(src|href)="(?!data:)', text)
    assert "<script" not in text and "Samples as the model will see them" in text


def test_samples_are_what_the_model_reads(tmp_path, processor):
    found = check_data(json_lines(tmp_path / "q.jsonl", *numbered(6)), processor=processor, samples=2)
    sample = found["samples"][0]
    assert sample["stages"]["rationale"]["source"].startswith("Question: Which of number 1?")
    assert sample["stages"]["rationale"]["target"].startswith("Solution: So it is.")
    assert "Solution: So it is." in sample["stages"]["answer"]["source"]
    assert sample["stages"]["answer"]["target"].startswith("The answer is (B).")
    assert "as the model will see it" in format_check(found)


def test_what_guessing_gives_where_options_tie():
    """Of two longest options the rule takes either: half a point."""
    rows = {"choices": [["one", "two", "x"], ["a", "long one"]], "answer": [1, 1]}
    found = guessing_baselines({"train": rows, "test": rows})
    assert found["longest"] == 75 and found["chance"] == round(100 * (1 / 3 + 1 / 2) / 2, 2)
    assert found["letter"] == found["frequent"] == 100 and found["letter_used"] == "B"


def test_only_stages_whose_lengths_are_known_are_tokenised_again(tmp_path, processor):
    problems = load_problems(json_lines(tmp_path / "q.jsonl", *numbered(4)), "train")
    known = {("train", "answer"): [processor.max_source_length] * len(problems)}
    assert list(check_lengths({"train": problems}, processor, known=known)) == ["answer"]
    assert list(check_lengths({"train": problems}, processor)) == ["rationale", "answer"]


def test_lengths_of_many_questions_show_how_far_they_are(tmp_path, processor, monkeypatch, capsys):
    from mmcot.training.data.check import lengths

    problems = load_problems(json_lines(tmp_path / "q.jsonl", *numbered(4)), "train")
    capsys.readouterr()
    check_lengths({"train": problems}, processor)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(lengths, "LONG", 2)
    check_lengths({"train": problems}, processor)
    assert "rationale lengths: 100%" in capsys.readouterr().err


def test_what_just_fits_is_not_cut(tmp_path, processor):
    problems = load_problems(json_lines(tmp_path / "q.jsonl", *numbered(4)), "train")
    longest = {stage: found["target"]["max"] for stage, found in check_lengths({"train": problems}, processor).items()}
    for limit, cut in ((longest["rationale"], 0), (longest["rationale"] - 1, len(problems))):
        found = check_lengths({"train": problems}, processor, max_target_length=limit)
        assert found["rationale"]["target_cut"] == cut
