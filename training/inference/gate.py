"""The fusion's gate over a data set: how much of each token's state the picture makes up, by skill.

A token's gate is the mean over the state's values of `sigmoid(W_g [H; A])` (arXiv 2302.00923, section 4.2): 0 leaves
the text as it is, 1 replaces it by what the token's attention found in the picture. Without one the gate isn't 0:
the zero patch has a projection of its own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError, write_json
from mmcot.training.evaluation.hallucination import written_rationale
from mmcot.training.evaluation.predictions import read_header
from mmcot.training.evaluation.reading import read_predictions
from mmcot.training.inference.predict import load_pipeline, model_name, open_features, reader

BINS = 20
QUANTILES = (5, 25, 50, 75, 95)
FEWEST = 5  # occurrences of a token that is listed
LISTED = 20


def save_gate(
    model,
    problems,
    predictions: str | Path,
    output: str | Path,
    *,
    batch_size: int = 64,
    device=None,
    features=None,
    blank_images: bool = False,
) -> dict[str, Any]:
    """Reads the questions once more by the encoders, the answer stage with the rationales that were predicted.

    Args:
        model: folder, Hub id, or model in memory.
        problems: a Dataset of problem records.
        predictions: what this model predicted of them (`predict`).
        output: JSON file; it is what this returns.
        features, blank_images: as in `predict`.

    Returns:
        `{"model", "source", "split", "n", "images", "stages": {"rationale", "answer": {"all", "with_picture",
        "without_picture": a distribution, "skills": {skill: a distribution}, "tokens": {"highest", "lowest":
        [{"token", "mean", "n"}]}}}, "questions": {id: {stage: mean}}}`, a distribution being `{"questions", "tokens",
        "mean", "std", "quantiles": {"5", …, "95"}, "histogram": 20 counts over [0, 1]}` of the tokens' gates.

    Raises:
        UserError: the model has no gate, or the predictions are another model's or of other questions.
    """
    pipeline = load_pipeline(model, device, "float32")
    stage_config = (pipeline.model.rationale if pipeline.two_stage else pipeline.model).config
    if not stage_config.has_fusion or stage_config.fusion_gate != "sigmoid":
        what = "has a fusion without a gate" if stage_config.has_fusion else "reads no pictures"
        raise UserError(f"--save-gate: this model {what}, so there is nothing to save")
    written = _written(pipeline, problems, predictions)
    cache = None if features is None or blank_images else open_features(features, pipeline)
    read = reader(pipeline.processor, cache)
    gates: dict[str, _Gates] = {}
    questions: dict[str, dict[str, float]] = {}
    records = _records(problems, blank_images)
    for start in range(0, len(records), batch_size):
        batch = records[start : start + batch_size]
        for stage, rows in _of_batch(pipeline, read, batch, written).items():
            of_stage = gates.setdefault(stage, _Gates(pipeline.processor.tokenizer))
            for record, (ids, values) in zip(batch, rows, strict=True):
                of_stage.add(record, ids, values)
                questions.setdefault(record["id"], {})[stage] = round(float(values.mean()), 6)
    facts = read_header(predictions)
    content = {
        "model": model_name(model),
        **{key: facts.get(key) for key in ("source", "split")},
        "images": "blank" if blank_images else "given",
        "n": len(records),
        "stages": {stage: of_stage.summary() for stage, of_stage in gates.items()},
        "questions": questions,
    }
    write_json(output, content)
    return content


def _written(pipeline, problems, predictions: str | Path) -> dict[str, str]:
    """id → rationale as it was predicted, by this model and of these questions."""
    from mmcot.training.inference.fingerprint import model_fingerprint

    found = read_header(predictions).get("fingerprint")
    if found is not None and found != model_fingerprint(pipeline.model):
        raise UserError(f"{predictions}: is by another model than the one whose gate is asked for")
    written = read_predictions(predictions)
    if set(written) != set(problems["id"][:]):
        raise UserError(f"{predictions}: has other questions than the {len(problems)} that are asked")
    return {id_: written_rationale(record) or "" for id_, record in written.items()}


def _records(problems, blank_images: bool) -> list[dict[str, Any]]:
    """Longest questions first, so that rows of like length share a batch."""
    records = [dict(problem) for problem in problems]
    records.sort(key=lambda record: -len(record["question"]) - len(record["context"] or ""))
    return [{**record, "images": []} for record in records] if blank_images else records


def _of_batch(pipeline, read, batch: list[dict], written: Mapping[str, str]) -> dict[str, list[tuple]]:
    """Stage → (token ids, gates) of each question, padding left out: arrays of as many numbers as it has tokens."""
    import torch

    model, tokenizer = pipeline.model, pipeline.processor.tokenizer
    inputs = dict(read(batch).to(model.device))
    names = ("pixel_values", "pixel_mask", "image_features", "image_attention_mask")
    images = {name: inputs[name] for name in names if inputs.get(name) is not None}
    sources = {}
    if pipeline.two_stage:
        images = model._image_inputs(*(images.get(name) for name in names))  # the backbone runs once for both stages
        sources["rationale"] = (model.rationale, inputs["input_ids"], inputs["attention_mask"])
        rationales = [written[record["id"]] for record in batch]
        ids = tokenizer(rationales, padding=True, return_tensors="pt")["input_ids"].to(model.device)
        prefix = (inputs["answer_input_ids"], inputs["answer_attention_mask"])
        sources["answer"] = (model.answer, *model._answer_source(*prefix, ids))
    else:
        sources["answer"] = (model, inputs["input_ids"], inputs["attention_mask"])
    found = {}
    for stage, (network, ids, mask) in sources.items():
        with torch.no_grad():
            encoded = network.get_encoder()(
                input_ids=ids, attention_mask=mask, **images, output_image_attention=True, return_dict=True
            )
        gates = encoded.image_gate.float().mean(-1).cpu().numpy()  # (batch, tokens)
        ids, own = ids.cpu().numpy(), mask.bool().cpu().numpy()
        found[stage] = [(ids[row][own[row]], gates[row][own[row]]) for row in range(len(batch))]
    return found


class _Gates:
    """Gates of one stage's tokens, by question."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.groups: dict[str, list] = {}
        self.skills: dict[str, list] = {}
        self.by_token: dict[int, list[float]] = {}

    def add(self, record: Mapping[str, Any], ids, values) -> None:
        self.groups.setdefault("all", []).append(values)
        self.groups.setdefault("with_picture" if record["images"] else "without_picture", []).append(values)
        skill = record.get("skill") or record.get("topic") or record.get("subject")
        self.skills.setdefault(skill or "not stated", []).append(values)
        for id_, value in zip(ids.tolist(), values.tolist(), strict=True):
            total = self.by_token.setdefault(id_, [0, 0.0])
            total[0] += 1
            total[1] += value

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {group: distribution(values) for group, values in self.groups.items()}
        found["skills"] = {skill: distribution(values) for skill, values in sorted(self.skills.items())}
        means = [
            {"token": self.tokenizer.convert_ids_to_tokens(id_), "mean": round(total / n, 6), "n": n}
            for id_, (n, total) in self.by_token.items()
            if n >= FEWEST
        ]
        means.sort(key=lambda item: (-item["mean"], item["token"]))
        found["tokens"] = {"highest": means[:LISTED], "lowest": means[::-1][:LISTED]}
        return found


