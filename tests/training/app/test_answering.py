"""One question to a pipeline, without a browser."""

import json
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mmcot.training.app.answering import AskError, answer_stream, options_of, problem_of
from mmcot.training.app.browsing import ANY, Collection
from mmcot.training.app.opening import find_shown, open_app
from mmcot.training.app.page import read_examples
from mmcot.training.app.rendering import packed, result_html
from mmcot.training.common import UserError
from mmcot.training.inference.predict import load_pipeline


@pytest.fixture(scope="module")
def pipeline(two_stage_repository):
    return load_pipeline(two_stage_repository, device="cpu")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.effect_noise((64, 48), 90).convert("RGB").save(path)
    return path


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("red\n\n blue \n", ["red", "blue"]),
        ("(A) red\n(B) blue", ["red", "blue"]),
        ("a) red\nB. blue\nC: green", ["red", "blue", "green"]),
        ("A. Lincoln\nG. Washington", ["A. Lincoln", "G. Washington"]),
        ("B) red\nA) blue", ["B) red", "A) blue"]),
        (["A cat", "B cell"], ["A cat", "B cell"]),
    ],
)
def test_letters_that_are_typed_before_options_are_not_doubled(text, options):
    assert options_of(text) == options


@pytest.mark.parametrize(
    ("question", "options", "told"),
    [(" ", "a\nb", "Write a question"), ("What?", "a", "there is 1"), ("What?", "\n".join("x" * 27), "at most 26")],
)
def test_what_is_missing_is_said_in_a_sentence(question, options, told):
    with pytest.raises(AskError, match=told):
        problem_of(None, question, options)


def test_the_answer_is_the_pipelines_and_the_rationale_grows(pipeline, picture):
    problem = problem_of(str(picture), "What is it?", "(A) red\n(B) blue", "A box.")
    *partial, answered, last = answer_stream(pipeline, problem)
    expected = pipeline(
        {"question": "What is it?", "choices": ["red", "blue"], "context": "A box.", "image": str(picture)}
    )
    assert "AB"[last["answer"]] == expected["answer"] and last["rationale"] == expected["rationale"]
    assert last["scores"] == pytest.approx(list(expected["scores"].values()), abs=1e-4)
    assert partial and all(not state["done"] for state in partial)
    assert last["rationale"].startswith(partial[0]["rationale"][:5]) or len(partial[0]["rationale"]) < 5
    blind = pipeline({"question": "What is it?", "choices": ["red", "blue"], "context": "A box.", "image": None})
    assert answered["blind"] is None and "AB"[last["blind"]["answer"]] == blind["answer"]


def test_a_model_without_eyes_is_not_asked_again(tiny_tokenizer, tmp_path, picture, monkeypatch):
    from two_stage_models import make_stage

    from mmcot import MMCoTModel, MMCoTPipeline, MMCoTProcessor

    processor = MMCoTProcessor(None, tiny_tokenizer, max_source_length=200)
    stages = (make_stage(processor, seed, vision_config=None) for seed in (0, 1))
    model = MMCoTModel.from_stages(*stages, processor)
    model.save_pretrained(tmp_path / "text-only")
    pipeline, asked = load_pipeline(tmp_path / "text-only", device="cpu"), []
    call = MMCoTPipeline.__call__
    monkeypatch.setattr(
        MMCoTPipeline, "__call__", lambda self, *args, **kw: asked.append(1) or call(self, *args, **kw)
    )
    *_, last = answer_stream(pipeline, problem_of(str(picture), "What is it?", "red\nblue"))
    assert len(asked) == 1 and last["blind"] is None and not last["sees"]
    assert "It has no eyes" in result_html(last) and "asking without" not in result_html(last)


def test_a_model_that_was_trained_on_features_has_eyes_elsewhere(tiny_tokenizer):
    """Its backbone isn't in it: that isn't the same as one that was trained on text alone."""
    from two_stage_models import make_stage

    from mmcot import MMCoTModel, MMCoTPipeline, MMCoTProcessor
    from mmcot.training.app.answering import sees_pictures

    processor = MMCoTProcessor(None, tiny_tokenizer, max_source_length=200)
    for settings, sees in (
        ({"vision_config": None, "image_feature_size": 16}, True),
        ({"vision_config": None}, False),
    ):
        model = MMCoTModel.from_stages(*(make_stage(processor, seed, **settings) for seed in (0, 1)), processor)
        assert sees_pictures(MMCoTPipeline(model=model, processor=processor)) is sees


