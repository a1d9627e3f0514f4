"""An endpoint answers, fails, stalls and lies; what it said is kept, and its key is written nowhere."""

import base64
import io
import json

import pytest
from PIL import Image
from scripted import ScriptedEndpoint

from mmcot.training.common import UserError
from mmcot.training.reasoning import endpoint
from mmcot.training.reasoning.calls import Request
from mmcot.training.reasoning.endpoint import Endpoint


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """Loopback only; and no real pauses."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    waited = []
    monkeypatch.setattr(endpoint.time, "sleep", waited.append)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    return waited


def ask(server, *requests, **options):
    found = dict(Endpoint(server.url, "m", **options).complete(list(requests)))
    return [found[position] for position in range(len(requests))]


def test_answers_in_order_with_tokens_and_key():
    with ScriptedEndpoint(["one"]) as server:
        completions = ask(server, *(Request(f"q{i}", max_new_tokens=7, temperature=0.5, seed=3) for i in range(9)))
    assert [completion.text for completion in completions] == ["one"] * 9
    assert completions[0].prompt_tokens == 10 and completions[0].completion_tokens == 5
    headers, body = server.requests[0]
    assert headers["authorization" if "authorization" in headers else "Authorization"] == "Bearer sk-secret"
    assert body["max_tokens"] == 7 and body["temperature"] == 0.5 and body["seed"] == 3 and body["model"] == "m"


def test_concurrency_is_bounded():
    with ScriptedEndpoint(["x"], meet=3) as server:
        ask(server, *(Request(f"q{i}") for i in range(20)), concurrency=3)
    assert server.most_at_once == 3 and len(server.requests) == 20


@pytest.mark.parametrize(
    "bad", [429, 500, 503, b"not JSON", b'{"choices": []}', json.dumps({"choices": [{"message": {}}]}).encode()]
)
def test_what_fails_is_tried_again(bad):
    with ScriptedEndpoint([bad, bad, "good"]) as server:
        assert ask(server, Request("q"))[0].text == "good"
    assert len(server.requests) == 3


def test_retry_after_is_honoured_and_bounded(online):
    with ScriptedEndpoint([(429, {"Retry-After": "7"}), (503, {"Retry-After": "99999"}), "good"]) as server:
        ask(server, Request("q"))
    waited = [pause for pause in online if pause >= 1]
    assert waited == [7.0, 60.0]


def test_stalls_are_cut_off(monkeypatch):
    with ScriptedEndpoint(["stall", "good"]) as server:
        monkeypatch.undo()  # the endpoint really sleeps
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        assert ask(server, Request("q"), timeout=0.5)[0].text == "good"


def test_a_call_that_fails_for_good_is_one_line_and_keeps_the_others():
    said = "no answer in 2 tries .last: HTTP 500.*goes on"
    with ScriptedEndpoint([500]) as server, pytest.raises(UserError, match=said):
        ask(server, Request("q"), tries=2)
    with ScriptedEndpoint(["fine", 401]) as server:
        kept = []
        with pytest.raises(UserError, match="refuses") as error:
            for position, completion in Endpoint(server.url, "m", concurrency=1).complete(
                [Request("a"), Request("b")]
            ):
                kept.append((position, completion.text))
    assert kept == [(0, "fine")] and "sk-secret" not in str(error.value) and len(server.requests) == 2


def test_pictures_go_as_data_urls():
    picture = Image.new("RGB", (5, 3), "red")
    with ScriptedEndpoint(["x"]) as server:
        ask(server, Request("q", images=(picture, picture)))
        ask(server, Request("q", images=(picture,)), takes_images=False)
    content = server.requests[0][1]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "image_url", "text"]
    sent = Image.open(io.BytesIO(base64.b64decode(content[0]["image_url"]["url"].partition(",")[2])))
    assert sent.size == (5, 3) and sent.getpixel((0, 0)) == (255, 0, 0)
    assert server.requests[1][1]["messages"][0]["content"] == "q"


def test_letters_are_compared_by_their_log_probabilities():
    with ScriptedEndpoint([{" (A": -2.0, "A": -6.0, "B": -0.5, "the": -0.1}]) as server:
        completion = ask(server, Request("q (", letters=("A", "B", "C")))[0]
    assert completion.log_probs == {"A": -2.0, "B": -0.5}
    with ScriptedEndpoint(["B"]) as server, pytest.raises(UserError, match="no log-probabilities"):
        ask(server, Request("q (", letters=("A", "B")))


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "https://key@host/v1", "https://host/v1?key=x"])
def test_addresses_that_are_none(url):
    with pytest.raises(UserError, match="--endpoint"):
        Endpoint(url, "m")


def test_offline_is_said(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with ScriptedEndpoint(["x"]) as server, pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        ask(server, Request("q"))
