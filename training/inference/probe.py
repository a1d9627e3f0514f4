"""Does an answer follow from its rationale, and the rationale from the picture? Questions asked again, changed.

Each probe changes one thing that should matter, or that shouldn't, and counts how often the answer changes: no
picture, another question's picture, options in another order; and for the answer stage alone a rationale that names
another option, or is cut short.
"""

import logging
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcot.training.common import UserError, write_json
from mmcot.training.evaluation.answers import judged_answer
from mmcot.training.evaluation.hallucination import share
from mmcot.training.evaluation.predictions import PredictionsWriter, header
from mmcot.training.evaluation.reading import read_predictions
from mmcot.training.inference.predict import answer_batches, load_pipeline, prediction_record

logger = logging.getLogger("mmcot")

PROBES = ("blank", "other-picture", "shuffled", "edited", "truncated")
OF_RATIONALES = ("edited", "truncated")
KEPT = (0, 25, 50, 75)  # % of a rationale's words
Ask = Callable[[list[dict]], Iterator[tuple[str, dict]]]


def probe(
    model,
    problems,
    output: str | Path,
    *,
    probes: Sequence[str] = PROBES,
    seed: int = 0,
    batch_size: int = 64,
    device=None,
    source: str | None = None,
    **generate_kwargs: Any,
) -> dict[str, Any]:
    """Asks a two-stage model again, with each of the changes.

    Args:
        model: folder, Hub id, or model in memory.
        problems: a Dataset of problem records, with answers.
        output: folder; receives a predictions file a probe (`base.jsonl`, `blank.jsonl`, …; answers in the problems'
            own order of options) and `probes.json`, what this returns. What is there already isn't asked again.
        probes: which ones, of `PROBES`. "blank" and "other-picture" are of questions with a picture alone.
        batch_size: questions at a time.
        device: as in `load_pipeline`.
        source: where the problems come from, for the files.
        seed: of the pictures' and options' new order, and of the options that edited rationales name.
        generate_kwargs: options of generation, of the rationale.

    Returns:
        `{"model", "source", "n", "seed", "protocol", "base": accuracy, "probes": {probe: {name: {"n", "percent",
        "ci95"}}}}`. Names: `accuracy`, and `before`, on the same questions without the change; `same_answer` and
        `same_rationale` as without it; of "edited" `follows` (answers the option that the edited rationale names),
        `stays`, `neither`, and `not_editable`, a number of rationales that don't name what was answered; "truncated"
        has them by % of words kept.

    Raises:
        UserError: an unknown probe; a one-stage model; what lies in `output` is of another model or seed.
    """
    unknown = [name for name in probes if name not in PROBES]
    if unknown:
        raise UserError(f"there is no probe {unknown[0]!r}: choose from {', '.join(PROBES)}")
    pipeline = load_pipeline(model, device)
    if not pipeline.two_stage:
        raise UserError("probes ask for rationale and answer: this model has one stage")
    folder = Path(output)
    asking = _Asking(
        pipeline, folder, batch_size, generate_kwargs, _facts(pipeline, model, source, seed, generate_kwargs)
    )
    records = [dict(problem) for problem in problems]
    if any(record["answer"] is None for record in records):
        raise UserError("a problem has no answer: probes need questions whose answer is known")
    seeing = [record for record in records if record["images"]]
    wanted = {"blank": 1, "other-picture": 2}
    unable = [name for name in probes if len(seeing) < wanted.get(name, 0)]
    if unable and (probes := [name for name in probes if name not in unable]) == []:
        raise UserError(
            f"the probe {unable[0]} needs {wanted[unable[0]]} questions with a picture; here {len(seeing)} have one"
        )
    for name in unable:
        logger.warning(f"left out: the probe {name}, for {len(seeing)} questions have a picture")
    base = asking.whole("base", records)
    found: dict[str, Any] = {}
    for name in probes:
        if name == "blank":
            found[name] = _compared(seeing, base, asking.whole(name, [{**record, "images": []} for record in seeing]))
        elif name == "other-picture":
            found[name] = _compared(seeing, base, asking.whole(name, other_pictures(seeing, seed)))
        elif name == "shuffled":
            found[name] = _compared(records, base, asking.shuffled(name, records, seed))
        elif name == "edited":
            found[name] = _edited(asking, records, base, seed)
        elif name == "truncated":
            found[name] = {}
            for kept in KEPT:
                texts = {
                    record["id"]: truncated(base[record["id"]]["generated"]["rationale"], kept) for record in records
                }
                again = asking.answers(f"truncated-{kept}", records, texts)
                found[name][str(kept)] = _compared(records, base, again, rationales=False)
    result = {
        **{key: asking.facts[key] for key in ("model", "source", "seed", "protocol")},
        "n": len(records),
        "base": _accuracy(records, base),
        "probes": found,
        "interval": "Wilson, 95 %",
    }
    write_json(folder / "probes.json", result)
    return result