def test_every_word_has_its_own_attention(pipeline, picture):
    problem = problem_of(str(picture), "Which trait is it?", "red\nblue")
    *_, last = answer_stream(pipeline, problem, compare=False)
    words = dict(last["question_words"])
    assert [word for word, _ in last["question_words"]][:5] == ["Question:", "Which", "trait", "is", "it?"]
    attention = pipeline({**problem, "image": str(picture)}, return_attention=True)["attention"]["rationale"]
    side = len(words["Which"])
    assert np.shape(words["Which"]) == (side, side) and words["Which"] != words["trait"]
    tokens = pipeline.processor.tokenizer.convert_ids_to_tokens(
        pipeline.processor([{**problem, "image": None}])["input_ids"][0].tolist()
    )
    row = tokens.index("▁Which")
    leading = attention.shape[1] - side * side
    assert np.allclose(np.ravel(words["Which"]), attention[row][leading:], atol=1e-6)
    assert len(last["rationale_words"]) > 0 and any(grid for _, grid in last["rationale_words"])


def test_sampling_beams_and_free_decoding_answer_too(pipeline):
    problem = problem_of(None, "What is it?", "red\nblue")
    *_, last = answer_stream(pipeline, problem, samples=3, temperature=1.5)
    assert sum(last["votes"].values()) == 3 and last["blind"] is None
    *_, last = answer_stream(pipeline, problem, num_beams=2, max_new_tokens=4, decode=True)
    assert last["done"] and (last["answer"] is None or last["answer"] in (0, 1))
    assert "could be read" in result_html({**last, "answer": None})


def test_a_broken_and_a_missing_picture_are_sentences(pipeline, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    for path in (broken, tmp_path / "gone.png"):
        with pytest.raises(AskError, match="This picture can't be read") as error:
            list(answer_stream(pipeline, problem_of(str(path), "What?", "a\nb")))
        assert "\n" not in str(error.value) and str(tmp_path) not in str(error.value)


def test_what_the_reader_can_do_about_a_text_is_said_in_its_own_words(pipeline):
    with pytest.raises(AskError, match="^Question and options alone take .* room for .*: shorten them$"):
        list(answer_stream(pipeline, problem_of(None, "word " * 3000, "a\nb")))


def test_html_is_escaped_and_holds_a_bar_for_each_option(pipeline, picture):
    problem = problem_of(str(picture), "Is <b>it</b>?", "<i>red</i>\nblue\ngreen")
    *_, last = answer_stream(pipeline, problem)
    page = result_html(last)
    assert "<b>it" not in page and "&lt;i&gt;red&lt;/i&gt;" in page
    assert page.count('class="mm-track"') == 6  # with the picture and without
    assert page.count('role="button"') == sum(grid is not None for _, grid in last["question_words"]) + sum(
        grid is not None for _, grid in last["rationale_words"]
    )
    assert packed([[0, 1], [0.5, 0.25]]) == "2:00ff8040"


def test_a_data_set_is_filtered_and_shown(two_stage_repository, tmp_path):
    from mmcot.training.data.problems import load_problems

    problems = load_problems("embedded:n=30,seed=5", "test")
    right = {
        problem["id"]: {"answer": problem["answer"], "rationale": "So <it> is.", "scores": None}
        for problem in problems
    }
    wrong = {id_: {"answer": None, "rationale": ""} for id_ in right}
    both = Collection(problems, {"ours": right, "theirs": wrong})
    assert len(both.find(ANY, ANY, ANY, ANY, "")) == 30
    assert (
        len(both.find(ANY, ANY, ANY, "ours: right", "")) == 30 == len(both.find(ANY, ANY, ANY, "the two differ", ""))
    )
    assert both.find(ANY, ANY, ANY, "theirs: right", "") == []
    subject = both.values("subject")[1]
    found = both.find(subject, ANY, ANY, ANY, "")
    assert 0 < len(found) < 30 and all(problems[row]["subject"] == subject for row in found)
    pictured = both.find(ANY, ANY, "picture", ANY, "")
    assert pictured and all(problems[row]["images"] for row in pictured)
    card = both.card(pictured[0])
    assert "So &lt;it&gt; is." in card and "· right" in card and "data:image/png" in card
    assert "The right answer" in card
    assert both.find(ANY, ANY, ANY, ANY, problems[3]["question"][:30])


def test_what_is_shown_of_a_folder(tmp_path, two_stage_repository):
    assert find_shown(str(two_stage_repository)).predictions == {}
    assert find_shown("user/name").model == "user/name"
    assert find_shown("user/name").note == ""
    run = tmp_path / "run"
    (run / "hub").mkdir(parents=True)
    (run / "hub" / "config.json").write_text("{}")
    (run / "answer").mkdir()
    header = {"header": {"method": "multimodal-cot", "source": "my.jsonl", "split": "test"}}
    (run / "answer" / "predictions_test.jsonl").write_text(json.dumps(header) + "\n")
    for place in (run, run / "hub"):
        shown = find_shown(str(place))
        assert (
            shown.model == str(run / "hub")
            and shown.source == "my.jsonl"
            and list(shown.predictions) == ["this model"]
        )
    with pytest.raises(UserError, match="holds no model"):
        find_shown(str(tmp_path))


def test_a_run_whose_questions_moved_is_shown_without_them_and_says_so(two_stage_repository, tmp_path, caplog):
    pytest.importorskip("gradio", minversion="6")
    run = tmp_path / "run"
    shutil.copytree(two_stage_repository, run / "hub")
    (run / "answer").mkdir()
    header = {"header": {"method": "multimodal-cot", "source": "gone.jsonl", "split": "test"}}
    (run / "answer" / "predictions_test.jsonl").write_text(json.dumps(header) + "\n")
    with caplog.at_level("WARNING", logger="mmcot"):
        open_app(str(run), device="cpu")
    assert [record.message for record in caplog.records if "gone.jsonl" in record.message], caplog.text


@pytest.mark.parametrize("content", ["{no json", "[1]", "{}", "3", '[{"question": 1}]', '[{"question": "What?"}]'])
def test_examples_that_are_none_are_left_out(tmp_path, content):
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "examples.json").write_text(content)
    assert read_examples(tmp_path) == []


