"""`pipeline("multimodal-cot", …)` as a user calls it."""

import http.server
import io
import threading

import datasets
import numpy as np
import pytest
from PIL import Image

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
    assert_same(pipe(datasets.Dataset.from_list(rows), batch_size=4), alone)
    assert pipe([]) == []


def png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_every_kind_of_image_reference_gives_the_same(pipe, problems, tmp_path):
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
