"""`pipeline("multimodal-cot", …)` as a user calls it."""

import copy
import http.server
import io
import threading

import datasets
import numpy as np
import pandas
import pytest
from PIL import Image
from transformers import GenerationConfig, Pipeline, pipeline
from transformers.pipelines.pt_utils import KeyDataset
from two_stage_models import make_stage

from mmcot import MMCoTPipeline, MMCoTProcessor
from mmcot.errors_mmcot import ModelError
from mmcot.pipeline_mmcot import choose_result
from mmcot.processing import image_processor_for
from mmcot.training.data.embedded.generate import generate_problems
from mmcot.training.inference.predict import load_pipeline


@pytest.fixture(scope="module")
def pipe(two_stage_repository):
    return load_pipeline(two_stage_repository, device="cpu")


@pytest.fixture(scope="module")
def problems():
    return list(generate_problems(9, seed=6))


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert (a["rationale"], a["answer"], a["answer_text"]) == (b["rationale"], b["answer"], b["answer_text"])
        assert a["scores"] == pytest.approx(b["scores"], abs=1e-4)


def test_one_problem_gives_one_result(pipe, problems):
    result = pipe(problems[0])
    assert {"rationale", "answer", "answer_text", "scores", "generated"} <= result.keys()
    assert result["answer"] == max(result["scores"], key=result["scores"].get)
    assert result["answer_text"] == problems[0]["choices"][ord(result["answer"]) - ord("A")]


def test_lists_generators_datasets_and_batches_agree(pipe, problems):
    alone = [pipe(problem) for problem in problems]
    assert_same(pipe(problems), alone)
    assert_same(pipe(problems, batch_size=4), alone)
    assert_same(list(pipe((problem for problem in problems), batch_size=4)), alone)
    rows = [
        {**problem, "images": [{"path": None, "bytes": png(image)} for image in problem["images"]]}
        for problem in problems
    ]
    dataset = datasets.Dataset.from_list(rows)
    assert_same(pipe(dataset, batch_size=4), alone)
    assert_same(pipe(tuple(problems)), alone)
    assert pipe([]) == []
    streamed = pipe(dataset.to_iterable_dataset(), batch_size=2)
    assert not isinstance(streamed, list), "a stream is read as its results are"
    assert_same(list(streamed), alone)
    assert_same(pipe(KeyDataset([{"problem": problem} for problem in problems], "problem")), alone)
    assert list(pipe(iter(()))) == []


def test_streams_are_read_as_their_results_are_asked_for(pipe, problems):
    read = []

    def stream():
        for problem in problems:
            read.append(problem["id"])
            yield problem

    results = pipe(stream(), max_new_tokens=2)
    next(iter(results))
    assert len(read) < len(problems)


@pytest.mark.parametrize("make", [list, iter], ids=["list", "stream"])
def test_worker_processes_prepare_problems(pipe, problems, make):
    assert_same(list(pipe(make(problems), num_workers=1, batch_size=3)), pipe(problems))
    if make is list:
        assert_same(pipe(problems, num_workers=2), pipe(problems))


def test_what_is_no_problem_is_said_clearly(pipe):
    split = datasets.Dataset.from_list([{"question": "Which?", "choices": ["a", "b"], "image": None}])
    for splits in (datasets.DatasetDict(val=split, test=split), {"test": split.to_iterable_dataset()}):
        with pytest.raises(ModelError, match="choose a split, one of .*test"):
            pipe(splits)
    for wrong in ("Which?", b"Which?", 5, pandas.DataFrame({"question": ["Which?"]})):
        with pytest.raises(ModelError, match=f"not a {type(wrong).__name__}"):
            pipe(wrong)
    with pytest.raises(ModelError, match="problem 2 is a str"):
        pipe([split[0], "Which?"])
    with pytest.raises(ModelError, match="problem 2 is a str"):
        list(pipe(iter([split[0], "Which?"])))


@pytest.mark.parametrize("make", [list, iter, datasets.Dataset.from_list], ids=["list", "stream", "dataset"])
def test_an_error_tells_which_problem_it_is_about(pipe, make):
    good = {"question": "Which?", "choices": ["a", "b"], "image": None}
    long = {**good, "choices": ["word " * 200, "other"]}
    for bad, message in ((long, "tokens"), ({**good, "choices": ["a"]}, "1 choice")):
        for number, problem in (("number 3", bad), ("q17", {**bad, "id": "q17"})):
            rows = [{"id": None, **row} for row in (good, good, problem)]
            with pytest.raises(ValueError, match=message) as error:
                list(pipe(make(rows), batch_size=3))
            assert number in str(error.value)