def _facts(pipeline, model, source: str | None, seed: int, decoding: dict[str, Any]) -> dict[str, Any]:
    from mmcot.training.inference.fingerprint import model_fingerprint
    from mmcot.training.inference.predict import model_name

    return header(
        "multimodal-cot",
        model=model_name(model),
        fingerprint=model_fingerprint(pipeline.model),
        source=None if source is None else str(source),
        protocol="generated",
        mode="score",
        decoding=decoding,
        dtype=pipeline.answering.name,
        rationale_format=pipeline.processor.rationale_format,
        seed=seed,
    )


class _Asking:
    """Asks the model, each question of a probe once, and keeps the answers in a predictions file."""

    def __init__(self, pipeline, folder: Path, batch_size: int, generate_kwargs: dict, facts: dict[str, Any]):
        self.pipeline, self.folder, self.batch_size = pipeline, folder, batch_size
        self.generate_kwargs, self.facts = generate_kwargs, facts

    def whole(self, name: str, records: list[dict]) -> dict[str, dict]:
        """Both stages."""
        return self._kept(name, records, self._both_stages)

    def shuffled(self, name: str, records: list[dict], seed: int) -> dict[str, dict]:
        """Both stages, options in another order; answers are told in the problems' own."""
        orders = {record["id"]: new_order(record, seed) for record in records}
        asked = [
            {**record, "choices": [record["choices"][i] for i in orders[record["id"]]], "answer": None}
            for record in records
        ]

        def ask(some: list[dict]) -> Iterator[tuple[str, dict]]:
            for id_, record in self._both_stages(some):
                order = orders[id_]
                scores = {
                    chr(65 + order[ord(letter) - 65]): score for letter, score in (record["scores"] or {}).items()
                }
                answer = None if record["answer"] is None else order[record["answer"]]
                yield id_, {**record, "answer": answer, "scores": dict(sorted(scores.items())) or None}

        return self._kept(name, asked, ask)

    def answers(self, name: str, records: list[dict], rationales: Mapping[str, str]) -> dict[str, dict]:
        """The answer stage alone, with these rationales, as the rationale stage would have written them."""

        def ask(some: list[dict]) -> Iterator[tuple[str, dict]]:
            for start in range(0, len(some), self.batch_size):
                batch = some[start : start + self.batch_size]
                yield from self._answer_stage(batch, [rationales[record["id"]] for record in batch])

        return self._kept(name, records, ask)

    def _both_stages(self, records: list[dict]) -> Iterator[tuple[str, dict]]:
        batches = (records[i : i + self.batch_size] for i in range(0, len(records), self.batch_size))
        options = {"generate_kwargs": self.generate_kwargs}
        for id_, result in answer_batches(self.pipeline, batches, self.batch_size, **options):
            yield id_, prediction_record(id_, result)

    def _answer_stage(self, batch: list[dict], rationales: list[str]) -> Iterator[tuple[str, dict]]:
        model, processor = self.pipeline.model, self.pipeline.processor
        ids = processor.tokenizer(rationales, padding=True, return_tensors="pt")["input_ids"]
        inputs = processor(batch).to(model.device)
        outputs = model.generate(**inputs, rationale_ids=ids.to(model.device))
        for record, result in zip(batch, processor.post_process(outputs, batch), strict=True):
            yield record["id"], prediction_record(record["id"], result)

    def _kept(self, name: str, records: list[dict], ask: Ask) -> dict[str, dict]:
        from tqdm import tqdm

        path = self.folder / f"{name}.jsonl"
        facts = {**self.facts, "probe": name, "images": "blank" if name == "blank" else "given"}
        if not path.exists():
            with PredictionsWriter(path, facts) as writer:
                todo = [record for record in records if record["id"] not in writer.done]
                todo.sort(key=lambda record: -len(record["question"]) - len(record["context"] or ""))
                for _, record in tqdm(ask(todo), total=len(todo), desc=name):
                    writer.add(record)
            writer.finish([record["id"] for record in records])
        self._check(path, facts, [record["id"] for record in records])
        return read_predictions(path)

    def _check(self, path: Path, facts: dict[str, Any], ids: list[str]) -> None:
        from mmcot.training.evaluation.predictions import read_header

        found = read_header(path)
        keys = ("fingerprint", "seed", "probe", "decoding", "dtype")
        other = [key for key in keys if found.get(key) != facts.get(key)]
        if other or read_predictions(path).keys() != set(ids):
            what = ", ".join(other) or "questions"
            raise UserError(f"{path}: is there already, with another {what}: choose another --output, or remove it")


# ---- what is changed -----------------------------------------------------------------------------------------------


def other_pictures(records: list[dict], seed: int) -> list[dict]:
    """The questions, each with the pictures of another one: those that are next in an order drawn by the seed."""
    order = list(range(len(records)))
    random.Random(seed).shuffle(order)
    images = {order[i]: records[order[(i + 1) % len(order)]]["images"] for i in range(len(order))}
    return [{**record, "images": images[i]} for i, record in enumerate(records)]


