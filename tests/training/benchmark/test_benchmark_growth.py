"""What `mmcot benchmark growth` measures: sets as training has them, each sample once, both arms the same samples."""

import argparse
import json
import subprocess
import sys

import pytest
import torch

from mmcot import MMCoTProcessor
from mmcot.training.benchmark import growth, inputs, processes, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def words():
    return inputs.make_tokenizer(words=500)


@pytest.fixture(scope="module", autouse=True)
def small_vocabulary(words):
    """A tokenizer of T5's size takes longer to make than all that is measured here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growth, "make_tokenizer", lambda: words)
        patch.setattr(train, "make_tokenizer", lambda: words)
        yield


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("growth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growth, "PREPARED_AT_MOST", 500)
        return growth.record_costs(folder, [500, 20 * 500], batches=3, tokens_per_batch=2000)


def test_samples_are_those_of_stage_dataset(words, tmp_path):
    from datasets import Dataset

    from mmcot.training.data.problems import load_problems
    from mmcot.training.stages.samples import stage_dataset

    problems = load_problems("embedded:n=4", "train")
    prepared = stage_dataset(problems, MMCoTProcessor(None, words[0]), "rationale")
    growth.write_samples(tmp_path / "samples.arrow", 2500)
    samples = Dataset.from_file(str(tmp_path / "samples.arrow"))
    assert samples.features == prepared.features
    assert samples.data.schema.remove_metadata() == prepared.data.schema.remove_metadata()
    assert samples["id"][:] == [str(number) for number in range(2500)]
    drawn = inputs.draw_lengths(2500)
    for number in (0, 999, 1000, 2499):
        row = samples[number]
        assert len(row["input_ids"]) == row["length"] == drawn[number].source
        assert len(row["labels"]) == row["target_length"] == drawn[number].target
        assert len(row["images"]) == drawn[number].image


def test_an_epoch_has_every_sample_once(costs):
    assert [cost["samples"] for cost in costs] == [cost["epoch_samples"] for cost in costs] == [500, 10000]
    for cost in costs:
        assert 0 < cost["epoch_batches"] < cost["samples"] and 0 < cost["fetched_samples"] < cost["samples"]
        assert set(cost["fetch_microseconds_per_sample"]) == {"median", "min", "max"}
        assert cost["open_seconds"] > 0 and cost["lengths_seconds"] > 0 and cost["epoch_microseconds_per_sample"] > 0


def test_large_set_is_not_read_into_memory(costs):
    small, large = costs
    if large["anonymous_bytes"] is None:
        pytest.skip("no /proc here")
    assert large["bytes"] > 15 * small["bytes"]
    assert large["anonymous_bytes"] - small["anonymous_bytes"] < large["bytes"] / 3


def test_small_sets_are_also_prepared_from_their_files(costs):
    small, large = costs
    assert small["prepare"]["load_seconds_per_1000"] > 0 and small["prepare"]["tokenise_seconds_per_1000"] > 0
    assert large["prepare"] is None


def test_set_that_the_disk_has_no_room_for_is_left_out(tmp_path):
    assert growth.record_costs(tmp_path, [10**15])[0] == {
        "samples": 10**15,
        "left_out": "the disk has no room for it",
    }


def test_two_processes_train_on_the_samples_of_one(monkeypatch):
    if (reason := processes.why_not(CPU)) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(processes, "AIM", 0)  # no third run to explain the ratio
    found = processes.process_scaling("tiny", CPU, steps=2, repeats=1, tokens_per_batch=500)
    assert "failed" not in found
    assert sum(found["one"]["samples"]) == sum(found["two"]["samples"]) == found["samples"]
    assert len(found["one"]["samples"]) == 1 and len(found["two"]["samples"]) == 2
    rates = [found[arm]["samples_per_second"]["median"] for arm in ("one", "two")]
    assert found["ratio"] == {name: pytest.approx(rates[1] / rates[0]) for name in ("median", "min", "max")}
    assert found["without_exchange_ratio"] is None
    assert 0 < found["all_reduce_share"]["median"] < 1 and found["one"]["busy_share"]["median"] > 0
    model = inputs.make_model("tiny")
    assert found["gradient_bytes"] == 4 * sum(weight.numel() for weight in model.parameters())


def test_failure_of_a_process_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="FileNotFoundError"):
        processes._train_together(tmp_path, "tiny", [[[0]]])


def test_what_cannot_be_measured_says_why(monkeypatch):
    assert "CPU" in processes.process_scaling("tiny", torch.device("cuda"))["left_out"]
    monkeypatch.setattr(growth.importlib.util, "find_spec", lambda name: None)
    options = argparse.Namespace(record_sizes=[10], growth_batches=1, growth_steps=1, repeats=1)
    found = growth.benchmark_growth("tiny", torch.device("cuda"), options)
    assert "datasets" in found["records"]["left_out"] and "left_out" in found["processes"]
    json.dumps(found)


def test_module_needs_neither_datasets_nor_evaluate():
    code = (
        "import sys; sys.modules['datasets'] = sys.modules['evaluate'] = None\n"
        "from mmcot.training.benchmark import growth\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