def png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_every_kind_of_image_reference_gives_the_same(pipe, problems, tmp_path, monkeypatch):
    monkeypatch.setenv("MMCOT_ALLOW_PRIVATE_URLS", "1")
    problem = next(problem for problem in problems if len(problem["images"]) == 1)
    image = problem["images"][0]
    (tmp_path / "picture.png").write_bytes(png(image))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    bare = {key: value for key, value in problem.items() if key not in ("images", "image")}
    expected = pipe({**bare, "image": image})
    url = f"http://127.0.0.1:{server.server_port}/picture.png"
    for reference in (tmp_path / "picture.png", str(tmp_path / "picture.png"), png(image), url, [image]):
        assert_same([pipe({**bare, "image": reference})], [expected])
    server.shutdown()


def test_several_images_and_none_in_one_batch(pipe, problems):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    bare = {"question": "Which one?", "choices": ["this", "that"]}
    batch = [{**bare, "image": None}, {**bare, "images": [image, image]}, {**bare, "image": image}]
    assert_same(pipe(batch, batch_size=3), [pipe(problem) for problem in batch])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"choices": ["only"]}, "1 choice"),
        ({"choices": [str(i) for i in range(27)]}, "27 choices"),
        ({"question": "  "}, "question is empty"),
        ({"image": "no/such/file.png"}, "no/such/file.png"),
        ({"image": b"not a picture"}, "cannot read image"),
        ({"image": ...}, "no field 'image'"),
    ],
)
def test_what_cannot_be_asked_is_said_clearly(pipe, change, message):
    problem = {"id": "q17", "question": "Which one?", "choices": ["this", "that"], "image": None, **change}
    problem = {key: value for key, value in problem.items() if value is not ...}
    with pytest.raises(ValueError, match=message) as error:
        pipe(problem)
    assert "q17" in str(error.value) and "\n" not in str(error.value)


def test_free_generation_parses_or_says_none(pipe, problems):
    for result in pipe(problems, mode="generate", batch_size=4):
        assert result["generated"]["answer"] is not None
        assert result["answer"] is None or f"({result['answer']})" in result["generated"]["answer"]


def test_attention_is_a_distribution_over_the_pictures_patches(pipe, problems):
    shown = next(problem for problem in problems if len(problem["images"]) == 1)
    attention = pipe(shown, return_attention=True)["attention"]
    for stage in ("rationale", "answer"):
        assert attention[stage].shape[1] == 17  # 4 × 4 patches and the class token
        assert np.allclose(attention[stage].sum(1), 1, atol=1e-4)


def test_self_consistency_votes(pipe, problems):
    result = pipe(problems[0], self_consistency=5)
    assert sum(result["votes"].values()) == 5
    assert result["votes"][result["answer"]] == max(result["votes"].values())
    with pytest.raises(ModelError, match="self_consistency.*0"):
        pipe(problems[0], self_consistency=0)
    with pytest.raises(ModelError, match="num_return_sequences"):
        pipe(problems[0], self_consistency=3, num_return_sequences=2)


def vote(*results):
    """Of (answer, its score, name of the rationale): the winning rationale's name, and the votes."""
    rows = [{"answer": a, "scores": None if s is None else {a: s, "Z": 1 - s}, "name": n} for a, s, n in results]
    won = choose_result(rows)
    return won["name"], won["votes"]


def test_most_votes_win_then_the_summed_score_then_the_more_confident_rationale():
    assert vote(("B", 0.2, "b1"), ("A", 0.9, "a"), ("B", 0.3, "b2")) == ("b2", {"B": 2, "A": 1})
    # a tie goes to the summed score, 1.1 against 1.0, and not to the single most confident rationale
    assert vote(("A", 0.9, "a1"), ("A", 0.1, "a2"), ("B", 0.5, "b1"), ("B", 0.6, "b2"))[0] == "b2"
    # and then to the more confident rationale
    assert vote(("A", 0.5, "a1"), ("A", 0.5, "a2"), ("B", 0.25, "b1"), ("B", 0.75, "b2"))[0] == "b2"
    # what can't be read has no vote; without scores the first rationale stands
    assert vote((None, 0.99, "none"), (None, 0.9, "none"), ("A", 0.1, "a")) == ("a", {"A": 1})
    assert vote(("A", None, "a"), ("B", None, "b"), ("B", None, "b2")) == ("b", {"A": 1, "B": 2})
    assert vote((None, 0.5, "first"), (None, 0.6, "second")) == ("first", {})


