"""The benchmark: its inputs are like ScienceQA's, its arithmetic is right, both arms compute the same."""

import argparse
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from packaging import version

from mmcot import MMCoTProcessor
from mmcot.training.benchmark import generate, inputs, measure, run, table, train
from mmcot.training.commands import benchmark as command

TINY = {
    "shape": ["tiny"],
    "device": "cpu",
    "repeats": 1,
    "loss_steps": 2,
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
        patch.setattr(train, "make_tokenizer", lambda: words)
        yield


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


@pytest.mark.skipif(
    version.parse(torch.__version__) < version.parse("2.15"), reason="older PyTorch counts other operations"
)
def test_operations_are_those_that_pytorch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    model = inputs.make_model("tiny", attention="eager").eval()
    model.encoder.fusion.forward = _with_attention(model.encoder.fusion.forward)
    source, target, patches = 40, 24, 9
    ids = torch.randint(2, 100, (1, source))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(
            input_ids=ids, labels=torch.randint(2, 100, (1, target)), image_features=torch.randn(1, patches, 1024),
            use_cache=False,
        )  # fmt: skip
    ours = measure.forward_flops(model.config, source, target, patches)
    # a decoder's attention is computed whole and half of it masked
    masked = 2 * model.config.num_decoder_layers * target * target * 32
    assert ours + masked == pytest.approx(counter.get_total_flops(), rel=1e-3)


def _with_attention(forward):
    return lambda *args, **kwargs: forward(*args, **{**kwargs, "output_attentions": True})


def test_rows_end_at_their_length():
    processor = generate.EndAt([2, 4], end=1)
    ended = [
        processor(torch.zeros(2, step, dtype=torch.long), torch.randn(2, 9)).argmax(-1).eq(1).tolist()
        for step in range(1, 6)
    ]
    assert [row for row, _ in ended] == [False, True, True, True, True]
    assert [row for _, row in ended] == [False, False, False, True, True]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "train.json"
    run.benchmark(options("train", json=str(path)))
    return json.loads(path.read_text())


def test_losses_of_both_arms_agree(trained):
    assert trained["train"]["loss_curves"]["largest_relative_difference"] < 1e-4


def test_figures_of_training(trained):
    train = trained["train"]
    assert set(train["ratio"]) == {"median", "min", "max"} and train["ratio"]["median"] > 1
    for arm in train["arms"].values():
        assert arm["real_tokens_per_second"]["median"] <= arm["padded_tokens_per_second"]["median"]
        assert arm["seconds_per_epoch"]["median"] == pytest.approx(12726 / arm["samples_per_second"]["median"])
        assert 0 < arm["flops_utilisation_of_real_tokens"]["median"] < 1 and "left out" in arm["warm_up"]
    assert {"device_name", "torch", "transformers"} <= set(trained["environment"])


def test_one_vector_gives_the_losses_of_512_repeated(tmp_path):
    _, samples, features, cache, _ = setting = train.setting(6, 3, tmp_path, "resnet")
    processor, device = setting[0], torch.device("cpu")
    original = train.OriginalTraining("tiny", samples, features, device, 2, "resnet")
    assert original.features.shape == (3, 512, 2048) and cache.collate([["picture 0"]])["image_features"].shape[1] == 1
    ours = train.OurTraining(
        "ours", "tiny", samples, cache, processor, device, tmp_path, batch_size=2, features="resnet"
    )
    curves = train.loss_curves(original, ours, 3)
    assert len(curves["ours"]) == 3 and curves["largest_relative_difference"] < 1e-4


def test_bf16_is_what_the_steps_compute_in(tmp_path):
    processor, samples, _, cache, _ = train.setting(6, 3, tmp_path)
    arm = train.OurTraining(
        "ours", "tiny", samples, cache, processor, torch.device("cpu"), tmp_path, batch_size=2, bf16=True
    )
    seen = []
    arm.model.decoder.block[0].layer[0].SelfAttention.q.register_forward_hook(lambda *hook: seen.append(hook[2].dtype))
    arm.run(arm.batches(0, 6))
    assert set(seen) == {torch.bfloat16}


def test_batches_of_a_run_have_the_mean_of_the_epoch(tmp_path):
    processor, samples, _, cache, _ = train.setting(200, 3, tmp_path)
    own = ("tiny", samples, cache, processor, torch.device("cpu"), tmp_path)
    mean = np.mean(samples["length"])
    for arm in (
        train.OurTraining("by number", *own, batch_size=5),
        train.OurTraining("by tokens", *own, tokens_per_batch=600),
    ):
        epoch = arm.batches(0, len(samples))
        assert sorted(sum(epoch, [])) == list(range(200)) and arm.batches(1, 200) != epoch
        part = sum(arm.batches(0, 60), [])
        assert 40 <= len(part) <= 80 and np.mean([samples[i]["length"] for i in part]) == pytest.approx(mean, rel=0.15)


def test_repeats_stop_when_the_time_is_up():
    train = run.benchmark(options("train", seconds=0, repeats=3, loss_steps=0))["train"]
    assert {arm["repeats"] for arm in train["arms"].values()} == {1}


def test_shapes_stand_side_by_side(monkeypatch):
    monkeypatch.setitem(inputs.SHAPES, "other", inputs.SHAPES["tiny"])
    result = run.benchmark(options("train", shape=["tiny", "other"], loss_steps=0))
    assert result["train"]["shape"] == "tiny"
    assert [one["train"]["shape"] for one in result["more_shapes"]] == ["other"]
    assert table.describe(result).count("training, original") == 4


def test_figures_of_generation():
    generate = run.benchmark(options("generate"))["generate"]
    assert set(generate["ratio"]) == {"median", "min", "max"}
    assert generate["mean_rationale_tokens"] <= 3 and generate["single_question"]["seconds"]["median"] > 0


def test_table_between_the_markers(trained, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- speed:begin -->\nold\n<!-- speed:end -->\nafter\n")
    (tmp_path / "one.json").write_text(json.dumps(trained))
    args = options("all", write_readme=str(readme), results=[str(tmp_path / "one.json")])
    assert command.run(args) == 0
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert f"{trained['train']['ratio']['median']:.1f}" in text
    with pytest.raises(ValueError, match="speed:begin"):
        table.write_table(tmp_path / "one.json", [trained])


def test_nothing_needs_datasets_or_evaluate():
    code = (
        "import sys; sys.modules['datasets'] = sys.modules['evaluate'] = None\n"
        "from mmcot.training.benchmark import data, generate, run, train\n"
        "from mmcot.training.features import cache, extract\n"
        "from mmcot.training.inference import engine\n"
        "from mmcot.training.stages import samples, trainer\n"
        "from mmcot import MMCoTModel\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
