"""Inference of both stages, timed in two arms that take turns: the published project's way, and this package's.

`original` pads sources to 512, computes in fp32 with materialised attention, generates in unsorted batches of the
recipe's size without a cache until the longest row of a batch ends, one stage after the other, with the text written,
read and tokenised in between, and generates the answer too. `ours` is `answer_questions`: cached features, rows that
come and go, ids joined on the device, options scored by one decoder step; bf16 on a GPU.

Random weights don't know when to end: in both arms each rationale gets the length of a real one, at most
`max_new_tokens`.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from mmcot.training.benchmark import measure
from mmcot.training.benchmark.inputs import TEST_SIZE, make_model
from mmcot.training.benchmark.train import PADDED, as_the_original_has_them, setting

ORIGINAL_BATCH = 8
ANSWER_TOKENS = 8  # of "The answer is (B)."


class EndAt(LogitsProcessor):
    """Lets each row end at its own length: the end token there, and none before."""

    def __init__(self, lengths: list[int], end: int):
        self.lengths, self.end = torch.tensor(lengths), end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        now = (self.lengths <= input_ids.shape[1]).to(scores.device)  # input_ids begin with the start token
        scores[:, self.end] = torch.where(now, torch.inf, -torch.inf)
        return scores


class OriginalInference:
    """The published project's two runs of prediction on our network."""

    name = "original"

    def __init__(
        self,
        two_stage,
        shape: str,
        processor,
        features: torch.Tensor,
        device: torch.device,
        lengths,
        kind: str = "vit",
    ):
        self.processor, self.device, self.lengths = processor, device, lengths
        self.features = as_the_original_has_them(features, kind)
        self.stages = torch.nn.ModuleDict()
        for stage in ("rationale", "answer"):
            model = make_model(shape, stage, attention="eager", features=kind).to(device).eval()
            model.load_state_dict(two_stage.get_stage(stage).state_dict())
            self.stages[stage] = model
        self.model = self.stages

    def _generate(
        self, stage: str, problems: list[dict], rationales: list[str | None], lengths: list[int]
    ) -> list[str]:
        ids = np.zeros((len(problems), PADDED), dtype=np.int64)
        mask = np.zeros_like(ids)
        for i, (problem, rationale) in enumerate(zip(problems, rationales, strict=True)):
            source = self.processor.encode(problem, stage, rationale=rationale)["input_ids"]
            ids[i, : len(source)], mask[i, : len(source)] = source, 1
        blank = torch.zeros_like(self.features[0])
        images = [self.features[problem["row"]] if problem["picture"] else blank for problem in problems]
        model = self.stages[stage]
        written = model.generate(
            input_ids=torch.from_numpy(ids).to(self.device),
            attention_mask=torch.from_numpy(mask).to(self.device),
            image_features=torch.stack(images).to(self.device),
            use_cache=False,
            do_sample=False,
            max_new_tokens=max(lengths),
            logits_processor=LogitsProcessorList([EndAt(lengths, model.config.eos_token_id)]),
        )
        return self.processor.tokenizer.batch_decode(known(written, self.processor), skip_special_tokens=True)

    def run(self, problems: list[dict]) -> dict:
        def both():
            rationales = []
            for first in range(0, len(problems), ORIGINAL_BATCH):
                batch = problems[first : first + ORIGINAL_BATCH]
                lengths = [self.lengths[problem["id"]] for problem in batch]
                rationales += self._generate("rationale", batch, [None] * len(batch), lengths)
            for first in range(0, len(problems), ORIGINAL_BATCH):
                batch = problems[first : first + ORIGINAL_BATCH]
                own = rationales[first : first + ORIGINAL_BATCH]
                self._generate("answer", batch, own, [ANSWER_TOKENS] * len(batch))

        return {"questions": len(problems), "seconds": measure.seconds(both, self.device)}


def known(ids: torch.Tensor, processor) -> torch.Tensor:
    """Ids that the tokenizer has words for: the network's vocabulary is larger."""
    size = len(processor.tokenizer)
    return torch.where(ids < size, ids, ids % (size - 1000) + 1000)


class OurInference:
    """`answer_questions` over questions sorted by length, features read from the cache."""

    def __init__(self, name: str, two_stage, processor, cache, device, lengths, slots: int, bf16: bool = False):
        self.name, self.model, self.processor, self.cache = name, two_stage, processor, cache
        self.device, self.lengths, self.slots, self.bf16 = device, lengths, slots, bf16
        self.with_images = two_stage.rationale.config.image_feature_size is not None

    def _batches(self, problems: list[dict]):
        sources = sorted(problems, key=lambda problem: -problem["length"])
        for first in range(0, len(sources), self.slots):
            batch = sources[first : first + self.slots]
            inputs = dict(self.processor(batch))
            if self.with_images:
                keys = [[f"picture {problem['row']}"] if problem["picture"] else [] for problem in batch]
                inputs.update(self.cache.collate(keys))
            yield [problem["id"] for problem in batch], inputs

    def run(self, problems: list[dict]) -> dict:
        from mmcot.training.inference.engine import answer_questions

        def all_questions():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                longest = max(self.lengths.values())
                options = {"max_new_tokens": longest, "slots": self.slots, "lengths": self.lengths}
                for _ in answer_questions(self.model, self._batches(problems), **options):
                    pass

        return {"questions": len(problems), "seconds": measure.seconds(all_questions, self.device)}