def test_other_ways_to_choose_among_rationales(pipe, problems):
    def chosen(how, *rows):
        return choose_result([{"answer": a, "scores": s, "name": n} for a, s, n in rows], how)["name"]

    rows = [("A", {"A": 0.5, "B": 0.4, "C": 0.1}, "a1"), ("A", {"A": 0.5, "B": 0.4, "C": 0.1}, "a2")]
    rows += [("B", {"A": 0.1, "B": 0.8, "C": 0.1}, "b"), ("C", {"A": 0.1, "B": 0.0, "C": 0.9}, "c")]
    assert chosen("votes", *rows) == "a1"
    assert chosen("scores", *rows) == "b"  # A 1.2, B 1.6, C 1.2
    assert chosen("confidence", *rows) == "c"
    # as lists, with an index for an answer, as other methods of reasoning have them
    listed = [("ABC".index(a), list(s.values()), n) for a, s, n in rows]
    assert [chosen(how, *listed) for how in ("votes", "scores", "confidence")] == ["a1", "b", "c"]
    beams = pipe(problems[0], num_beams=3, num_return_sequences=3, choose="confidence")
    assert sum(beams["votes"].values()) == 3
    with pytest.raises(ModelError, match="`choose` is one of.*'luck'"):
        pipe(problems[0], self_consistency=2, choose="luck")


def test_options_of_a_call_win_over_the_pipelines(two_stage_repository, problems):
    """Also where they equal the defaults."""
    made = load_pipeline(two_stage_repository, device="cpu")
    options = {"mode": "generate", "blank_image": True, "return_attention": True, "self_consistency": 3}
    pipe = MMCoTPipeline(made.model, processor=made.processor, device="cpu", **options, max_new_tokens=3)
    shown = next(problem for problem in problems if problem["images"])
    result = pipe(shown)
    assert {"without_image", "attention", "votes"} <= result.keys() and result["generated"]["answer"] is not None
    back = {"mode": "score", "blank_image": False, "return_attention": False, "self_consistency": 1}
    result = pipe(shown, **back)
    assert not {"without_image", "attention", "votes"} & result.keys() and result["generated"]["answer"] is None
    longer = pipe(shown, **back, max_new_tokens=9)["generated"]["rationale"]
    assert longer == made(shown, max_new_tokens=9)["generated"]["rationale"] != result["generated"]["rationale"]
    assert pipe(shown, **back, max_length=10)["generated"] == pipe(shown, **back, max_new_tokens=9)["generated"]
    config = GenerationConfig(max_new_tokens=9, num_beams=2)
    beams = made(shown, max_new_tokens=9, num_beams=2)["generated"]
    assert pipe(shown, **back, generation_config=config)["generated"] == beams
    assert pipe(shown, **back, generation_config=config, num_beams=1)["generated"]["rationale"] == longer
    for wrong in ({"mode": "guess"}, {"self_consistency": 0}):
        with pytest.raises(ModelError, match=next(iter(wrong))):
            MMCoTPipeline(made.model, processor=made.processor, device="cpu", **wrong)


def test_several_rationales_are_answered_with_their_own_picture(pipe, problems):
    """Batched as alone, by values: the sequences of one problem stand side by side."""
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 6}
    shown = [problem for problem in problems if problem["images"]] + [problem for problem in problems[:2]]
    together = pipe(shown, batch_size=len(shown), **options)
    assert_same(together, [pipe(problem, **options) for problem in shown])
    for result, problem in zip(together, shown, strict=True):
        assert sum(result["votes"].values()) == 3 and len(result["scores"]) == len(problem["choices"])


# ---- a repository of one stage ----


@pytest.fixture(scope="module", params=["QCM-A", "QCM-LEA"])
def one_stage(request, two_stage_repository, tiny_tokenizer, tmp_path_factory):
    """A pipeline of a saved one-stage model."""
    processor = MMCoTProcessor(
        image_processor_for(64),
        tiny_tokenizer,
        rationale_format=None,
        answer_format=request.param,
        max_source_length=200,
    )
    model = make_stage(processor, 3, prompt_format=request.param)
    model.generation_config.max_new_tokens = 8
    folder = tmp_path_factory.mktemp("one_stage") / "repository"
    model.save_pretrained(folder, processor=processor)
    return load_pipeline(folder, device="cpu")