def distribution(values: list) -> dict[str, Any]:
    """Of the gates of some questions' tokens: `values` has an array a question."""
    import numpy as np

    tokens = np.concatenate(values)
    counts, _ = np.histogram(tokens, bins=BINS, range=(0.0, 1.0))
    return {
        "questions": len(values),
        "tokens": len(tokens),
        "mean": round(float(tokens.mean()), 6),
        "std": round(float(tokens.std()), 6),
        "quantiles": {str(q): round(float(np.percentile(tokens, q)), 6) for q in QUANTILES},
        "histogram": counts.tolist(),
    }


def format_gate(content: Mapping[str, Any]) -> str:
    """What `save_gate` gave, as text."""
    lines = [
        f"{'gate: share of the picture in a token':<46}{'questions':>10}{'tokens':>9}{'mean':>7}{'5 %':>7}{'95 %':>7}"
    ]
    for stage, found in content["stages"].items():
        groups = {
            name.replace("_", " "): found[name] for name in ("all", "with_picture", "without_picture") if name in found
        }
        for name, row in {**groups, **found["skills"]}.items():
            lines.append(
                f"{f'{stage}: {name}':<46.46}{row['questions']:>10,}{row['tokens']:>9,}{row['mean']:>7.3f}"
                f"{row['quantiles']['5']:>7.3f}{row['quantiles']['95']:>7.3f}"
            )
    return "\n".join(lines)
