"""`mmcot report`: what the page and its figures say, of hand-made runs with known answers."""

import json
import re

import pytest
from PIL import Image

from mmcot.training.cli import main
from mmcot.training.common import MissingFileError, UserError
from mmcot.training.evaluation.runs import holm
from mmcot.training.report.build import write_report
from mmcot.training.report.figures import report_figures
from mmcot.training.report.page_tables import comparison_table
from mmcot.training.report.runs import differences, open_run, open_runs

SKILLS = ("maps", "rocks")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Twenty questions; those with an even number have a picture."""
    folder = tmp_path_factory.mktemp("questions")
    Image.new("RGB", (30, 20), "red").save(folder / "a.png")
    records = [
        {"id": f"q{i}", "question": f"Which is number <{i}>?", "choices": ["this", "that", "those"], "answer": i % 3}
        | {"solution": f"It is number {i} of all.", "skill": SKILLS[i % 2], "grade": f"grade{2 + i % 3}"}
        | {"subject": "natural science", "context": "", "image": None if i % 2 else "a.png", "split": "test"}
        for i in range(20)
    ]
    file = folder / "my.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def predictions(path, right, confidence=0.8, rationale="It is number {i} of all.", **header):
    """Right where `right(i)` says so, else the next letter; scores with the given confidence."""
    facts = {
        "method": "multimodal-cot",
        "split": "test",
        "protocol": "generated",
        "rationale_format": "QCM-E",
        **header,
    }
    lines = [{"header": {name: value for name, value in facts.items() if value is not None}}]
    for i in range(20):
        answer = i % 3 if right(i) else (i + 1) % 3
        scores = {letter: (1 - confidence) / 2 for letter in "ABC"} | {"ABC"[answer]: confidence}
        text = rationale.format(i=i)
        lines.append({"id": f"q{i}", "answer": answer, "rationale": text, "scores": scores})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run_folder(folder, right, steps=4, **settings):
    """As `mmcot train` leaves one."""
    predictions(folder / "answer" / "predictions_test.jsonl", right, source=str(settings.pop("source", "")) or None)
    for stage in ("rationale", "answer"):
        (folder / stage).mkdir(parents=True, exist_ok=True)
        metric = {"rationale": "eval_rougeL", "answer": "eval_accuracy"}[stage]
        history = [{"step": 10 * i, "loss": 1 / i} for i in range(1, steps)]
        history += [{"step": 10 * i, "eval_loss": 1.1 / i, metric: 20.0 * i} for i in range(1, steps)]
        content = {
            "finished": True,
            "settings": {"stage": stage, "seed": 1, **settings},
            "seconds": 5,
            "history": history,
        }
        (folder / stage / "manifest.json").write_text(json.dumps(content))
    return folder


def figures_of(source, *files, **options):
    return report_figures(open_runs([str(file) for file in files]), source=source, **options)[0]


def test_every_figure_is_what_was_put_in(source, tmp_path):
    file = predictions(tmp_path / "mine.jsonl", right=lambda i: i % 2 == 0)
    found = figures_of(source, file)["runs"]["mine"]
    assert found["result"]["accuracy"]["Avg"] == 50 and found["result"]["accuracy"]["IMG"] == 100
    assert found["by"]["skill"]["maps"] == {"n": 10, "accuracy": 100.0, "ci95": pytest.approx([72.2, 100], abs=0.1)}
    assert found["by"]["skill"]["rocks"]["accuracy"] == 0
    assert list(found["by"]["grade"]) == ["grade 2", "grade 3", "grade 4"]
    assert found["by"]["context"]["image"]["accuracy"] == 100 and found["by"]["context"]["neither"]["accuracy"] == 0
    calibration = found["calibration"]
    assert calibration["n"] == 20 and calibration["ece"] == pytest.approx(30) and len(calibration["bins"]) == 1
    assert calibration["brier"] == pytest.approx((0.06 + (0.64 + 0.81 + 0.01)) / 2)
    confusion = found["confusion"]
    assert [sum(row) for row in confusion["counts"]] == [7, 7, 6] and confusion["counts"][0][0] == 4
    assert found["rationales"]["right"] == found["rationales"]["wrong"] == pytest.approx(100)


def test_rationale_quality_against_correctness(source, tmp_path):
    file = predictions(tmp_path / "a.jsonl", right=lambda i: True, rationale="nothing alike")
    found = figures_of(source, file)["runs"]["a"]["rationales"]
    assert len(found["right_but_poor"]) == 20 and found["wrong"] is None and found["exact"] == 0
    assert figures_of(source, file)["chance"] == pytest.approx(100 / 3)


def test_two_runs_are_tested_on_the_same_questions_and_their_settings_compared(source, tmp_path):
    one = run_folder(tmp_path / "one", lambda i: i < 15, learning_rate=1e-3, source=source)
    other = run_folder(tmp_path / "other", lambda i: i < 5, learning_rate=1e-4, source=source)
    found = figures_of(None, one, other)
    test = found["tests"]["other"]
    assert test["columns"]["Avg"]["difference"] == -50 and test["columns"]["Avg"]["p_value"] == pytest.approx(
        2 / 2**10
    )
    assert ("answer: learning_rate", "0.001", "0.0001") in test["settings"]
    assert not any("seed" in row[0] for row in test["settings"])
    assert {item["id"] for item in found["differing"]} == {f"q{i}" for i in range(5, 15)}


def test_a_run_that_asked_without_pictures_is_reported_with_that(source, tmp_path):
    folder = run_folder(tmp_path / "run", right=lambda i: True)
    blank = predictions(folder / "answer" / "predictions_test_blank.jsonl", right=lambda i: i % 4 == 0)
    lines = blank.read_text().splitlines()
    shown = [json.loads(line) for line in lines]
    shown = [one for one in shown if "header" in one or int(one["id"][1:]) % 2 == 0]  # those with a picture alone
    blank.write_text("".join(json.dumps(one) + "\n" for one in shown))
    column = figures_of(source, folder)["probes"]["blank"]["columns"]["IMG"]
    assert (column["n"], column["accuracy_a"], column["accuracy_b"]) == (10, 100, 50)
    assert not figures_of(source, folder / "answer" / "predictions_test_blank.jsonl", partial=True)["probes"]


def test_charts_are_refused_before_questions_are_read_and_a_wrong_path_before_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert main(["report", str(tmp_path / "nowhere"), "--output", str(tmp_path / "r.html")]) == 2
    assert "nowhere: there is no such run" in capsys.readouterr().err
    file = predictions(tmp_path / "a.jsonl", right=lambda i: True, source="nowhere.jsonl")
    assert main(["report", str(file), "--output", str(tmp_path / "r.html")]) == 2
    assert "pip install 'mmcot[report]'" in capsys.readouterr().err


def test_print_and_phone_lose_nothing_of_a_wide_table():
    from mmcot.training.pages import STYLE

    printed = STYLE[STYLE.index("@media print") :]
    assert ".wide { overflow: visible; }" in printed and "td.number { white-space: normal; }" in printed


def test_probes_are_compared_with_the_first_run(source, tmp_path):
    seen = predictions(tmp_path / "seen.jsonl", right=lambda i: True)
    blank = predictions(tmp_path / "blank.jsonl", right=lambda i: i % 2 == 1, images="blank")
    found = figures_of(source, seen, probes={"blank": blank})
    assert found["probes"]["blank"]["columns"]["IMG"]["difference"] == -100
    assert found["probes"]["blank"]["columns"]["NO"]["difference"] == 0


def test_page_and_markdown_hold_everything_and_need_nothing(source, tmp_path):
    pytest.importorskip("matplotlib", reason="charts need matplotlib: pip install 'mmcot[report]'")
    one = run_folder(tmp_path / "one", lambda i: i < 15, source=source)
    other = run_folder(tmp_path / "other", lambda i: i < 5, source=source, seed=2)
    blank = predictions(tmp_path / "blank.jsonl", right=lambda i: i % 2 == 1)
    page, json_file = tmp_path / "out" / "report.html", tmp_path / "figures.json"
    command = ["report", str(one), f"text={other}", "--probe", f"blank={blank}", "--output", str(page), "--limit", "2"]
    assert main([*command, "--json", str(json_file)]) == 0
    text, markdown = page.read_text(encoding="utf-8"), page.with_suffix(".md").read_text(encoding="utf-8")
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    expected = ["Accuracy", "text against one", "What text and one differ on", "Questions on which they differ"]
    expected += [
        "Probe: blank",
        "Accuracy by skill",
        "Accuracy by grade",
        "Accuracy by what comes with it",
        "Rationales",
    ]
    expected += ["Do the scores mean what they say?", "Letters", "Learning curves", "Gallery"]
    assert titles == expected and re.findall(r"^## (.*)", markdown, re.M) == expected[:-1]
    assert text.count("<svg") == 9 and text.count('class="card"') == 4 and text.count("data:image/png;base64") == 2
    assert not re.search(r'(src|href)="(?!data:|#)', text) and "<script" not in text
    assert "&lt;0&gt;" in text or "&lt;" in text and "number <" not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)), "charts share ids"
    assert "| 75.00 ±" in markdown and "-50.00 points" in markdown and "`generated`" in markdown
    assert str(tmp_path) not in text + markdown
    assert json.loads(json_file.read_text())["runs"]["one"]["result"]["accuracy"]["Avg"] == 75


def test_markdown_holds_no_html_of_strangers(tmp_path):
    questions = [
        {"id": f"<b>{i}", "question": f"<script>{i}</script>?", "choices": ["a", "b"], "answer": 0, "split": "test"}
        for i in range(4)
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions))
    for name, answer in (("a", 0), ("b", 1)):
        lines = [{"id": one["id"], "answer": answer} for one in questions]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    write_report(files, tmp_path / "r.md", source=tmp_path / "q.jsonl", split="test", protocol="generated")
    text = (tmp_path / "r.md").read_text()
    assert "&lt;script>" in text and "<" not in text.replace("&lt;", "")


def test_markdown_alone_needs_no_matplotlib(source, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    file = predictions(tmp_path / "a.jsonl", right=lambda i: True, source=str(source))
    assert write_report([file], tmp_path / "a.md") == [tmp_path / "a.md"]
    with pytest.raises(UserError, match="matplotlib"):
        write_report([file], tmp_path / "a.html")


def test_the_models_attention_is_shown(two_stage_repository, tmp_path):
    pytest.importorskip("matplotlib", reason="charts need matplotlib: pip install 'mmcot[report]'")
    source, file = "embedded:n=6,skills=flag", tmp_path / "predictions.jsonl"
    predict = [
        "predict",
        str(two_stage_repository),
        source,
        "--split",
        "test",
        "--output",
        str(file),
        "--device",
        "cpu",
    ]
    assert main(predict) == 0
    page = tmp_path / "report.html"
    report = ["report", str(file), "--model", str(two_stage_repository), "--device", "cpu", "--limit", "1"]
    assert main([*report, "--output", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    cards = text.count('class="card"')
    assert cards and text.count("bright where it looks") == cards and "not a proof" in text
    assert "answers otherwise" not in text
    assert main([*report[:2], "--model", "none", "--limit", "1", "--output", str(page)]) == 0
    assert "bright where it looks" not in page.read_text(encoding="utf-8")


def test_what_is_no_run_is_said(tmp_path, source, capsys):
    with pytest.raises(MissingFileError, match="no such run"):
        open_run(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="no finished run"):
        open_run(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(MissingFileError, match="a repository: give the run's folder above it"):
        open_run(tmp_path / "empty")
    untested = run_folder(tmp_path / "untested", lambda i: True)
    (untested / "answer" / "predictions_test.jsonl").unlink()
    with pytest.raises(MissingFileError, match="not finished: run the same"):
        open_run(untested)
    (untested / "hub").mkdir()
    (untested / "hub" / "config.json").write_text("{}")
    with pytest.raises(MissingFileError, match=r"without questions to answer: `mmcot predict .*untested/hub SOURCE"):
        open_run(untested)
    file = predictions(tmp_path / "a.jsonl", right=lambda i: True)
    assert main(["report", str(file), "--output", str(tmp_path / "r.md")]) == 2
    assert "add --problems SOURCE" in capsys.readouterr().err
    assert main(["report", str(file), "--output", str(tmp_path / "r.txt")]) == 2
    assert main(["report", str(file), "--probe", "x", "--output", str(tmp_path / "r.md")]) == 2


def test_runs_have_different_names_and_two_protocols_are_not_compared(source, tmp_path):
    one = predictions(tmp_path / "one" / "p.jsonl", right=lambda i: True)
    other = predictions(tmp_path / "other" / "p.jsonl", right=lambda i: True, protocol="teacher_forced")
    assert [run.name for run in open_runs([str(one), str(other)])] == ["p", "other/p"]
    with pytest.raises(UserError, match="already"):
        open_runs([f"a={one}", f"a={other}"])
    with pytest.raises(UserError, match="two protocols"):
        figures_of(source, one, other)


def test_where_data_differ_their_content_is_not_spelled_out(tmp_path):
    one = run_folder(tmp_path / "one", lambda i: True, data="content 12")
    other = run_folder(tmp_path / "other", lambda i: True, data="content 34")
    found = differences(open_run(one), open_run(other))
    assert ("answer: data", "one content", "another") in found


def test_one_answer_is_drawn_small_and_as_valid_svg(two_stage_repository, tmp_path):
    import xml.dom.minidom

    file = tmp_path / "answer.svg"
    command = ["report", str(two_stage_repository), "embedded:n=6,skills=flag", "--split", "test", "--device", "cpu"]
    assert main([*command, "--output", str(file)]) == 0
    drawn = xml.dom.minidom.parse(str(file))
    assert len(drawn.getElementsByTagName("image")) == 2 and file.stat().st_size < 60_000
    texts = " ".join(node.firstChild.data for node in drawn.getElementsByTagName("text") if node.firstChild)
    assert "where it looks" in texts and "(A)" in texts and "Answer" in texts


def test_the_tables_first_run_is_the_first(source, tmp_path):
    good = predictions(tmp_path / "good.jsonl", right=lambda i: i < 15)
    poor = predictions(tmp_path / "poor.jsonl", right=lambda i: i < 10)
    columns = figures_of(source, good, poor)["tests"]["poor"]["columns"]
    head, rows = comparison_table({"Avg": columns["Avg"]})
    row = dict(zip(head, rows[0], strict=True))
    assert (row["first %"], row["other %"], row["difference"]) == ("75.00", "50.00", "-25.00")
    assert (row["only first"], row["only other"]) == ("5", "0")


def test_several_runs_are_tested_with_holms_correction_and_told_apart_where_they_are_most_divided(source, tmp_path):
    files = [predictions(tmp_path / f"r{k}.jsonl", right=lambda i, k=k: i not in range(2 * k)) for k in range(5)]
    found = figures_of(source, *files)
    p_values = [test["columns"]["Avg"]["p_value"] for test in found["tests"].values()]
    adjusted = [test["p_holm"] for test in found["tests"].values()]
    assert adjusted == holm(p_values) and adjusted[-1] == pytest.approx(4 * p_values[-1])  # the smallest
    right = [sum(answer == item["answer"] for answer in item["answers"].values()) for item in found["differing"]]
    assert sorted(right[:4]) == [2, 2, 3, 3] and sorted(right[4:]) == [1, 1, 4, 4]
