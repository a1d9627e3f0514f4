"""Both stages on text alone by other programs: the same plain T5, the same questions, the same number of tokens.

Every rationale has `max_new_tokens` tokens in every arm, so that nobody waits for the longest row of a batch; the
second stage reads question, rationale and `Answer:`, and writes one token behind the forced "The answer is (". Arms
take turns in one process; what isn't installed (extra `[peers]`) is left out with a word.

- `transformers`: `generate` on batches sorted by length, and one forward pass for the answer.
- `ours`: the engine on inputs that are tokens already, as the others have them; float32, int8 and, where the
  processor multiplies it itself, bfloat16.
- `CTranslate2`: float32 and int8, its own batching by length.
- `onnxruntime`: an export with keys and values cached, float32 and int8; batches sorted by length.
"""

import importlib.util
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmcot.training.benchmark import measure
from mmcot.training.benchmark.generate import forced_lengths, two_stage_repository
from mmcot.training.benchmark.inputs import Setting
from mmcot.training.inference.engine import TwoStageWeights, answer_questions
from mmcot.training.inference.precision import has_native_bf16
from mmcot.training.inference.predict import load_pipeline

MOST_QUESTIONS = 64  # eight arms take a while
STAGES = ("rationale", "answer")
Way = Callable[["Work"], list]  # answers everything; gives the rationales as it has them: ids or tokens
BASELINE = "transformers float32"


@dataclass
class Work:
    """What every arm is given: tokens of each question."""

    sources: list[list[int]]  # of the rationale stage
    prefixes: list[list[int]]  # of the answer stage, before the rationale
    suffix: list[int]  # behind it: `Answer:` and the end token
    answer: list[int]  # "The answer is ("
    tokens: int  # of a rationale
    batch: int

    def alone(self, number: int) -> "Work":
        return Work([self.sources[number]], [self.prefixes[number]], self.suffix, self.answer, self.tokens, 1)

    def answer_sources(self, rationales: list[list[int]]) -> list[list[int]]:
        pairs = zip(self.prefixes, rationales, strict=True)
        return [[*prefix, *rationale, *self.suffix] for prefix, rationale in pairs]


def benchmark_peers(shape: str, device: torch.device, options) -> dict:
    """The figures of `mmcot benchmark peers`; on a CPU.

    Raises:
        UserError: on a GPU, where these programs aren't compared.
    """
    from mmcot.training.common import UserError

    if device.type != "cpu":
        raise UserError("benchmark peers compares on a CPU: give --device cpu")
    with tempfile.TemporaryDirectory(prefix="mmcot-benchmark-") as name:
        folder, threads = Path(name), torch.get_num_threads()
        setting = Setting(min(options.questions, MOST_QUESTIONS), 1, folder, "detr")
        repository = two_stage_repository(folder / "repository", shape, setting, image_feature_size=None)
        model = load_pipeline(repository, device).model
        model.generation_config.eos_token_id = -1  # random weights don't know when to end
        work = _work(model, setting, options)
        networks = {stage: plain_t5(model.get_stage(stage)) for stage in STAGES}
        ways: dict[str, Way] = {BASELINE: _transformers(networks)}
        ways |= {f"ours {dtype}": _ours(model, dtype) for dtype in ("float32", "bfloat16", "int8")}
        left_out = {}
        if not has_native_bf16("cpu"):
            del ways["ours bfloat16"]
            left_out["ours bfloat16"] = "this processor only emulates bfloat16"
        for peer, make in (("CTranslate2", _ctranslate2), ("onnxruntime", _onnxruntime)):
            try:
                ways |= make(networks, setting.processor.tokenizer, folder, threads, options.max_new_tokens)
            except ImportError as error:
                left_out[peer] = f"not installed ({error.name or error}): pip install 'mmcot[peers]'"
        runs = {peer: (lambda turn, way=way: _timed(way, work, device)) for peer, way in ways.items()}
        arms = [measure.Arm(peer, run, None) for peer, run in runs.items()]
        found, failed = measure.take_turns(arms, options.repeats, device, options.deadline)
        return {
            "questions": len(work.sources),
            "rationale_tokens": work.tokens,
            "mean_source_tokens": float(np.mean(list(map(len, work.sources)))),
            "batch": work.batch,
            "arms": found,
            "failed": failed | left_out,
            "single_question": _latencies({peer: way for peer, way in ways.items() if peer in found}, work, options),
            "over_peers": _over_peers(found),
        }