def two_stages(shape: str, processor, device: torch.device, **settings):
    from mmcot import MMCoTModel

    stages = [make_model(shape, stage, seed, **settings) for seed, stage in enumerate(("rationale", "answer"))]
    return MMCoTModel.from_stages(*stages, processor).to(device).eval()


def benchmark_generation(shape: str, device: torch.device, options) -> dict:
    """The figures of `mmcot benchmark generate`."""
    gpu = device.type == "cuda"
    with tempfile.TemporaryDirectory(prefix="mmcot-benchmark-") as folder:
        kind = options.features
        processor, samples, features, cache, problems = setting(
            options.questions, options.pictures, Path(folder), kind
        )
        for number, (problem, row) in enumerate(zip(problems, samples.rows, strict=True)):
            problem.update(length=row["length"], row=number % options.pictures)
        lengths = {row["id"]: min(row["target_length"], options.max_new_tokens) for row in samples.rows}
        model = two_stages(shape, processor, device, features=kind)
        plain = two_stages(shape, processor, device, image_feature_size=None)
        slots = options.slots or (512 if gpu else 64)
        common = {"processor": processor, "cache": cache, "device": device, "lengths": lengths, "slots": slots}
        original = OriginalInference(model, shape, processor, features, device, lengths, kind)
        ours = OurInference("ours", model, **common, bf16=gpu)
        text_only = OurInference("ours, plain T5", plain, **common, bf16=gpu)
        readings = take_turns(original, (ours, text_only), problems, device, options)
        arms = {name: summary(taken) for name, taken in readings.items()}
        for name in (ours.name, text_only.name):
            arms[name]["ratio"] = ratio(readings[name], readings[original.name])
        cost = [1 / r for r in paired(readings[ours.name], readings[text_only.name])]
        return {
            "shape": shape,
            "features": kind,
            "max_new_tokens": options.max_new_tokens,
            "mean_rationale_tokens": float(np.mean(list(lengths.values()))),
            "slots": slots,
            "arms": arms,
            "ratio": arms[ours.name]["ratio"],
            "time_over_plain_t5": measure.spread(cost),
            "test_set_seconds": TEST_SIZE / arms[ours.name]["questions_per_second"]["median"],
            "single_question": latency(ours, problems, device, options),
        }


def take_turns(original, others, problems, device, options) -> dict[str, list[dict]]:
    """Readings of each arm; the first of each is warm-up and left out."""
    readings = {arm.name: [] for arm in (original, *others)}
    for turn in range(options.repeats + 1):
        if turn > 1 and measure.too_late(options.deadline):
            break
        for arm in (original, *others) if turn % 2 else (*others, original):
            first = turn * options.original_questions % max(1, len(problems) - options.original_questions + 1)
            work = problems[first : first + options.original_questions] if arm is original else problems
            if not turn and arm is not original:
                work = work[: max(1, len(work) // 4)]
            with measure.PeakMemory(device, arm.model) as memory:
                reading = arm.run(work)
            if turn:
                readings[arm.name].append({**reading, "peak_memory": memory.bytes})
    return readings


def paired(taken: list[dict], others: list[dict]) -> list[float]:
    """Questions a second over the others', pair by pair."""
    pairs = zip(taken, others, strict=True)
    return [own["questions"] / own["seconds"] / (o["questions"] / o["seconds"]) for own, o in pairs]


def ratio(taken: list[dict], original: list[dict]) -> dict[str, float]:
    return measure.spread(paired(taken, original))


def summary(taken: list[dict]) -> dict:
    rates = [reading["questions"] / reading["seconds"] for reading in taken]
    return {
        "questions_per_second": measure.spread(rates),
        "peak_memory_bytes": max((r["peak_memory"] for r in taken if r["peak_memory"]), default=None),
        "questions_timed": sum(reading["questions"] for reading in taken),
        "repeats": len(taken),
        "warm_up": "one run before the first repeat, left out",
    }


def latency(ours: OurInference, problems: list[dict], device: torch.device, options) -> dict:
    """One question alone, both stages; how near its decoding comes to reading the weights once a token."""
    typical = sorted(problems, key=lambda problem: ours.lengths[problem["id"]])[len(problems) // 2]
    ours.run([typical])
    times = [ours.run([typical])["seconds"] for _ in range(3 * options.repeats)]
    model = ours.model.rationale
    width = 2 if ours.bf16 else 4
    weights = width * sum(weight.numel() for weight in model.decoder.parameters())  # the output layer is its embedding
    tokens = ours.lengths[typical["id"]]
    least = tokens * weights / measure.memory_bandwidth(device)
    return {
        "seconds": measure.spread(times),
        "rationale_tokens": tokens,
        "weight_bytes_per_token": weights,
        "share_of_bandwidth_limit": least / measure.spread(times)["median"],
    }
