"""Calls: nothing is asked twice, nothing is lost, the limit of tokens holds."""

import json

import pytest
from scripted import ScriptedModel

from mmcot.training.common import UserError
from mmcot.training.reasoning.calls import Caller, Request, TokenBudgetError


def two_calls(name):
    """A method's work: a second call that depends on the first."""
    first = yield Request(f"first of {name}", step="reason", max_new_tokens=4)
    second = yield Request(f"second of {name} after {first.text}", step="extract", max_new_tokens=4)
    return {"texts": [first.text, second.text]}


def works(count=5):
    return [(str(number), two_calls(number)) for number in range(count)]


def echo(request):
    return request.prompt.upper()


def test_each_work_gets_its_own_completions(tmp_path):
    results = Caller(ScriptedModel(echo), tmp_path / "calls.jsonl", at_once=2).run(works())
    assert list(results) and results["3"]["texts"] == ["FIRST OF 3", "SECOND OF 3 AFTER FIRST OF 3"]
    lines = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert len(lines) == 10 and {line["step"] for line in lines} == {"reason", "extract"}


@pytest.mark.parametrize("cut", [0, 1, 4, 7])
def test_interrupted_work_asks_nothing_twice(tmp_path, cut):
    model = ScriptedModel(echo, stop_after=cut)
    with pytest.raises(KeyboardInterrupt):
        Caller(model, tmp_path / "calls.jsonl", at_once=2).run(works())
    with open(tmp_path / "calls.jsonl", "ab") as file:
        file.write('{"id": "9", "text": "cut insid\u00e9'.encode()[:-1])
    again = ScriptedModel(echo)
    results = Caller(again, tmp_path / "calls.jsonl", at_once=2).run(works())
    whole = Caller(ScriptedModel(echo), tmp_path / "whole.jsonl").run(works())
    assert {key: results[key] for key in sorted(results)} == {key: whole[key] for key in sorted(whole)}
    assert len(again.asked) == 10 - cut
    assert not {request.prompt for request in again.asked} & {request.prompt for request in model.asked}


def test_another_model_or_setting_is_asked_anew(tmp_path):
    Caller(ScriptedModel(echo), tmp_path / "calls.jsonl").run(works())
    other = ScriptedModel(echo)
    other.name = "another"
    Caller(other, tmp_path / "calls.jsonl").run(works())
    assert len(other.asked) == 10


def test_stops_before_too_many_tokens_and_goes_on(tmp_path):
    model = ScriptedModel(echo)
    caller = Caller(model, tmp_path / "calls.jsonl", max_tokens_total=60)
    with pytest.raises(TokenBudgetError, match="max-tokens-total"):
        caller.run(works())
    used = sum(caller.tokens.values())
    assert 0 < used <= 60 and 0 < len(model.asked) < 10
    again = ScriptedModel(echo)
    caller = Caller(again, tmp_path / "calls.jsonl", max_tokens_total=6000)
    caller.run(works())
    assert len(again.asked) == 10 - len(model.asked)
    assert sum(caller.tokens.values()) > used


@pytest.mark.parametrize("line", ["{no", "5", "[]", '{"text": "a"}'])
def test_a_damaged_journal_is_named(tmp_path, line):
    (tmp_path / "calls.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="calls.jsonl: is damaged: remove it to ask anew"):
        Caller(ScriptedModel(str), tmp_path / "calls.jsonl")


def test_another_picture_is_another_call(tmp_path):
    """Though the words are the same, and the picture lies where the other did."""
    path = tmp_path / "a.png"

    def look(content):
        path.write_bytes(content)

        def work():
            return {"text": (yield Request("What is it?", images=(str(path),))).text}

        model = ScriptedModel(echo)
        Caller(model, tmp_path / "calls.jsonl").run([("1", work())])
        return len(model.asked)

    assert [look(content) for content in (b"one", b"other", b"one")] == [1, 1, 0]
