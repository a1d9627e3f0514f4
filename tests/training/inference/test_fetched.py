"""A repository of the Hub is fetched in one pass: few requests, fewer still when it lies in the cache."""

import pytest
from huggingface_hub import HfApi
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from mmcot.training import load_pipeline, load_problems, predict
from mmcot.training.common import MissingFileError
from mmcot.training.evaluation.predictions import read_header


def uploaded(name: str, folder) -> str:
    HfApi().create_repo(name, exist_ok=True)
    return HfApi().upload_folder(repo_id=name, folder_path=folder).oid


def test_no_more_requests_than_for_a_plain_t5(hub, two_stage_repository, tiny_tokenizer, tmp_path):
    commit = uploaded("tester/m", two_stage_repository)
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": len(tiny_tokenizer)}
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(tmp_path / "t5")
    tiny_tokenizer.save_pretrained(tmp_path / "t5")
    uploaded("tester/t5", tmp_path / "t5")

    def asked(load) -> int:
        before = len(hub.requests)
        load()
        return len(hub.requests) - before

    plain = asked(
        lambda: (AutoTokenizer.from_pretrained("tester/t5"), AutoModelForSeq2SeqLM.from_pretrained("tester/t5"))
    )
    assert plain > 5
    assert asked(lambda: load_pipeline("tester/m", "cpu")) <= 1.2 * plain
    assert asked(lambda: load_pipeline("tester/m", "cpu")) <= 2
    problems = load_problems("embedded:n=3", "test")
    path = predict("tester/m", problems, tmp_path / "p.jsonl", device="cpu", max_new_tokens=2)
    assert (read_header(path)["model"], read_header(path)["revision"]) == ("tester/m", commit)
    config = load_pipeline("tester/m", "cpu").model.config
    assert config.name_or_path == "tester/m"


def test_what_is_not_there_is_said_in_one_line(hub):
    with pytest.raises(
        MissingFileError, match="tester/nothing: no such folder, and it can't be had from the Hub"
    ) as caught:
        load_pipeline("tester/nothing")
    assert "\n" not in str(caught.value)
