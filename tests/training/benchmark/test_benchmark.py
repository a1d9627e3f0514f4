"""The benchmark: its inputs are like ScienceQA's, its arithmetic is right, the arms do the same work."""

import argparse
import json
import pickle
import time

import numpy as np
import pytest
import torch

from mmcot import MMCoTProcessor
from mmcot.training.benchmark import children, data, generate, inputs, measure, processes, run, table, train
from mmcot.training.commands import benchmark as command
from mmcot.training.common import UserError
from mmcot.training.inference import decoder

CPU = torch.device("cpu")
TINY = {
    "shape": ["tiny"],
    "device": "cpu",
    "repeats": 1,
    "tokens_per_batch": [600],
    "samples": 12,
    "pool": 12,
    "batch_size": 2,
    "compile": False,
    "questions": 6,
    "original_questions": 4,
    "max_new_tokens": 3,
    "slots": 4,
    "pictures": 3,
    "cached_pictures": 256,
    "sample_sizes": [300, 10300],
    "problems": 20,
    "process_steps": 2,
}


def options(part, **changes):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args([part])
    for name, value in {**TINY, **changes}.items():
        setattr(args, name, value)
    return args


@pytest.fixture(scope="module")
def words():
    return inputs.make_tokenizer(words=500)


@pytest.fixture(scope="module", autouse=True)
def small_vocabulary(words):
    """T5's vocabulary would take most of the time of a network as small as these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "VOCABULARY", 1600)
        patch.setattr(inputs, "make_tokenizer", lambda: words)
        patch.setattr(data, "make_tokenizer", lambda: words)
        yield


# ---- inputs ----


def test_problems_have_the_lengths_that_were_drawn(words):
    tokenizer, vocabulary = words
    processor = MMCoTProcessor(None, tokenizer)
    lengths = inputs.draw_lengths(40)
    problems = inputs.make_problems(lengths, processor, vocabulary)
    for length, problem in zip(lengths, problems, strict=True):
        rationale = processor.encode(problem, "rationale", target=True)
        assert abs(len(rationale["input_ids"]) - length.source) <= 3
        assert abs(len(rationale["labels"]) - length.target) <= 3
        assert abs(len(processor.encode(problem, "answer")["input_ids"]) - length.answer_source) <= 8


def test_lengths_are_scienceqas():
    lengths = inputs.draw_lengths(4000)
    assert np.mean([length.source for length in lengths]) == pytest.approx(77, abs=5)
    assert np.mean([length.target for length in lengths]) == pytest.approx(65, abs=5)
    assert np.mean([length.image for length in lengths]) == pytest.approx(10332 / 21208, abs=0.03)


def test_a_few_lengths_already_have_the_mean_of_all():
    many = np.array([(length.source, length.target) for length in inputs.draw_lengths(4000)])
    few = inputs.draw_lengths(64)
    means = np.mean([(length.source, length.target) for length in few], axis=0)
    assert means == pytest.approx(many.mean(0), rel=0.1)
    assert sum(length.image for length in few) / 64 == pytest.approx(10332 / 21208, abs=0.02)
    assert few != sorted(few, key=lambda length: length.source)


def test_histogram_is_that_of_the_real_problems(shared_dir):
    from mmcot.training.stages.build import tokenizer_from_file

    processor = MMCoTProcessor(None, tokenizer_from_file(shared_dir / "data" / "t5_tokenizer.json"))
    problems = json.loads((shared_dir / "data" / "scienceqa" / "problems.json").read_text())
    kept = json.loads(inputs.LENGTHS.read_text())["rows"]
    assert sum(row[-1] for row in kept) == len(problems)
    sources = [
        len(processor.encode({**p, "id": i}, "rationale")["input_ids"]) for i, p in list(problems.items())[:200]
    ]
    known = {row[0] for row in kept}
    assert all(4 * round(length / 4) in known for length in sources)


# ---- measuring ----


@pytest.mark.parametrize(("source", "target", "patches"), [(40, 24, 9), (300, 90, 0), (1, 1, 145)])
def test_operations_at_any_length_are_those_that_pytorch_counts(source, target, patches):
    from torch.utils.flop_counter import FlopCounterMode

    model = inputs.make_model("tiny", attention="eager").eval()
    # materialised, so that PyTorch counts it on a CPU too
    forward = model.encoder.fusion.forward
    model.encoder.fusion.forward = lambda *args, **kwargs: forward(*args, **{**kwargs, "output_attentions": True})
    images = {"image_features": torch.randn(1, patches, 1024)} if patches else {}
    ids = torch.randint(2, 100, (1, source))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, labels=torch.randint(2, 100, (1, target)), use_cache=False, **images)
    found = measure.forward_flops(lambda: inputs.make_model("tiny", attention="eager"))(source, target, patches)
    assert found == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_arms_take_turns_and_the_first_run_is_left_out():
    turns = []

    def arm(name, seconds):
        def work(turn):
            turns.append((turn, name))
            return {"count": 6, "seconds": 100 if turn == 0 else seconds}

        return measure.Arm(name, work)

    found, failed = measure.take_turns([arm("slow", 3), arm("fast", 1)], 2, CPU)
    assert turns == [(0, "fast"), (0, "slow"), (1, "slow"), (1, "fast"), (2, "fast"), (2, "slow")] and not failed
    assert found["fast"]["per_second"] == {"median": 6, "min": 6, "max": 6}
    assert found["fast"]["ratio"] == {"median": 3, "min": 3, "max": 3} and found["slow"]["repeats"] == 2


def test_an_arm_that_fails_is_named_and_left_out():
    def work(turn):
        raise torch.OutOfMemoryError("no memory\nlong story")

    right = measure.Arm("right", lambda turn: {"count": 1, "seconds": 1})
    found, failed = measure.take_turns([right, measure.Arm("wrong", work)], 1, CPU)
    assert list(found) == ["right"] and failed == {"wrong": "no memory"}
    with pytest.raises(RuntimeError):
        measure.take_turns([measure.Arm("baseline", work), right], 1, CPU)


def test_repeats_stop_when_the_time_is_up():
    arm = measure.Arm("only", lambda turn: {"count": 1, "seconds": 1})
    assert measure.take_turns([arm], 5, CPU, deadline=time.perf_counter() - 1)[0]["only"]["repeats"] == 1


# ---- training ----


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_losses_of_both_ways_agree(tmp_path, kind):
    """In fp32, without dropout, padding left out of the loss; the original repeats ResNet's one vector 512 times."""
    setting = inputs.Setting(6, 3, tmp_path, kind)
    original = train.OriginalTraining("tiny", setting, CPU, 2)
    original.model.config.loss_on_padding = False
    ours = inputs.make_model("tiny", features=kind)
    for model in (original.model, ours):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "dropout", None), float):  # of attention
                module.dropout = 0.0
    batches = [[0, 1], [2, 3], [4, 5]]
    expected = [original.step(batch) for batch in batches]
    settings = {"use_cpu": True, "bf16": False, "lr_scheduler_type": "constant"}
    _, trainer = train.timed_training(ours, setting, batches, **settings)
    assert [float(loss) for _, loss, _ in trainer.taken] == pytest.approx(expected, rel=1e-4)
    if kind == "resnet":
        assert original.features.shape == (3, 512, 2048)


