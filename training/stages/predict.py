"""Predictions of one trained stage of a run: rationales or answers of a split, in the form of `mmcot predict`.

Greedy rationales and scored options go through the engine, as they do in `mmcot predict`; what it doesn't take (beams,
sampling, adapters) goes to transformers' `generate`.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mmcot.training.common import progress_bar
from mmcot.training.evaluation.predictions import PredictionsWriter, header
from mmcot.training.inference.cost import count_parameters, seconds_a_question
from mmcot.training.inference.predict import prediction_record

MAX_ANSWER_TOKENS = 16  # "The answer is (B)." has 7


def predict_stage(
    model,
    processor,
    samples,
    stage: str,
    out: Path,
    *,
    num_choices: dict[str, int],
    batch_size: int = 16,
    features=None,
    rationales: dict[str, dict[str, Any]] | None = None,
    protocol: str = "generated",
    rationale_facts: Mapping[str, Any] | None = None,
    answer_mode: str = "score",
    blank_images: bool = False,
    dtype: str = "auto",
    source: str | None = None,
    split: str | None = None,
    **generate_kwargs: Any,
) -> Path:
    """Writes a predictions file: of the rationale stage `id`, `rationale` and `generated`; of the answer stage, or a
    one-stage model, whole predictions.

    Samples are taken longest first, so that a batch holds rows of like length. Several processes share the work. What
    was written before an interruption is kept and gone on with; `out` appears when all is there.

    Args:
        samples: a `stage_dataset`.
        num_choices: id → number of choices.
        rationales: id → record of the rationale stage's predictions, for the answer stage's file.
        protocol: "teacher_forced" feeds the decoder the gold target and takes the most probable token at each
            position, as the original's v1 does.
        rationale_facts: header of the rationale stage's file: how the rationales that the answer stage reads came
            about, and what they cost, which is part of the answers' cost.
        answer_mode: "score" the options' letters, or "generate" and parse the answer.
        blank_images: without any picture.
        dtype: of products and attention, as in `load_pipeline`.
        source, split: of the problems, for the file's header.
        generate_kwargs: of generation.
    """
    from accelerate import PartialState

    from mmcot.training.inference.answering import dtype_for
    from mmcot.training.inference.fingerprint import model_fingerprint

    out = Path(out)
    if out.exists():
        return out
    state = PartialState()
    model = model.to(state.device).eval()
    computed = dtype_for(model, dtype)
    predictor = _Predictor(
        model, processor, stage, features, protocol, answer_mode, blank_images, computed, generate_kwargs
    )
    before = rationale_facts or {}
    facts = header(
        "multimodal-cot",
        model=f"{out.parent.parent.name}/{out.parent.name}",
        fingerprint=model_fingerprint(model),
        parameters=count_parameters(model, rationale_facts),
        source=source,
        split=split,
        # what was fed a gold target anywhere on the way isn't generated
        protocol="teacher_forced" if "teacher_forced" in (protocol, before.get("protocol")) else protocol,
        mode="generate" if protocol == "teacher_forced" else answer_mode,
        decoding={"num_beams": 1, **generate_kwargs},
        dtype=str(computed).removeprefix("torch."),
        images="blank" if blank_images else "given",
        rationale_format=processor.rationale_format,
        stage=stage,
    )
    lengths, ids = samples["length"][:], samples["id"][:]
    order = sorted(range(len(samples)), key=lambda i: (-lengths[i], i))[state.process_index :: state.num_processes]
    low = computed == torch.bfloat16 != model.dtype
    autocast = torch.autocast(state.device.type, torch.bfloat16, enabled=low)  # where the engine doesn't answer
    with PredictionsWriter(out, facts, rank=state.process_index, num_processes=state.num_processes) as writer:
        todo, begun = [i for i in order if ids[i] not in writer.done], time.monotonic()
        batches = ([samples[i] for i in todo[start : start + batch_size]] for start in range(0, len(todo), batch_size))
        with (
            torch.no_grad(),
            autocast,
            progress_bar(total=len(todo), desc=f"{stage}s", shown=state.is_main_process) as progress,
        ):
            for id_, result in predictor(batches, num_choices, batch_size):
                if stage == "rationale":
                    generated = {"rationale": result["generated"]["rationale"]}
                    writer.add({"id": id_, "rationale": result["rationale"], "generated": generated})
                else:
                    writer.add(_with_rationale(prediction_record(id_, result), (rationales or {}).get(id_)))
                progress.update()
    state.wait_for_everyone()
    if state.is_main_process:
        seconds = seconds_a_question(begun, len(todo), state.num_processes, rationale_facts)
        writer.finish(ids, seconds_per_question=seconds)
    state.wait_for_everyone()
    return out


def _with_rationale(record: dict[str, Any], written: dict[str, Any] | None) -> dict[str, Any]:
    """The record of an answer with what the rationale stage wrote."""
    if written is None:
        return record
    generated = {**record["generated"], "rationale": written["generated"]["rationale"]}
    return {**record, "rationale": written["rationale"], "generated": generated}


class _Predictor:
    """Turns batches of samples into results as `MMCoTProcessor.post_process` gives them: yields (id, result)."""

    def __init__(self, model, processor, stage, features, protocol, answer_mode, blank_images, dtype, generate_kwargs):
        from mmcot.training.inference.answering import with_int8
        from mmcot.training.inference.decoder_weights import is_plain_t5
        from mmcot.training.inference.generation import greedy_config, use_engine
        from mmcot.training.stages.samples import StageCollator

        self.model, self.processor, self.stage, self.answer_mode = use_engine(model), processor, stage, answer_mode
        self.generate_kwargs, self.dtype = generate_kwargs, dtype
        self.collator = StageCollator(processor, features, with_images=model.config.has_fusion and not blank_images)
        ids = processor.answer_token_ids()
        self.option_ids = {name: ids[name] for name in ("option_prefix_ids", "option_letter_ids")}
        self.greedy = greedy_config(model, None, dict(generate_kwargs))
        if protocol == "teacher_forced":
            self.read = self._forced
        elif stage == "rationale":
            self.read = self._generated if self.greedy is None else self._written
        elif processor.rationale_format is None:
            self.read = self._in_one_stage
        else:
            scored = answer_mode == "score" and is_plain_t5(model)
            self.read = self._scored if scored else self._answered
        if dtype == torch.int8 and self.read not in (self._written, self._scored):
            self.model = with_int8(model)

    def __call__(self, batches: Iterable[list[dict]], num_choices: dict[str, int], slots: int) -> Iterator[tuple]:
        def inputs():
            for rows in batches:
                ids = [row["id"] for row in rows]
                counts = torch.tensor([num_choices[id_] for id_ in ids])
                yield ids, {**self.collator(rows), "num_choices": counts}

        for id_, outputs in self.read(inputs(), slots):
            yield id_, self.processor.post_process(outputs, [{"choices": [""] * num_choices[id_]}])[0]

    def _written(self, inputs, slots: int):
        from mmcot.training.inference.engine import StageWeights, write_texts

        options = {"max_new_tokens": self.greedy.max_new_tokens, "eos_token_id": self.greedy.eos_token_id}
        options["weights"] = StageWeights(self.model, self.dtype, packed=True)
        for id_, ids in write_texts(self.model, inputs, slots=slots, **options):
            yield id_, {"rationale_ids": [ids]}

    def _generated(self, inputs, slots: int):
        """Rationales by transformers' `generate`: beams, sampling, and networks that the engine doesn't take."""
        for keys, batch in inputs:
            batch = self._on_device(batch, without=("labels", "num_choices"))
            for id_, ids in zip(keys, self.model.generate(**batch, **self.generate_kwargs), strict=True):
                yield id_, {"rationale_ids": [ids]}

    def _scored(self, inputs, slots: int):
        from mmcot.training.inference.engine import StageWeights, score_options_of

        weights = StageWeights(self.model, self.dtype, packed=True)
        for keys, found in score_options_of(self.model, inputs, **self.option_ids, weights=weights):
            for id_, log_probs in zip(keys, found, strict=True):
                yield id_, {"option_log_probs": log_probs[None]}

    def _answered(self, inputs, slots: int):
        """Answers in words and scores, by the network's own passes."""
        from mmcot.answers_mmcot import score_options

        for keys, batch in inputs:
            batch = self._on_device(batch, without=("labels",))
            counts, mask = batch.pop("num_choices"), batch["attention_mask"]
            encoded = self.model.get_encoder()(**batch, return_dict=True)
            scores = score_options(self.model, encoded[0], mask, **self.option_ids, num_choices=counts)
            texts = [None] * len(keys)
            if self.answer_mode == "generate":
                texts = self.model.generate(
                    encoder_outputs=encoded, attention_mask=mask, max_new_tokens=MAX_ANSWER_TOKENS
                )
            for id_, log_probs, ids in zip(keys, scores, texts, strict=True):
                yield id_, {"option_log_probs": log_probs[None], "answer_ids": None if ids is None else [ids]}

    def _in_one_stage(self, inputs, slots: int):
        from mmcot.answers_mmcot import answer_in_one_stage

        options = {**self.option_ids, **self.generate_kwargs, "mode": self.answer_mode}
        names = ("rationale_ids", "answer_ids", "option_log_probs")
        for keys, batch in inputs:
            output = answer_in_one_stage(self.model, **self._on_device(batch, without=("labels",)), **options)
            for row, id_ in enumerate(keys):
                found = {name: output.get(name) for name in names}
                yield id_, {name: None if rows is None else rows[row : row + 1] for name, rows in found.items()}

    def _forced(self, inputs, slots: int):
        """The most probable token at each position of the gold target."""
        name = "rationale_ids" if self.stage == "rationale" else "answer_ids"
        for keys, batch in inputs:
            batch = self._on_device(batch, without=("num_choices",))
            ids = self.model(**batch).logits.argmax(-1).masked_fill(batch["labels"] == -100, -100)
            for id_, own in zip(keys, ids, strict=True):
                yield id_, {name: own[None]}

    def _on_device(self, batch: dict, without: tuple[str, ...]) -> dict:
        return {name: value.to(self.model.device) for name, value in batch.items() if name not in without}
