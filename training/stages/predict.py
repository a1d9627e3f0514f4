"""Predictions of one trained stage: rationales or answers of a split, written so that a cut-off run goes on."""

import copy
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmcot.training.common import drop_cut_line, read_jsonl, written_whole


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
    protocol: str = "generated",
    answer_mode: str = "score",
    blank_images: bool = False,
    bf16: bool = False,
    **generate_kwargs: Any,
) -> Path:
    """Writes one JSON line a sample: `id` and `rationale`, or `id`, `answer` (index), `generated` and `scores`.

    Samples are taken longest first, so that a batch holds rows of like length. Several processes share the work. What
    was written before an interruption is kept and gone on with; `out` appears when all is there.

    Args:
        samples: a `stage_dataset`.
        num_choices: id → number of choices.
        protocol: "teacher_forced" feeds the decoder the gold target and takes the most probable token at each
            position, as the original's v1 does.
        blank_images: without any picture.
    """
    import torch
    from accelerate import PartialState
    from tqdm import tqdm

    out = Path(out)
    if out.exists():
        return out
    state = PartialState()
    part = out.with_name(f"{out.name}.rank{state.process_index}of{state.num_processes}")
    part.parent.mkdir(parents=True, exist_ok=True)
    done = {record["id"] for record in read_jsonl(part)} if part.exists() else set()
    drop_cut_line(part)
    model = model.to(state.device).eval()
    predictor = _Predictor(model, processor, stage, features, protocol, answer_mode, blank_images, generate_kwargs)
    lengths, ids = samples["length"], samples["id"]
    order = sorted(range(len(samples)), key=lambda i: (-lengths[i], i))[state.process_index :: state.num_processes]
    todo = [i for i in order if ids[i] not in done]
    batches = [todo[i : i + batch_size] for i in range(0, len(todo), batch_size)]
    autocast = torch.autocast(state.device.type, torch.bfloat16, enabled=bf16)
    with open(part, "a", encoding="utf-8") as file, torch.no_grad(), autocast:
        rows = ([samples[i] for i in batch] for batch in batches)
        progress = tqdm(total=len(todo), desc=f"{stage}s", disable=not state.is_main_process)
        for record in predictor(rows, num_choices, batch_size):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            progress.update()
        progress.close()
    state.wait_for_everyone()
    if state.is_main_process:
        parts = sorted(out.parent.glob(f"{out.name}.rank*of{state.num_processes}"))
        records = {record["id"]: record for path in parts for record in read_jsonl(path)}
        with written_whole(out) as file:
            for id_ in ids:
                file.write(json.dumps(records[id_], ensure_ascii=False) + "\n")
        for path in out.parent.glob(f"{out.name}.rank*"):
            path.unlink()
    state.wait_for_everyone()
    return out


class _Predictor:
    """Turns batches of samples into records."""

    def __init__(self, model, processor, stage, features, protocol, answer_mode, blank_images, generate_kwargs):
        from mmcot.training.stages.samples import StageCollator

        self.model, self.processor, self.stage = model, processor, stage
        self.protocol, self.answer_mode = protocol, answer_mode
        self.blank_images = blank_images
        self.generate_kwargs = generate_kwargs
        self.collator = StageCollator(processor, features, with_images=model.config.has_fusion and not blank_images)

    def __call__(self, batches: Iterable[list[dict]], num_choices: dict[str, int], slots: int) -> Iterator[dict]:
        if self.stage == "rationale" and self.protocol == "generated" and self._decodes_plainly():
            yield from self._streamed_rationales(batches, slots)
            return
        for rows in batches:
            batch = self._inputs(rows)
            labels = batch.pop("labels")
            if self.stage == "rationale":
                for row, text in zip(rows, self._decode(self._rationale_ids(batch, labels)), strict=True):
                    yield {"id": row["id"], "rationale": text}
            else:
                yield from self._answers(rows, batch, labels, [num_choices[row["id"]] for row in rows])

    def _inputs(self, rows: list[dict]) -> dict:
        return {name: value.to(self.model.device) for name, value in self.collator(rows).items()}

    def _decodes_plainly(self) -> bool:
        from mmcot.training.inference.decoder import is_plain_greedy
        from mmcot.training.inference.decoder_weights import is_plain_t5

        self.config = copy.deepcopy(self.model.generation_config)
        unknown = self.config.update(**self.generate_kwargs)
        return not unknown and is_plain_greedy(self.config) and is_plain_t5(self.model)

    def _streamed_rationales(self, batches, slots: int) -> Iterator[dict]:
        """Rationales as they end; a row that has ended gives its place to the next."""
        from mmcot.training.inference.decoder import GreedyDecoder

        def encoded():
            for rows in batches:
                batch = self._inputs(rows)
                del batch["labels"]
                hidden = self.model.get_encoder()(**batch).last_hidden_state
                yield [row["id"] for row in rows], hidden, batch["attention_mask"]

        decoder = GreedyDecoder(self.model, slots)
        limit = self.config.max_new_tokens or self.config.max_length - 1
        for id_, ids in decoder.decode(encoded(), limit, self.model.config.eos_token_id):
            yield {"id": id_, "rationale": self._decode([ids])[0]}

    def _decode(self, ids) -> list[str]:
        return [text.strip() for text in self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _rationale_ids(self, batch, labels):
        if self.protocol == "teacher_forced":
            return self._forced_ids(batch, labels)
        return self.model.generate(**batch, **self.generate_kwargs)

    def _forced_ids(self, batch, labels):
        ids = self.model(**batch, labels=labels).logits.argmax(-1)
        return ids.masked_fill(labels == -100, self.processor.tokenizer.pad_token_id)

    def _answers(self, rows, batch, labels, num_choices: list[int]) -> list[dict[str, Any]]:
        import torch

        from mmcot.answers_mmcot import answer_in_one_stage
        from mmcot.processing import parse_answer

        token_ids = self.processor.answer_token_ids()
        counts = torch.tensor(num_choices, device=self.model.device)
        if self.protocol == "teacher_forced":
            texts, scores = self._decode(self._forced_ids(batch, labels)), None
        else:
            one_stage = self.processor.rationale_format is None
            generate_kwargs = self.generate_kwargs if one_stage else {"max_new_tokens": 16}
            output = answer_in_one_stage(self.model, **batch, **token_ids, num_choices=counts, **generate_kwargs)
            texts = self._decode(output.answer_ids)
            scores = output.option_log_probs
        records = []
        for i, (row, text, count) in enumerate(zip(rows, texts, num_choices, strict=True)):
            record = {"id": row["id"], "answer": parse_answer(text, count), "generated": text}
            if scores is not None:
                own = scores[i, :count].softmax(-1)
                record["scores"] = [round(p, 6) for p in own.tolist()]
                if self.answer_mode == "score":
                    record["answer"] = int(own.argmax())
            records.append(record)
        return records
