"""Model cards: a template of `mmcot.model_cards` filled from what was measured and from a model's configuration.

No figure stands in a card that is not in the results or the facts given here, and what was not measured is called so.
"""

import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.evaluation.accuracy import COLUMNS
from mmcot.training.hub.sections import baselines, data_size, example_section, needs, shown_problem, trained_on

# Stands in a card until `mmcot.training.hub.push` knows the repository and the commit.
REPOSITORY = '"path/to/this/folder"'

NOT_MEASURED = "not measured"
RATIONALE_SCORES = {
    "rougeL": "ROUGE-L",
    "rougeL_original": "ROUGE-L (original project's)",
    "bleu1": "BLEU-1",
    "bleu4": "BLEU-4",
    "similarity": "Sentence similarity",
}
# What is said of the data that weights were trained on, and the licence that they then carry.
DATASETS: dict[str, dict[str, str | None]] = {
    "scienceqa": {
        "kind": "scienceqa",
        "name": "ScienceQA",
        "id": "derek-thomas/ScienceQA",
        "license": "cc-by-nc-sa-4.0",
        "limitation": "Trained on English school questions of natural, social and language science (ScienceQA), whose "
        "lectures recur between training and test set; other questions are outside of what was tested.",
    },
    "embedded": {
        "name": "generated questions (toy data set of mmcot)",
        "id": None,
        "license": "apache-2.0",
        "limitation": "Trained on generated questions with drawn pictures, for demonstration and tests: of no use on "
        "photographs or on questions of other kinds.",
    },
}
PROTOCOLS = {
    "generated": "Protocol `generated`: every rationale was decoded freely before the answer was given.",
    "teacher_forced": "Protocol `teacher_forced`: the decoder was fed the gold rationale while its own was read off. "
    "Such figures serve comparison with tables made the same way, and say nothing of use on new questions.",
}
PURPOSES = {
    None: "It answers multiple-choice questions, with or without a picture, in one step.",
    "rationale": "It is the first of two stages: it writes the rationale that the answer stage reads.",
    "answer": "It is the second of two stages: it reads question and rationale, and answers.",
}
# how a one-stage model answers, and how a stage of two is called
ANSWER = """output = model.generate(**processor([problem]))
print(processor.post_process(output, [problem]))  # answer, scores, and what it wrote"""
WRITE = """inputs = processor([problem], {stage})
output = model.generate(**inputs, max_new_tokens=512)
print(processor.batch_decode(output, skip_special_tokens=True)[0])"""
CALLS = {
    None: ANSWER,
    "rationale": WRITE.format(stage='stage="rationale"'),
    "answer": WRITE.format(stage='stage="answer", rationales=["Solution: …"]'),
}
PIPELINE = """
The same as a pipeline:

```python
from transformers import pipeline

answer = pipeline("multimodal-cot", model={repository}, trust_remote_code=True)
print(answer(problem))
```
"""
CITATION = """```bibtex
@article{zhang2024multimodal,
  title   = {Multimodal Chain-of-Thought Reasoning in Language Models},
  author  = {Zhang, Zhuosheng and Zhang, Aston and Li, Mu and Zhao, Hai and Karypis, George and Smola, Alex},
  journal = {Transactions on Machine Learning Research},
  year    = {2024},
  note    = {arXiv 2302.00923},
}
```"""
CITATION_SCIENCEQA = """
```bibtex
@inproceedings{lu2022learn,
  title     = {Learn to Explain: Multimodal Reasoning via Thought Chains for Science Question Answering},
  author    = {Lu, Pan and Mishra, Swaroop and Xia, Tony and Qiu, Liang and Chang, Kai-Wei and Zhu, Song-Chun and
               Tafjord, Oyvind and Clark, Peter and Kalyan, Ashwin},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022},
}
```"""