def _work(model, setting: Setting, options) -> Work:
    sources, prefixes = [], []
    inputs = setting.processor([{**problem, "images": []} for problem in setting.problems])
    for name, rows in (("input_ids", sources), ("answer_input_ids", prefixes)):
        masks = inputs[name.replace("input_ids", "attention_mask")].bool()
        rows += [ids[mask].tolist() for ids, mask in zip(inputs[name], masks, strict=True)]
    config = model.config
    return Work(
        sources, prefixes, config.answer_suffix_ids, config.option_prefix_ids, options.max_new_tokens, options.slots
    )


def _timed(way: Way, work: Work, device: torch.device) -> dict:
    return {"count": len(work.sources), "seconds": measure.seconds(lambda: way(work), device)}


def _latencies(ways: dict[str, Way], work: Work, options) -> dict[str, dict[str, float]]:
    """Seconds that one question of mean length takes alone, by each arm in turn."""
    alone = work.alone(sorted(range(len(work.sources)), key=lambda i: len(work.sources[i]))[len(work.sources) // 2])
    taken: dict[str, list[float]] = {peer: [] for peer in ways}
    for turn in range(2 * options.repeats + 1):
        for peer, way in ways.items():
            begin = time.perf_counter()
            way(alone)
            if turn:
                taken[peer].append(time.perf_counter() - begin)
    return {peer: measure.spread(seconds) for peer, seconds in taken.items()}


def _over_peers(found: dict) -> dict[str, dict[str, float]]:
    """Our rate over each peer's of the same precision, pair by pair."""
    result = {}
    for peer in ("CTranslate2", "onnxruntime", "transformers"):
        for dtype in ("float32", "int8"):
            ours, theirs = f"ours {dtype}", f"{peer} {dtype}"
            if ours in found and theirs in found:
                pairs = zip(found[ours]["readings"], found[theirs]["readings"], strict=True)
                result[theirs] = measure.spread([measure.rate(a) / measure.rate(b) for a, b in pairs])
    return result


def plain_t5(stage):
    """A stage without fusion as transformers' own class."""
    from transformers import T5Config, T5ForConditionalGeneration

    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads")
    sizes = {name: getattr(stage.config, name) for name in names}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=stage.config.decoder_start_token_id))
    model.load_state_dict(stage.state_dict())
    model.set_attn_implementation("sdpa")
    return model.eval()


