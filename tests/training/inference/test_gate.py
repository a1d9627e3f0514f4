"""`mmcot predict --save-gate`: the model's own gates, counted by skill."""

import json

import numpy as np
import pytest
import torch

from mmcot.training.cli import main
from mmcot.training.common import UserError
from mmcot.training.data.problems import load_problems
from mmcot.training.inference.gate import distribution, save_gate

SOURCE = "embedded:n=10,skills=flower+tense"


@pytest.fixture(scope="module")
def saved(two_stage_repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate")
    command = ["predict", str(two_stage_repository), SOURCE, "--split", "test", "--output", str(folder / "p.jsonl")]
    command += ["--save-gate", str(folder / "gate.json"), "--batch-size", "4", "--device", "cpu", "--quiet"]
    assert main(command) == 0
    return folder, command


def test_gates_are_those_of_generate(saved, two_stage_repository):
    """Question by question, without padding: the mean of what `generate` gives out."""
    from mmcot import MMCoTModel, MMCoTProcessor
    from mmcot.training.evaluation.reading import read_predictions

    content = json.loads((saved[0] / "gate.json").read_text())
    written = read_predictions(saved[0] / "p.jsonl")
    model = MMCoTModel.from_pretrained(two_stage_repository).eval()
    processor = MMCoTProcessor.from_pretrained(two_stage_repository)
    for problem in load_problems(SOURCE, "test"):
        inputs = processor([problem])
        found = model.generate(**inputs, output_image_attention=True, max_new_tokens=12)
        gate = content["questions"][problem["id"]]
        assert gate["rationale"] == pytest.approx(found.rationale_image_gate.mean().item(), abs=1e-5)
        text = written[problem["id"]]["generated"]["rationale"]
        ids = processor.tokenizer([text], return_tensors="pt")["input_ids"]
        again = model.generate(**inputs, rationale_ids=ids, output_image_attention=True)
        assert gate["answer"] == pytest.approx(again.answer_image_gate.mean().item(), abs=1e-5)


def test_distributions_by_skill(saved, capsys):
    content = json.loads((saved[0] / "gate.json").read_text())
    assert (content["n"], content["split"], content["source"]) == (10, "test", SOURCE)
    for found in content["stages"].values():
        assert found["all"]["questions"] == 10 == sum(row["questions"] for row in found["skills"].values())
        assert found["with_picture"]["questions"] == found["without_picture"]["questions"] == 5
        assert (
            sum(found["all"]["histogram"])
            == found["all"]["tokens"]
            == sum(r["tokens"] for r in found["skills"].values())
        )
        quantiles = list(found["all"]["quantiles"].values())
        assert quantiles == sorted(quantiles) and 0 < quantiles[0] < found["all"]["mean"] < quantiles[-1] < 1
        high, low = found["tokens"]["highest"], found["tokens"]["lowest"]
        assert high[0]["mean"] >= high[-1]["mean"] >= low[0]["mean"] and all(row["n"] >= 5 for row in high)


def test_cut_off_behind_the_predictions_it_goes_on(saved, capsys):
    folder, command = saved
    before, content = (folder / "p.jsonl").stat().st_mtime_ns, (folder / "gate.json").read_text()
    (folder / "gate.json").unlink()
    assert main(command) == 0 and (folder / "gate.json").read_text() == content
    assert (folder / "p.jsonl").stat().st_mtime_ns == before
    assert main(command) == 2 and "is there already" in capsys.readouterr().err


def test_other_predictions_and_models_without_a_gate_are_refused(saved, two_stage_repository, tmp_path):
    from two_stage_models import make_stage

    from mmcot import MMCoTModel, MMCoTProcessor

    problems, file = load_problems(SOURCE, "test"), saved[0] / "p.jsonl"
    with pytest.raises(UserError, match="other questions than the 3"):
        save_gate(two_stage_repository, problems.select(range(3)), file, tmp_path / "g.json", device="cpu")
    processor = MMCoTProcessor.from_pretrained(two_stage_repository)
    for settings, message in (
        ({"vision_config": None}, "reads no pictures"),
        ({"fusion_gate": "none"}, "without a gate"),
        ({"num_layers": 1}, "by another model"),
    ):
        stages = [make_stage(processor, seed, **settings) for seed in (0, 1)]
        model = MMCoTModel.from_stages(*stages, processor)
        with pytest.raises(UserError, match=message):
            save_gate(model, problems, file, tmp_path / "g.json", device="cpu")
    assert not list(tmp_path.iterdir())


def test_one_stage_has_its_gate_too(tiny_tokenizer, tmp_path):
    from two_stage_models import make_stage

    from mmcot import MMCoTProcessor
    from mmcot.processing import image_processor_for
    from mmcot.training.inference.predict import predict

    processor = MMCoTProcessor(image_processor_for(64), tiny_tokenizer, None, "QCM-A", max_source_length=200)
    model = make_stage(processor, 0, prompt_format="QCM-A")
    model.processor = processor
    problems = load_problems(SOURCE, "test").select(range(4))
    predict(model, problems, tmp_path / "p.jsonl", device="cpu")
    content = save_gate(model, problems, tmp_path / "p.jsonl", tmp_path / "gate.json", device="cpu", batch_size=3)
    assert list(content["stages"]) == ["answer"] and content["stages"]["answer"]["all"]["questions"] == 4
    with torch.no_grad():
        inputs = processor([problems[0]])
        inputs.pop("num_choices")
        gate = model.get_encoder()(**inputs, output_image_attention=True, return_dict=True).image_gate
    assert content["questions"][problems[0]["id"]]["answer"] == pytest.approx(gate.mean().item(), abs=1e-5)


def test_a_distribution_by_hand():
    found = distribution([np.array([0.12, 0.32]), np.array([1.0])])
    assert (found["questions"], found["tokens"], found["mean"]) == (2, 3, pytest.approx(0.48))
    assert (
        found["histogram"][2] == found["histogram"][6] == found["histogram"][19] == 1
        and found["quantiles"]["50"] == 0.32
    )