@pytest.mark.parametrize("batching", [{"batch_size": 5}, {"tokens_per_batch": 600}])
def test_batches_of_a_run_have_the_mean_of_the_epoch(tmp_path, batching):
    setting = inputs.Setting(200, 3, tmp_path)
    epoch = train.batches_of_epoch(setting, 200, 0, **batching)
    assert sorted(sum(epoch, [])) == list(range(200)) and train.batches_of_epoch(setting, 200, 1, **batching) != epoch
    some = sum(train.batches_of_epoch(setting, 60, 0, **batching), [])
    mean = np.mean([row["length"] for row in setting.rows])
    assert 40 <= len(some) <= 80 and np.mean([setting.rows[i]["length"] for i in some]) == pytest.approx(
        mean, rel=0.15
    )


# ---- generation ----


def test_rows_end_at_their_length():
    processor = generate.EndAt([2, 4], end=1)
    ended = [
        processor(torch.zeros(2, step, dtype=torch.long), torch.randn(2, 9)).argmax(-1).eq(1).tolist()
        for step in range(1, 6)
    ]
    assert [row for row, _ in ended] == [False, True, True, True, True]
    assert [row for _, row in ended] == [False, False, False, True, True]


def test_forced_lengths_are_those_of_ids_or_in_order():
    model, whole = inputs.make_model("tiny").eval(), decoder.Slots
    for keys in (["a", "b", "c"], [0, 1, 2]):
        with generate.forced_lengths({"a": 2, "b": 5, "c": 1}):
            rows = decoder.GreedyDecoder(model, 2).decode(
                [(keys, torch.randn(3, 4, 32), torch.ones(3, 4, dtype=torch.long))], 9, model.config.eos_token_id
            )
            assert [len(ids) for _, ids in sorted(rows)] == [2, 5, 1]
    assert decoder.Slots is whole


# ---- the whole ----


class InThisProcess:
    """A child whose function is called here: starting one takes longer than all that it measures in these tests."""

    def __init__(self, function, out, processes=1, environment=None, **arguments):
        self.returned = [children.call(function, json.loads(json.dumps(arguments, default=str)))] * processes

    def found(self):
        return self.returned

    def stop(self):
        pass


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "all.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(children, "Child", InThisProcess)
        patch.setattr(processes, "Child", InThisProcess)
        run.benchmark(options("all", json=str(path)))
    return json.loads(path.read_text())


