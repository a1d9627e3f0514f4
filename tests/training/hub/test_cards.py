"""Cards say what was measured, under which protocol, and nothing else."""

import re

import pytest
from huggingface_hub import ModelCard

from mmcot.training.hub.cards import NOT_MEASURED, REPOSITORY, config_facts, model_card

RESULTS = {
    "accuracy": {"NAT": 71.234567, "IMG": 68.0, "Avg": 73.4567},
    "n": {"NAT": 1357, "IMG": 2468, "Avg": 3579},
    "ci95": {"NAT": [66.111, 75.222], "Avg": [69.333, 77.444]},
    "rationale": {"rougeL": 91.919, "rougeL_original": 89.898, "bleu1": 87.878, "bleu4": 79.797},
    "protocol": "generated",
    "unparsable": 47,
}
TWO_STAGE = {"model_type": "mmcot_two_stage", "dataset": "scienceqa", "name": "tiny", "vision": "vit"}
ONE_STAGE = {"model_type": "mmcot", "dataset": "embedded", "name": "tiny"}


def load(text, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(text, encoding="utf-8")
    return ModelCard.load(path)


def numbers(text):
    return re.findall(r"\d+(?:\.\d+)?", text.replace(",", ""))


@pytest.mark.parametrize("facts", [TWO_STAGE, ONE_STAGE], ids=["two stages", "one stage"])
def test_every_figure_comes_from_the_results_or_the_facts(facts):
    facts = {**facts, "num_parameters": 223456789, "hyperparameters": {"learning_rate": 0.000123, "epochs": 19}}
    card = model_card(RESULTS, facts)
    allowed = {f"{score:.2f}" for part in ("accuracy", "rationale") for score in RESULTS[part].values()}
    allowed |= {f"{bound:.2f}" for bounds in RESULTS["ci95"].values() for bound in bounds}
    allowed |= {str(round(float(figure), 2)) for figure in allowed}  # as YAML writes it
    allowed |= {str(n) for n in RESULTS["n"].values()} | {"47", "95", "1", "4", "223456789", "0.000123", "19"}
    # what stands in a card that knows no figures at all: of arXiv, years, licences, "T5" and code, and nothing else
    allowed |= {"2302.00923", "2024", "2022", "4.0", "2.0", "5", "0", "2", "512"}
    assert set(numbers(card)) <= allowed
    for expected in ("71.23", "66.11 – 75.22", "3579", "91.92", "79.80", "223,456,789", "0.000123", "47"):
        assert expected in card
    assert f"| {NOT_MEASURED} |" in card  # IMG's interval isn't in the results


def test_nothing_measured_is_said_and_no_result_claimed(tmp_path):
    card = load(model_card(None, TWO_STAGE), tmp_path)
    assert NOT_MEASURED in card.text and "not recorded" in card.text
    assert card.data.eval_results is None and "model-index" not in card.data.to_dict()


def test_metadata(tmp_path):
    data = load(model_card(RESULTS, {**TWO_STAGE, "base_model": "declare-lab/flan-alpaca-base"}), tmp_path).data
    assert (data.license, data.library_name, data.language) == ("cc-by-nc-sa-4.0", "transformers", "en")
    assert data.datasets == ["derek-thomas/ScienceQA"] and data.pipeline_tag == "image-text-to-text"
    assert data.base_model == "declare-lab/flan-alpaca-base" and "multimodal-cot" in data.tags
    assert data.base_model_relation == "finetune"
    average = next(result for result in data.eval_results if "Avg" in result.metric_name)
    assert (average.metric_value, average.dataset_type, average.dataset_split) == (73.46, data.datasets[0], "test")
    assert average.metric_args == {"protocol": "generated", "n": 3579, "ci95": [69.33, 77.44]}
    assert {result.metric_type for result in data.eval_results} == {"accuracy", "rouge"}
    data = load(model_card(RESULTS, ONE_STAGE), tmp_path).data
    assert data.license == "apache-2.0" and data.datasets is None and data.pipeline_tag == "question-answering"


def test_protocol_is_named_and_demanded():
    forced = model_card({**RESULTS, "protocol": "teacher_forced"}, TWO_STAGE)
    assert "`teacher_forced`: the decoder was fed the gold rationale" in forced and "`generated`" not in forced
    with pytest.raises(ValueError, match="protocol"):
        model_card({**RESULTS, "protocol": None}, TWO_STAGE)


def test_data_and_its_licence_are_demanded():
    with pytest.raises(ValueError, match="dataset"):
        model_card(None, {"model_type": "mmcot"})
    with pytest.raises(ValueError, match="model_type"):
        model_card(None, {"model_type": "t5", "dataset": "embedded"})
    other = {"name": "Quiz", "license": "mit", "id": None}
    assert "Weights: mit" in model_card(None, {**ONE_STAGE, "dataset": other})


def test_usage_is_pinned_and_runs_as_python():
    card = model_card(None, {**TWO_STAGE, "repo_id": "me/model", "revision": "0123abc"})
    assert '"me/model", revision="0123abc", trust_remote_code=True' in card and REPOSITORY not in card
    unpinned = model_card(None, ONE_STAGE)
    assert REPOSITORY in unpinned and "<" not in unpinned
    for stage in (None, "rationale", "answer"):
        for text in (card, model_card(None, {**ONE_STAGE, "stage": stage})):
            blocks = re.findall(r"```python\n(.*?)```", text, re.S)
            compile("\n".join(blocks), "card", "exec")
            loads = text.count("_pretrained(") + text.count("= pipeline(")
            assert blocks and loads == max(text.count("revision="), text.count(REPOSITORY))
    assert 'pipeline("multimodal-cot"' not in model_card(None, {**ONE_STAGE, "stage": "rationale"})


def test_a_data_set_without_a_place_on_the_hub_has_a_plain_type(tmp_path):
    facts = {**ONE_STAGE, "dataset": {"id": None, "name": "mine (a toy)", "license": "mit"}}
    data = load(model_card(RESULTS, facts), tmp_path).data
    assert {result.dataset_type for result in data.eval_results} == {"mine-a-toy"}


def test_one_thread_is_not_several():
    import torch
    from transformers import TrainingArguments

    from mmcot.training.stages.fit import machine_facts

    before = torch.get_num_threads()
    try:
        for count, told in ((1, "1 thread)"), (2, "2 threads)")):
            torch.set_num_threads(count)
            assert told in machine_facts(TrainingArguments(use_cpu=True))["device"]
    finally:
        torch.set_num_threads(before)


def test_example_baselines_and_machine_are_told():
    example = {"question": "Which <b> colour?", "choices": ["red", "blue"], "context": "", "image": "example.png"}
    example |= {"answer": 1, "said": 1, "rationale": "It is\nblue."}
    machine = {
        "device": "a GPU",
        "processes": 2,
        "precision": "bf16",
        "time": "3 h 4 min",
        "versions": {"torch": "9.8"},
    }
    facts = {**TWO_STAGE, "example": example, "guessing": {"Avg": 41.25, "IMG": 37.75}, "machine": machine}
    facts |= {"blank": {"accuracy": {"IMG": 44.5}}, "sizes": {"train": (1200, 34)}, "requirements": ["torch>=7.6"]}
    card = model_card(RESULTS, facts)
    assert "![the picture of the question](example.png)" in card and "Which &lt;b> colour?" in card
    assert "> *Rationale:* It is blue." in card and "> *Answer:* (B) blue — right" in card
    assert "guessing 37.75 %, this model 68.00 %, the same model with its pictures blanked 44.50 %" in card
    assert "On all questions: guessing 41.25 %, this model 73.46 %." in card
    assert "`train` 1,200 (34 with a picture)" in card
    assert "Trained in 3 h 4 min with 2 processes on a GPU, bf16 (torch 9.8)." in card
    assert "Needs torch>=7.6 (`pip install -r requirements.txt`)" in card
    assert '"question": "Which <b> colour?"' in card.split("```python")[1]
    wrong = model_card(RESULTS, {**facts, "example": {**example, "said": None}})
    assert "> *Answer:* none — right would be (B)" in wrong


def test_folder_that_training_started_from_is_not_given_away(tmp_path):
    card = model_card(None, {**TWO_STAGE, "base_model": str(tmp_path / "t5-folder")})
    assert "| Started from | t5-folder |" in card and str(tmp_path) not in card


def test_configuration_tells_its_facts():
    stage = {"model_type": "mmcot", "prompt_format": "QCM-E", "stage": "rationale", "image_feature_size": 12}
    answer = {**stage, "prompt_format": "QCMG-A", "stage": "answer"}
    two = {"model_type": "mmcot_two_stage", "rationale_config": stage, "answer_config": answer, "share_stages": False}
    timm = {"model_type": "timm_wrapper", "architecture": "vit_tiny"}
    facts = config_facts({**two, "vision_config": timm})
    assert facts["prompt_formats"] == {"rationale": "QCM-E", "answer": "QCMG-A"} and facts["vision"] == "vit_tiny"
    assert "width 12" in config_facts(stage)["vision"] and config_facts(stage)["stage"] == "rationale"
    assert config_facts({"model_type": "mmcot"})["vision"] is None
    assert "| Prompt format, answer stage | QCMG-A |" in model_card(None, {**facts, "dataset": "scienceqa"})