@pytest.mark.parametrize("place", ["nope", "runs/nope", "/tmp/no/such/folder"])
def test_a_wrong_path_is_told_before_what_is_not_installed(capsys, monkeypatch, place):
    from mmcot.training.cli import main

    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", place]) == 2
    told = capsys.readouterr().err.strip()
    assert f"error: {place}: no such folder" in told and "gradio" not in told and len(told.splitlines()) == 1


def test_what_programs_read_of_the_page_says_how_a_picture_is_given(pipeline):
    from mmcot.training.app.page import _api

    described = " ".join(_api(None, pipeline).__doc__.partition("Args:")[0].split())
    assert "The picture (image) is an http(s) address or a data: URL" in described


def test_a_taken_port_is_told_before_a_model_is_loaded(capsys):
    pytest.importorskip("gradio", minversion="6")
    from mmcot.training.cli import main

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["app", "no-such-model", "--port", str(port)]) == 2
    told = capsys.readouterr().err.strip()
    assert told.endswith("choose another --port") and str(port) in told and len(told.splitlines()) == 1
    for wrong in (["--port", "70000"], ["--host", "no.such.host.invalid"]):
        assert main(["app", "no-such-model", *wrong]) == 2
        assert wrong[1] in capsys.readouterr().err


def test_a_demos_model_says_what_it_can_be_asked(tmp_path):
    answers = tmp_path / "runs" / "demo" / "answer"
    for folder in (answers, tmp_path / "hub"):
        folder.mkdir(parents=True)
    (tmp_path / "hub" / "config.json").write_text("{}")
    (answers / "predictions_test.jsonl").write_text('{"header": {"method": "multimodal-cot"}}\n')
    assert "questions like the examples" in find_shown(str(tmp_path)).note


def test_examples_that_ask_the_same_are_numbered():
    from mmcot.training.app.page import _labels

    assert _labels(["Why?", "Where?", "Why?"]) == ["1 · Why?", "Where?", "2 · Why?"]


def test_nothing_named_trains_the_demo_first(tmp_path, monkeypatch, capsys):
    import mmcot.training.demo

    asked = []
    monkeypatch.setattr(mmcot.training.demo, "demo", lambda *given, **options: asked.append((given, options)))
    monkeypatch.chdir(tmp_path)
    find_shown(None)
    assert asked == [(("mmcot-demo",), {"quick": True})] and "trained first" in capsys.readouterr().out


SPACE = """
import sys
sys.modules["mmcot"] = None  # as in a Space
sys.path.insert(0, sys.argv[1])
from transformers import pipeline
from mmcot_app.page import build_app, read_examples
from mmcot_app.answering import answer_stream, problem_of
answer = pipeline("multimodal-cot", model=sys.argv[2], trust_remote_code=True, device="cpu")
*_, last = answer_stream(answer, problem_of(sys.argv[3], "What is it?", "red\\nblue"))
print(last["answer"], len(last["question_words"]), last["blind"]["answer"])
try:
    import gradio
    build_app(answer, "user/name", examples=read_examples(sys.argv[2]))
except ImportError:
    pass
"""


def test_the_spaces_files_run_without_the_package(two_stage_repository, pipeline, picture, tmp_path):
    from mmcot.training.hub.space import write_space

    space = write_space("user/name", two_stage_repository, tmp_path / "space", revision="0" * 40)
    assert (
        "sdk: gradio" in (space / "README.md").read_text()
        and "transformers" in (space / "requirements.txt").read_text()
    )
    main = (space / "app.py").read_text()
    compile(main, "app.py", "exec")
    assert "'user/name', '" + "0" * 40 in main
    command = [sys.executable, "-c", SPACE, str(space), str(two_stage_repository), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    *_, last = answer_stream(pipeline, problem_of(str(picture), "What is it?", "red\nblue"))
    assert done.stdout.split() == [str(last["answer"]), str(len(last["question_words"])), str(last["blind"]["answer"])]