def test_one_stage_answers_by_the_same_calls(one_stage, problems):
    alone = [one_stage(problem) for problem in problems]
    assert_same(one_stage(problems, batch_size=4), alone)
    for problem, result in zip(problems, alone, strict=True):
        assert result["answer"] == max(result["scores"], key=result["scores"].get)
        assert result["answer_text"] in problem["choices"] and len(result["scores"]) == len(problem["choices"])
    for result in one_stage(problems, mode="generate", batch_size=4):
        assert result["generated"]["answer"] is not None
        assert result["answer"] is None or f"({result['answer']})" in result["generated"]["answer"]
    with pytest.raises(ValueError, match="max_new_tokns"):
        one_stage(problems[0], max_new_tokns=2)


def test_one_stage_has_every_option(one_stage, problems):
    shown = [problem for problem in problems if len(problem["images"]) == 1][:2]
    for result in one_stage(shown, self_consistency=3, batch_size=2):
        assert sum(result["votes"].values()) == 3
    assert_same(one_stage(shown, num_beams=3, batch_size=2), [one_stage(p, num_beams=3) for p in shown])
    results = one_stage(shown, blank_image=True, return_attention=True, batch_size=2)
    for problem, result in zip(shown, results, strict=True):
        assert result["scores"] != pytest.approx(result["without_image"]["scores"], abs=1e-6)
        assert_same([result["without_image"]], [one_stage({**problem, "images": []})])
        assert result["attention"]["answer"].shape[1] == 17
        assert np.allclose(result["attention"]["answer"].sum(1), 1, atol=1e-4)


# ---- what transformers' `pipeline` makes of a repository ----


@pytest.mark.parametrize("task", ["multimodal-cot", "image-text-to-text"])
def test_the_tag_of_the_card_is_a_task_of_the_repository(two_stage_repository, one_stage, problems, task):
    """The Hub's snippet calls `pipeline(tag, model=…, trust_remote_code=True)`."""
    one_stage.model.save_pretrained(two_stage_repository.parent / "one", processor=one_stage.processor)
    for folder in (two_stage_repository, two_stage_repository.parent / "one"):
        if task != "multimodal-cot":
            assert f"pipeline_tag: {task}" in (folder / "README.md").read_text()
        made = pipeline(task, model=str(folder), trust_remote_code=True, device="cpu", local_files_only=True)
        assert type(made).__name__ == "MMCoTPipeline"
        assert_same([made(problems[0])], [load_pipeline(folder, device="cpu")(problems[0])])


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(pipe):
    tokenizer = copy.deepcopy(pipe.tokenizer)
    tokenizer.add_tokens(["×"])
    processor = MMCoTProcessor(pipe.processor.image_processor, tokenizer, max_source_length=200)
    with pytest.raises(ModelError, match="resize_token_embeddings"):
        MMCoTPipeline(pipe.model, processor=processor, device="cpu")


def test_a_pipeline_without_a_processor_says_so(pipe):
    model = copy.copy(pipe.model)
    model.processor = None
    with pytest.raises(ModelError, match="processor="):
        MMCoTPipeline(model, device="cpu")


def test_transformers_still_has_what_the_pipeline_overrides():
    for name in ("_sanitize_parameters", "preprocess", "_forward", "postprocess", "_ensure_tensor_on_device"):
        assert callable(getattr(Pipeline, name)), name
    for name in ("processor", "tokenizer", "image_processor", "feature_extractor"):
        assert isinstance(getattr(Pipeline, f"_load_{name}"), (bool, type(None))), name
    assert Pipeline._pipeline_calls_generate is False


def test_blank_image_is_asked_beside(pipe, problems):
    shown = next(problem for problem in problems if problem["images"])
    result = pipe(shown, blank_image=True)
    assert_same([result["without_image"]], [pipe({**shown, "images": []})])
    assert result["scores"] != pytest.approx(result["without_image"]["scores"], abs=1e-6)


def test_generation_options_reach_the_rationale(pipe, problems):
    short = pipe(problems[0], max_new_tokens=2)["generated"]["rationale"]
    assert len(pipe.tokenizer(short)["input_ids"]) <= 4
    with pytest.raises(ValueError, match="max_new_tokns"):
        pipe(problems[0], max_new_tokns=2)