def test_figures_of_all_parts(result):
    parts = result["shapes"]["tiny"]
    assert set(parts) == set(run.PARTS)
    training = parts["train"]["arms"]
    assert all(0 < arm["share_of_peak"]["median"] < 1 for name, arm in training.items() if name != "original")
    assert training["ours, same batch"]["ratio"]["median"] > 1
    generation = parts["generate"]
    assert {
        "original",
        "mmcot predict, float32",
        "mmcot predict, int8",
        "engine alone",
        "pipeline, batch_size=64",
    } <= set(generation["arms"])
    assert generation["mean_rationale_tokens"] <= 3 and generation["single_question"]["int8"]["seconds"]["median"] > 0
    assert [cost["epoch_samples"] for cost in parts["data"]["samples"]] == TINY["sample_sizes"]
    assert parts["data"]["start_up"]["problems"] == 20 and parts["data"]["cache"]["pictures"] == 256
    assert "readings" not in json.dumps(result) and {"device_name", "torch"} <= set(result["environment"])


def test_two_processes_share_the_batches(tmp_path):
    if not torch.distributed.is_gloo_available():
        pytest.skip("PyTorch is built without gloo")
    setting = inputs.Setting(8, 3, tmp_path)
    (tmp_path / "setting.pickle").write_bytes(pickle.dumps(setting))
    # steps of one process: the first warms up
    found = processes.train_in_children(tmp_path, "tiny", [[[0], [1], [2, 3, 4], [5, 6, 7]]], 2)
    assert found["count"] == 6 and found["seconds"] > 0


def test_samples_on_disk_have_the_columns_of_stage_dataset(words, tmp_path):
    from datasets import Dataset

    from mmcot.training.data.problems import load_problems
    from mmcot.training.stages.samples import stage_dataset

    prepared = stage_dataset(load_problems("embedded:n=4", "train"), MMCoTProcessor(None, words[0]), "rationale")
    data.write_samples(tmp_path / "samples.arrow", 2500)
    samples = Dataset.from_file(str(tmp_path / "samples.arrow"))
    assert len(samples) == 2500 and set(samples.column_names) == set(prepared.column_names) - {"images"}
    drawn = inputs.draw_lengths(2500)
    for number in (0, 999, 1000, 2499):
        row = samples[number]
        assert len(row["input_ids"]) == row["length"] == drawn[number].source
        assert len(row["labels"]) == row["target_length"] == drawn[number].target


def test_a_model_that_is_trained_again_is_trained_in_the_same_precision(tmp_path):
    """accelerate's mark once stayed when its autocast went: all readings but the first were in float32."""
    setting = inputs.Setting(8, 3, tmp_path)
    model = inputs.make_model("tiny")
    for bf16 in (True, True, False, True):
        seen = []
        handle = (
            model.encoder.block[0]
            .layer[0]
            .SelfAttention.q.register_forward_hook(lambda module, given, output, seen=seen: seen.append(output.dtype))
        )
        _, trainer = train.timed_training(model, setting, [[0, 1], [2, 3]], use_cpu=True, bf16=bf16)
        handle.remove()
        assert trainer.args.bf16 == bf16 and set(seen) == {torch.bfloat16 if bf16 else torch.float32}
        assert not {"forward", "_original_forward", "_is_accelerate_prepared"} & set(vars(model))


def test_the_wait_for_a_file_ends_with_the_process(tmp_path):
    taken = generate.seconds_until(tmp_path / "there", "-c", f"open({str(tmp_path / 'there')!r}, 'w')")
    assert 0 < taken < 60
    with pytest.raises(RuntimeError, match="no such thing"):
        generate.seconds_until(tmp_path / "never", "-c", "raise ValueError('no such thing')")
    with pytest.raises(RuntimeError, match="ended"):
        generate.seconds_until(tmp_path / "never", "-c", "")


def test_failure_of_a_process_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="AttributeError.*nothing"):
        children.found_in_child("json:nothing", tmp_path / "out")


def test_what_cannot_be_measured_says_why(monkeypatch):
    assert "two cores" in processes.benchmark_processes("tiny", torch.device("cuda"), None)["left_out"]
    monkeypatch.setattr(data.shutil, "disk_usage", lambda path: argparse.Namespace(free=0))
    assert "room" in data.sample_costs(None, 10)["left_out"]


def test_table_between_the_markers(result, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- speed:begin -->\nold\n<!-- speed:end -->\nafter\n")
    (tmp_path / "one.json").write_text(json.dumps(result))
    args = options("all", write_readme=str(readme), results=[str(tmp_path / "one.json")])
    assert command.run(args) == 0
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    ratio = result["shapes"]["tiny"]["generate"]["arms"]["mmcot predict, float32"]["ratio"]["median"]
    assert f"**{ratio:.1f} (" in text
    with pytest.raises(ValueError, match="speed:begin"):
        table.write_table(tmp_path / "one.json", [result])


@pytest.mark.parametrize("option", ["repeats", "slots", "questions"])
def test_numbers_that_make_no_sense(option):
    with pytest.raises(UserError, match=f"--{option} 0"):
        command.run(options("train", **{option: 0}))