def _batches(rows: list[list[int]], size: int):
    """(numbers, ids, mask) of batches of like length, the longest first."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    for first in range(0, len(order), size):
        numbers = order[first : first + size]
        ids = np.zeros((len(numbers), max(len(rows[i]) for i in numbers)), dtype=np.int64)
        mask = np.zeros_like(ids)
        for place, number in enumerate(numbers):
            ids[place, : len(rows[number])], mask[place, : len(rows[number])] = rows[number], 1
        yield numbers, ids, mask


def _both_stages(work: Work, write: Callable, answer: Callable) -> list[list[int]]:
    """Rationales by `write(ids, mask)`, batch by batch, then answers by `answer(ids, mask)`."""
    rationales: list[list[int]] = [[]] * len(work.sources)
    for numbers, ids, mask in _batches(work.sources, work.batch):
        for number, row in zip(numbers, write(ids, mask), strict=True):
            rationales[number] = row
    for _, ids, mask in _batches(work.answer_sources(rationales), work.batch):
        answer(ids, mask)
    return rationales


def _transformers(networks: dict) -> Way:
    def tensors(ids, mask):
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    @torch.no_grad()
    def run(work: Work) -> list:
        limits = {"min_new_tokens": work.tokens, "max_new_tokens": work.tokens, "do_sample": False}

        def write(ids, mask):
            return networks["rationale"].generate(**tensors(ids, mask), **limits)[:, 1:].tolist()

        def answer(ids, mask):
            model = networks["answer"]
            begin = [model.config.decoder_start_token_id, *work.answer]
            forced = torch.tensor([begin]).expand(len(ids), -1)
            model(**tensors(ids, mask), decoder_input_ids=forced, use_cache=False).logits[:, -1].argmax(-1)

        return _both_stages(work, write, answer)

    return run


def _ours(model, dtype: str) -> Way:
    weights: list[TwoStageWeights] = []

    def run(work: Work) -> list:
        if not weights:
            weights.append(TwoStageWeights(model, getattr(torch, dtype), packed=True))
        numbers = sorted(range(len(work.sources)), key=lambda i: -len(work.sources[i]))
        batches = []
        for first in range(0, len(numbers), work.batch):
            own = numbers[first : first + work.batch]
            batch = {"num_choices": torch.full((len(own),), 4)}
            for name, rows in (("", work.sources), ("answer_", work.prefixes)):
                (_, ids, mask), *_ = _batches([rows[i] for i in own], len(own))
                order = sorted(range(len(own)), key=lambda i: -len(rows[own[i]]))
                back = np.argsort(order)
                batch[f"{name}input_ids"] = torch.from_numpy(ids[back])
                batch[f"{name}attention_mask"] = torch.from_numpy(mask[back])
            batches.append((own, batch))
        options = {"max_new_tokens": work.tokens, "slots": work.batch, "weights": weights[0]}
        with forced_lengths(dict.fromkeys(numbers, work.tokens)):
            written = dict(
                pair
                for keys, output in answer_questions(model, batches, **options)
                for pair in zip(keys, output.rationale_ids[:, 1:].tolist(), strict=True)
            )
        return [written[number] for number in range(len(numbers))]

    return run


def _ctranslate2(networks: dict, tokenizer, folder: Path, threads: int, longest: int) -> dict:
    import ctranslate2

    for stage, network in networks.items():
        network.save_pretrained(folder / stage)
        tokenizer.save_pretrained(folder / stage)
        ctranslate2.converters.TransformersConverter(str(folder / stage)).convert(str(folder / f"{stage}.ct2"))

    def made(precision: str) -> Way:
        translators = {
            stage: ctranslate2.Translator(
                str(folder / f"{stage}.ct2"), device="cpu", compute_type=precision, intra_threads=threads
            )
            for stage in STAGES
        }

        def run(work: Work) -> list:
            options = {"beam_size": 1, "max_batch_size": work.batch}
            found = translators["rationale"].translate_batch(
                [tokenizer.convert_ids_to_tokens(row) for row in work.sources],
                max_decoding_length=work.tokens,
                min_decoding_length=work.tokens,
                **options,
            )
            pairs = zip(work.prefixes, found, strict=True)
            suffix = tokenizer.convert_ids_to_tokens(work.suffix)
            sources = [[*tokenizer.convert_ids_to_tokens(ids), *own.hypotheses[0], *suffix] for ids, own in pairs]
            forced = tokenizer.convert_ids_to_tokens(work.answer)
            translators["answer"].translate_batch(
                sources, target_prefix=[forced] * len(sources), max_decoding_length=len(forced) + 1, **options
            )
            return [own.hypotheses[0] for own in found]

        return run

    return {f"CTranslate2 {precision}": made(precision) for precision in ("float32", "int8")}


def _onnxruntime(networks: dict, tokenizer, folder: Path, threads: int, longest: int) -> dict:
    from mmcot.training.benchmark.peers_onnx import PRECISIONS, OnnxNetwork, export

    for name in ("onnxruntime", "onnx"):  # said before the export, which takes a while
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    for stage, network in networks.items():
        export(network, folder / f"{stage}.onnx", max(longest, 16) + 1)

    def made(precision: str) -> Way:
        runtime = {
            stage: OnnxNetwork(folder / f"{stage}.onnx", precision, network.config, threads)
            for stage, network in networks.items()
        }

        def run(work: Work) -> list:
            def write(ids, mask):
                return runtime["rationale"].generate(ids, mask, [], work.tokens).tolist()

            return _both_stages(work, write, lambda ids, mask: runtime["answer"].generate(ids, mask, work.answer, 1))

        return run

    return {f"onnxruntime {precision}": made(precision) for precision in PRECISIONS}
