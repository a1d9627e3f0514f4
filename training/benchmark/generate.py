"""Both stages, timed in arms that take turns: the published project's way, and what this package ships.

`original` pads sources to 512, computes in fp32 with materialised attention, generates in unsorted batches of the
recipe's size without a cache until the longest row of a batch ends, one stage after the other, with the text written,
read and tokenised in between, and generates the answer too. `mmcot predict` is `predict`, from problem records and a
feature cache to a finished file, in float32, int8 and, where the device has it, bfloat16; `engine alone` the same work
in float32 on inputs that are tokens already; `pipeline` what `load_pipeline` gives, on text alone.

Random weights don't know when to end: in all arms each rationale gets the length of a real one, at most
`max_new_tokens`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from mmcot.training.benchmark import measure
from mmcot.training.benchmark.children import QUIET
from mmcot.training.benchmark.inputs import TEST_SIZE, Setting, make_model
from mmcot.training.benchmark.train import PADDED
from mmcot.training.inference import decoder
from mmcot.training.inference.engine import TwoStageWeights, answer_questions
from mmcot.training.inference.precision import has_native_bf16
from mmcot.training.inference.predict import load_pipeline, predict

ORIGINAL_BATCH = 8
PIPELINE_BATCH = 64
ANSWER_TOKENS = 8  # of "The answer is (B)."


class EndAt(LogitsProcessor):
    """Lets each row end at its own length: the end token there, and none before."""

    def __init__(self, lengths: list[int], end: int):
        self.lengths, self.end = torch.tensor(lengths), end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        now = (self.lengths <= input_ids.shape[1]).to(scores.device)  # input_ids begin with the start token
        scores[:, self.end] = torch.where(now, torch.inf, -torch.inf)
        return scores


@contextmanager
def forced_lengths(lengths: dict[str, int]) -> Iterator[None]:
    """Within the block the decoder's rows end at these lengths: of their ids, or, where rows are numbered as the
    pipeline does it, in the order of `lengths`."""
    in_order, whole = iter(lengths.values()), decoder.Slots

    class ForcedSlots(whole):
        def admit(self, rows):
            super().admit(rows)
            own = {key: lengths[key] if key in lengths else next(in_order) for key, *_ in rows}
            self.limits = [own.get(key, limit) for key, limit in zip(self.keys, self.limits, strict=True)]

        def step(self, next_logits, ends):
            super().step(next_logits, ends)
            self.finished_rows[:] = False

    decoder.Slots = ForcedSlots
    try:
        yield
    finally:
        decoder.Slots = whole


class OriginalInference:
    """The published project's two runs of prediction on our network."""

    def __init__(self, two_stage, shape: str, setting: Setting, device: torch.device, lengths: dict[str, int]):
        self.setting, self.device, self.lengths = setting, device, lengths
        self.features = setting.original_features()
        self.stages = torch.nn.ModuleDict()
        for stage in ("rationale", "answer"):
            model = make_model(shape, stage, attention="eager", features=setting.kind).to(device).eval()
            model.load_state_dict(two_stage.get_stage(stage).state_dict())
            self.stages[stage] = model

    def answer(self, problems: list[dict]) -> None:
        batches = [problems[first : first + ORIGINAL_BATCH] for first in range(0, len(problems), ORIGINAL_BATCH)]
        written = [self._generate("rationale", batch, [self.lengths[p["id"]] for p in batch]) for batch in batches]
        for batch, rationales in zip(batches, written, strict=True):
            self._generate("answer", batch, [ANSWER_TOKENS] * len(batch), rationales)

    def _generate(self, stage: str, problems: list[dict], lengths: list[int], rationales=None) -> list[str]:
        ids = torch.zeros(len(problems), PADDED, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, problem in enumerate(problems):
            rationale = None if rationales is None else rationales[i]
            source = torch.tensor(self.setting.processor.encode(problem, stage, rationale=rationale)["input_ids"])
            ids[i, : len(source)], mask[i, : len(source)] = source, 1
        images = self.setting.original_images([problem["id"] for problem in problems], self.features)
        model = self.stages[stage]
        written = model.generate(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            image_features=images.to(self.device),
            use_cache=False,
            do_sample=False,
            max_new_tokens=max(lengths),
            logits_processor=LogitsProcessorList([EndAt(lengths, model.config.eos_token_id)]),
        )
        tokenizer = self.setting.processor.tokenizer
        size = len(tokenizer)  # the network's vocabulary is larger: ids that have words
        known = torch.where(written < size, written, written % (size - 1000) + 1000)
        return tokenizer.batch_decode(known, skip_special_tokens=True)


def two_stage_repository(folder: Path, shape: str, setting: Setting, **settings) -> Path:
    """A folder as `save_pretrained` writes it, of a two-stage model with random weights."""
    from mmcot import MMCoTModel

    stages = [make_model(shape, stage, seed, **settings) for seed, stage in enumerate(("rationale", "answer"))]
    MMCoTModel.from_stages(*stages, setting.processor).save_pretrained(folder)
    return folder


def benchmark_generation(shape: str, device: torch.device, options) -> dict:
    """The figures of `mmcot benchmark generate`."""
    from datasets import Dataset

    with tempfile.TemporaryDirectory(prefix="mmcot-benchmark-") as name:
        folder, slots = Path(name), options.slots
        setting = Setting(options.questions, options.pictures, folder, options.features)
        problems = setting.problems
        lengths = {row["id"]: min(row["target_length"], options.max_new_tokens) for row in setting.rows}
        longest = max(lengths.values())
        table = Dataset.from_list(problems)
        text_only = [{**problem, "images": []} for problem in problems]
        repository = two_stage_repository(folder / "repository", shape, setting, features=options.features)
        text_repository = two_stage_repository(folder / "text-alone", shape, setting, image_feature_size=None)
        model, pipeline = load_pipeline(repository, device).model, load_pipeline(text_repository, device)
        plain = pipeline.model
        original = OriginalInference(model, shape, setting, device, lengths)
        dtypes = ["float32", *(["bfloat16"] if has_native_bf16(device.type) else [])]
        dtypes += ["int8"] if device.type == "cpu" else []
        inputs = list(_tokens(problems, setting, slots))
        text = [(keys, {name: value for name, value in own.items() if "image" not in name}) for keys, own in inputs]

        def timed(work, count: int = len(problems)) -> dict:
            with forced_lengths(lengths):
                return {"count": count, "seconds": measure.seconds(work, device)}

        def original_way(turn: int) -> dict:
            count = min(options.original_questions, len(problems))
            first = turn * count % (len(problems) - count + 1)
            return timed(lambda: original.answer(problems[first : first + count]), count)

        def to_file(dtype: str, turn: int) -> dict:
            path = folder / f"predictions-{time.time_ns()}.jsonl"
            common = {"features": setting.cache, "batch_size": slots, "max_new_tokens": longest, "dtype": dtype}
            return timed(lambda: predict(model, table, path, device=device, **common))

        def engine(model, batches) -> dict:
            weights = TwoStageWeights(model, torch.float32, packed=True)
            options = {"max_new_tokens": longest, "slots": slots, "weights": weights}
            return timed(lambda: [*answer_questions(model, batches, **options)])

        def by_pipeline(turn: int) -> dict:
            return timed(lambda: pipeline(text_only, batch_size=PIPELINE_BATCH, max_new_tokens=longest))

        arms = [
            measure.Arm("original", original_way, original.stages),
            *(measure.Arm(f"mmcot predict, {dtype}", partial(to_file, dtype), model) for dtype in dtypes),
            measure.Arm("engine alone", lambda turn: engine(model, inputs), model),
            measure.Arm("engine alone, plain T5", lambda turn: engine(plain, text), plain),
            measure.Arm(f"pipeline, batch_size={PIPELINE_BATCH}", by_pipeline, plain),
        ]
        found, failed = measure.take_turns(arms, options.repeats, device, options.deadline)
        return {
            "features": options.features,
            "max_new_tokens": options.max_new_tokens,
            "mean_rationale_tokens": float(np.mean(list(lengths.values()))),
            "slots": slots,
            "arms": found,
            "failed": failed,
            "predict_over_engine": _between(found, "mmcot predict, float32", "engine alone"),
            "time_over_plain_t5": _between(found, "engine alone, plain T5", "engine alone"),
            "test_set_seconds": TEST_SIZE / max(found[f"mmcot predict, {d}"]["per_second"]["median"] for d in dtypes),
            "single_question": {
                dtype: latency(load_pipeline(text_repository, device, dtype), text_only, lengths, device, options)
                for dtype in dtypes
            },
            "start": start(repository, text_only, folder, device),
        }


def _tokens(problems: list[dict], setting: Setting, slots: int):
    """(keys, inputs) of batches, longest first, as `predict` makes them."""
    by_length = sorted(problems, key=lambda problem: -len(problem["question"]))
    for first in range(0, len(by_length), slots):
        batch = by_length[first : first + slots]
        inputs = dict(setting.processor(batch))
        inputs.update(setting.cache.collate([setting.keys[problem["id"]] for problem in batch]))
        yield [problem["id"] for problem in batch], inputs


def _between(found: dict, one: str, other: str) -> dict[str, float]:
    """One arm's rate over another's, pair by pair."""
    readings = (found[name]["readings"] for name in (one, other))
    return measure.spread([measure.rate(a) / measure.rate(b) for a, b in zip(*readings, strict=True)])


def latency(pipeline, problems: list[dict], lengths: dict[str, int], device: torch.device, options) -> dict:
    """One question alone, both stages, by the pipeline."""
    typical = sorted(problems, key=lambda problem: lengths[problem["id"]])[len(problems) // 2]
    tokens = lengths[typical["id"]]

    def ask() -> None:
        with forced_lengths({typical["id"]: tokens}):
            pipeline(typical, max_new_tokens=tokens)

    ask()
    taken = [measure.seconds(ask, device) for _ in range(3 * options.repeats)]
    return {"seconds": measure.spread(taken), "rationale_tokens": tokens}


def start(repository: Path, problems: list[dict], folder: Path, device: torch.device) -> dict[str, float]:
    """Seconds from the start of `mmcot predict` on one question to its predictions file, files in the page cache; and
    those of a process that only imports what a T5 and a data set need of the libraries."""
    (folder / "one.jsonl").write_text(json.dumps(problems[0]) + "\n", encoding="utf-8")
    taken = []
    for turn in range(2):
        output = folder / f"start-{turn}.jsonl"
        options = ("--output", output, "--max-new-tokens", "32", "--device", device.type, "--quiet")
        command = ("predict", repository, folder / "one.jsonl", *options)
        taken.append(seconds_until(output, "-m", "mmcot.training.cli", *map(str, command)))
    return {"seconds": taken[-1], "libraries": seconds_until(None, "-c", LIBRARIES)}


# what takes most of the start, by a process like the command's
LIBRARIES = """from mmcot.training.cli import lighten_process; lighten_process()
import datasets; from transformers import T5ForConditionalGeneration"""


def seconds_until(output: Path | None, *arguments: str) -> float:
    """Until a process of Python has written a file, or, without one, has ended.

    Raises:
        RuntimeError: it ended without it; the message is what it said last.
    """
    begin, took = time.perf_counter(), None
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log, env={**os.environ, **QUIET}) as process,
    ):
        while process.poll() is None:
            if took is None and output is not None and output.exists():
                took = time.perf_counter() - begin
            time.sleep(0.005)
        took = time.perf_counter() - begin if took is None else took
        log.seek(0)
        said = log.read().decode(errors="replace").strip()
    if process.returncode or (output is not None and not output.exists()):
        raise RuntimeError(said.splitlines()[-1] if said else f"a process of the benchmark ended: {arguments}")
    return took