def config_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that a model's `config.json` (or `config.to_dict()`) tells: what `model_card` calls `model_type`,
    `stage`, `prompt_formats`, `vision`, `use_caption` and `share_stages`."""
    rationale = config.get("rationale_config") or config
    answer = config.get("answer_config") or rationale
    stages = {"rationale": rationale, "answer": answer} if "rationale_config" in config else {"": config}
    formats = {name or config.get("stage") or "answer": stage.get("prompt_format") for name, stage in stages.items()}
    backbone, width = config.get("vision_config"), rationale.get("image_feature_size")
    vision = None
    if backbone:
        # timm's name, where it is a timm model
        names = [one.get("architecture") or one.get("model_type") for one in backbone.get("backbones") or [backbone]]
        vision = " + ".join(names)
    elif width:
        vision = f"features of width {width}, given from outside"
    return {
        "model_type": config["model_type"],
        "stage": config.get("stage"),
        "prompt_formats": {name: prompt_format for name, prompt_format in formats.items() if prompt_format},
        "vision": vision,
        "use_caption": any(stage.get("use_caption") for stage in stages.values()),
        "share_stages": bool(config.get("share_stages")),
    }


def model_card(results: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> str:
    """The text of a repository's `README.md`.

    Args:
        results: what `mmcot.training.evaluate_predictions` gives (accuracies and their 95 % intervals in %, questions
            by column, scores of the rationale, protocol, unparsable answers); None if nothing was measured.
        facts: about the model. `config_facts` gives those of its configuration; the others are `name`; `dataset`
            ("scienceqa", "embedded" or `{"name", "id", "license", "limitation"}` of another); `split` that the results
            are of (default "test"); `base_model`; `num_parameters`; `hyperparameters` (a dict, or one for each stage);
            `repo_id` and `revision`, for which `mmcot push` fills in its own where they are missing; and what
            `sections.py` writes of: `example`, `guessing`, `blank`, `sizes`, `machine`, `requirements`.

    Raises:
        UserError: the data and so the licence, the protocol of the results, or the kind of model is not known.
    """
    from huggingface_hub import ModelCard

    facts = {"name": "Multimodal-CoT", "stage": None, **facts}
    dataset = _dataset(facts.get("dataset"))
    templates = {"mmcot_two_stage": "two_stage.md", "mmcot": "one_stage.md"}
    if facts.get("model_type") not in templates:
        raise UserError(f"a card needs `model_type`, one of {', '.join(templates)}, not {facts.get('model_type')!r}")
    if results is not None and results.get("protocol") not in PROTOCOLS:
        raise UserError(f"results name their protocol, one of {', '.join(PROTOCOLS)}, not {results.get('protocol')!r}")
    repository = loading_arguments(facts.get("repo_id"), facts.get("revision"))
    card = ModelCard.from_template(
        _metadata(results, facts, dataset),
        template_path=str(resources.files("mmcot.model_cards") / templates[facts["model_type"]]),
        repository=repository,
        needs=needs(facts.get("requirements")),
        problem=shown_problem(facts.get("example")),
        example=example_section(facts.get("example")),
        name=facts["name"],
        purpose=PURPOSES[facts["stage"]],
        call=CALLS[facts["stage"]],
        pipeline=PIPELINE.format(repository=repository) if facts["stage"] is None else "",
        network=_network_table(facts),
        results=_results_section(results, dataset, facts),
        training=_training_section(dataset, facts),
        data_limitation=dataset["limitation"],
        licence=_licence(dataset),
        citation=CITATION + (CITATION_SCIENCEQA if dataset.get("kind") == "scienceqa" else ""),
    )
    return str(card)


def loading_arguments(repo_id: str | None, revision: str | None) -> str:
    """How a card's code names its repository: with the commit, where both are known."""
    if repo_id is None:
        return REPOSITORY
    return f'"{repo_id}"' + (f', revision="{revision}"' if revision else "")


def _licence(dataset: Mapping[str, str | None]) -> str:
    if dataset["license"] == "other":
        return f"Weights: not stated; ask those who own the data ({dataset['name']}). Code: apache-2.0."
    return f"Weights: {dataset['license']}, that of the data ({dataset['name']}). Code: apache-2.0."


def _dataset(dataset: str | Mapping[str, str | None] | None) -> Mapping[str, str | None]:
    if isinstance(dataset, Mapping) and dataset.get("name") and dataset.get("license"):
        other = "Trained on one data set; what it does on other questions was not tested."
        return {"id": None, "limitation": other, **dataset}
    if isinstance(dataset, str) and dataset in DATASETS:
        return DATASETS[dataset]
    known = ", ".join(DATASETS)
    raise UserError(f"a card needs `dataset`, one of {known} or a dict with `name` and `license`, not {dataset!r}")


def _table(rows: list[tuple], head: tuple) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines)


def _network_table(facts: Mapping[str, Any]) -> str:
    rows = []
    if "base_model" in facts:
        rows.append(("Started from", _starting_point(facts["base_model"])))
    rows.append(("Image features", facts.get("vision") or "none: text only"))
    rows.append(("Captions in the context", "yes" if facts.get("use_caption") else "no"))
    rows += [(f"Prompt format, {name} stage", text) for name, text in (facts.get("prompt_formats") or {}).items()]
    if facts["model_type"] == "mmcot_two_stage":
        rows.append(("Weights of the stages", "shared" if facts.get("share_stages") else "one set each"))
    if facts.get("num_parameters") is not None:
        rows.append(("Parameters", f"{facts['num_parameters']:,}"))
    return _table(rows, ("", ""))


def _starting_point(base) -> str:
    """A Hub id as it is; of a folder its last telling name, for nobody else has the path."""
    if base is None:
        return "new weights"
    if _is_hub_id(str(base)):
        return str(base)
    parts = [part for part in re.split(r"[/\\]", str(base)) if part not in ("", ".", "..")]
    telling = [part for part in parts if part not in ("rationale", "answer", "hub", "model", "output")]
    return telling[-1] if telling else "own weights"