def new_order(record: Mapping[str, Any], seed: int) -> list[int]:
    """An order of the options in which none stays where it was."""
    count = len(record["choices"])
    order, rng = list(range(count)), random.Random(f"{seed}:{record['id']}")
    while any(i == j for i, j in enumerate(order)):
        rng.shuffle(order)
    return order


def truncated(rationale: str, kept: int) -> str:
    """The first `kept` % of a rationale's words."""
    words = rationale.split()
    return " ".join(words[: len(words) * kept // 100])


def edited(rationale: str, chosen: str, other: str) -> str | None:
    """A rationale that says of one option what it said of another; None where it doesn't name the other.

    Where the two differ in one word, that word is exchanged everywhere ("red petals", "blue petals"), else the option.
    """
    old, new = chosen.split(), other.split()
    if len(old) == len(new):
        pairs = [(a, b) for a, b in zip(old, new, strict=True) if a.lower() != b.lower()]
        if len(pairs) == 1:
            ((chosen, other),) = pairs
    text, count = re.subn(rf"(?<!\w){re.escape(chosen)}(?!\w)", lambda _: other, rationale, flags=re.IGNORECASE)
    return text if count else None


def _edited(asking: _Asking, records: list[dict], base: Mapping[str, dict], seed: int) -> dict[str, Any]:
    texts, targets = {}, {}
    for record in records:
        id_, choices, chosen = record["id"], record["choices"], base[record["id"]]["answer"]
        if chosen is None:
            continue
        target = random.Random(f"{seed}:{id_}").choice([i for i in range(len(choices)) if i != chosen])
        text = edited(base[id_]["generated"]["rationale"], choices[chosen], choices[target])
        if text is not None:
            texts[id_], targets[id_] = text, target
    changed = [record for record in records if record["id"] in texts]
    if not changed:
        return {"not_editable": len(records)}
    again = asking.answers("edited", changed, texts)
    answers = {id_: again[id_]["answer"] for id_ in texts}
    follows = [answers[id_] == target for id_, target in targets.items()]
    stays = [answers[id_] == base[id_]["answer"] for id_ in targets]
    return {
        "follows": share(follows, "percent"),
        "stays": share(stays, "percent"),
        "neither": share([not (a or b) for a, b in zip(follows, stays, strict=True)], "percent"),
        "not_editable": len(records) - len(changed),
    }


# ---- what is counted -----------------------------------------------------------------------------------------------


def _accuracy(records: Iterable[Mapping], predictions: Mapping[str, Any]) -> dict[str, Any]:
    flags = [judged_answer(r["id"], r, predictions[r["id"]]) == r["answer"] for r in records]
    return share(flags, "percent")


def _compared(
    records: list[dict], base: Mapping[str, dict], again: Mapping[str, dict], rationales: bool = True
) -> dict[str, Any]:
    """Accuracy, and how often answer and rationale are as they were without the change; `before`: accuracy then."""
    ids = [record["id"] for record in records]
    found = {
        "accuracy": _accuracy(records, again),
        "before": _accuracy(records, base),
        "same_answer": share([again[i]["answer"] == base[i]["answer"] for i in ids], "percent"),
    }
    if rationales:
        found["same_rationale"] = share([again[i]["rationale"] == base[i]["rationale"] for i in ids], "percent")
    return found


def format_probes(result: Mapping[str, Any]) -> str:
    """What `probe` gave, as text."""
    lines = [f"{'':<22}{'n':>6}{'accuracy':>10}{'before':>8}{'same answer':>24}{'same rationale':>16}"]
    flat = {name: found for name, found in result["probes"].items() if name not in OF_RATIONALES}
    cut = result["probes"].get("truncated", {})
    flat |= {f"{kept} % of rationale": found for kept, found in cut.items()}
    for name, found in flat.items():
        same, low_high = found["same_answer"]["percent"], found["same_answer"]["ci95"]
        cells = f"{same:.1f} [{low_high[0]:.1f}, {low_high[1]:.1f}]"
        rationale = f"{found['same_rationale']['percent']:.1f}" if "same_rationale" in found else ""
        lines.append(
            f"{name:<22}{found['accuracy']['n']:>6}{found['accuracy']['percent']:>10.1f}"
            f"{found['before']['percent']:>8.1f}{cells:>24}{rationale:>16}"
        )
    edited_ = result["probes"].get("edited")
    if edited_ and "follows" in edited_:
        parts = ", ".join(
            f"{name} {edited_[name]['percent']:.1f} % [{edited_[name]['ci95'][0]:.1f}, {edited_[name]['ci95'][1]:.1f}]"
            for name in ("follows", "stays", "neither")
        )
        lines.append(
            f"edited rationale ({edited_['follows']['n']}; {edited_['not_editable']} can't be edited): {parts}"
        )
    elif edited_:
        lines.append("edited rationale: no rationale names what was answered")
    lines.append("In %, with 95 % intervals (Wilson). `before`: accuracy on the same questions without the change.")
    return "\n".join(lines)