def _results_section(results: Mapping[str, Any] | None, dataset: Mapping, facts: Mapping[str, Any]) -> str:
    if results is None:
        return f"Accuracy and quality of the rationales: {NOT_MEASURED}."
    columns = [column for column in COLUMNS if column in results["accuracy"]]
    intervals = results.get("ci95") or {}
    rows = [
        ("Accuracy (%)", *(f"{results['accuracy'][column]:.2f}" for column in columns)),
        ("95 % interval", *(_interval(intervals.get(column)) for column in columns)),
        ("Questions", *(results["n"][column] for column in columns)),
    ]
    scores = results.get("rationale") or {}
    named = [(RATIONALE_SCORES[key], f"{scores[key]:.2f}") for key in RATIONALE_SCORES if key in scores]
    unparsable = results.get("unparsable")
    parts = [
        f"Data: {dataset['name']}, split `{facts.get('split', 'test')}`. {PROTOCOLS[results['protocol']]}",
        _table(rows, ("", *columns)),
        *baselines(results, facts.get("guessing"), facts.get("blank")),
        _table(named, ("Rationale against the reference", "%"))
        if named
        else f"Quality of the rationales: {NOT_MEASURED}.",
    ]
    if unparsable is not None:
        counted = {"random": "as a random choice"}.get(results.get("unparsable_counted_as"), "as wrong")
        parts.append(f"Answers that name no choice: {unparsable}, counted {counted}.")
    return "\n\n".join(parts)


def _interval(bounds) -> str:
    return NOT_MEASURED if bounds is None else f"{bounds[0]:.2f} – {bounds[1]:.2f}"


def _training_section(dataset: Mapping, facts: Mapping[str, Any]) -> str:
    text = f"Data: {dataset['name']}" + (f" (`{dataset['id']}` on the Hub)." if dataset["id"] else ".")
    if facts["model_type"] == "mmcot_two_stage":
        how = "share one set of weights" if facts.get("share_stages") else "were trained apart"
        rationales = facts.get("rationales") or "the data's own"
        text += f" The stages {how}; the answer stage learned from {rationales} rationales."
    text += "".join(f" {sentence}" for sentence in (*data_size(facts.get("sizes")), *trained_on(facts.get("machine"))))
    hyperparameters = facts.get("hyperparameters")
    if not hyperparameters:
        return f"{text}\n\nHyper-parameters: not recorded."
    if not all(isinstance(values, Mapping) for values in hyperparameters.values()):
        hyperparameters = {"Value": hyperparameters}
    names = list(dict.fromkeys(name for values in hyperparameters.values() for name in values))
    rows = [(f"`{name}`", *(values.get(name, "") for values in hyperparameters.values())) for name in names]
    return f"{text}\n\n" + _table(rows, ("Hyper-parameter", *hyperparameters))


def _metadata(results: Mapping[str, Any] | None, facts: Mapping[str, Any], dataset: Mapping):
    """The card's `ModelCardData`, as the Hub reads it."""
    from huggingface_hub import EvalResult, ModelCardData

    base = facts.get("base_model")
    common = {
        "task_type": "question-answering",
        "task_name": "Multiple-choice question answering",
        "dataset_type": dataset["id"] or re.sub(r"\W+", "-", dataset["name"]).strip("-"),
        "dataset_name": dataset["name"],
        "dataset_split": facts.get("split", "test"),
    }
    evaluations = []
    for column in COLUMNS if results is not None else ():
        if column in results["accuracy"]:
            interval = (results.get("ci95") or {}).get(column)
            details = {"protocol": results["protocol"], "n": int(results["n"][column])}
            if interval is not None:
                details["ci95"] = [round(float(bound), 2) for bound in interval]
            name, value = f"Accuracy, {column} ({results['protocol']})", round(float(results["accuracy"][column]), 2)
            evaluations.append(
                EvalResult(**common, metric_type="accuracy", metric_name=name, metric_value=value, metric_args=details)
            )
    if results is not None and "rougeL" in (results.get("rationale") or {}):
        score, details = round(float(results["rationale"]["rougeL"]), 2), {"protocol": results["protocol"]}
        evaluations.append(
            EvalResult(**common, metric_type="rouge", metric_name="ROUGE-L", metric_value=score, metric_args=details)
        )
    data = ModelCardData(
        language="en",
        license=dataset["license"],
        library_name="transformers",
        pipeline_tag="image-text-to-text" if facts.get("vision") else "question-answering",
        tags=["multimodal-cot", "chain-of-thought", "mmcot"],
        datasets=[dataset["id"]] if dataset["id"] else None,
        base_model=str(base) if base and _is_hub_id(str(base)) else None,
        model_name=facts["name"],
        eval_results=evaluations or None,
    )
    if data.base_model is not None:
        data.base_model_relation = "finetune"
    if not evaluations:
        data.model_name = None  # only `model-index` uses it
    return data


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None
