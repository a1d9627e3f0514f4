"""What the benchmark runs on: networks of T5's shapes, and questions as long as ScienceQA's.

`benchmark_lengths.json` holds how long real questions, rationales and both stages' sources are together, in tokens of
T5's vocabulary; the words themselves are made up. Every third to second question has a picture, as in ScienceQA.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

LENGTHS = Path(__file__).with_name("lengths.json")
IMAGE_SHARE = 10332 / 21208  # of ScienceQA's questions
TRAIN_SIZE, TEST_SIZE = 12726, 4241
PATCHES, WIDTH = 145, 1024  # ViT features, the paper's final choice
FEATURES = {"vit": (PATCHES, WIDTH), "detr": (100, 256), "clip": (49, 2048), "resnet": (1, 2048)}  # patches, width
ORIGINAL_PATCHES = {"resnet": 512}  # where they are others: one vector, repeated
VOCABULARY = 32128
SHAPES = {
    "tiny": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},  # for tests
    "small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "large": {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
}


@dataclass(frozen=True)
class Lengths:
    """Tokens of a problem: stage 1's source and target, stage 2's source with the gold rationale; and its choices."""

    source: int
    target: int
    answer_source: int
    choices: int
    image: bool


def draw_lengths(count: int, seed: int = 0) -> list[Lengths]:
    """Lengths of `count` problems, as ScienceQA's, pictures as often as in the whole of it; in an order of chance.

    Drawn evenly from short to long, so that a few already have the mean of all and runs can be compared.
    """
    rows = np.array(json.loads(LENGTHS.read_text())["rows"], dtype=np.int64)
    with_image = rows[:, 4] == 1
    weights = rows[:, 5].astype(float)
    weights[with_image] *= IMAGE_SHARE / weights[with_image].sum()
    weights[~with_image] *= (1 - IMAGE_SHARE) / weights[~with_image].sum()
    order = np.lexsort((rows[:, 0] + rows[:, 1], with_image))
    places = (np.arange(count) + 0.5) / count * weights.sum()
    drawn = order[np.searchsorted(weights[order].cumsum(), places)]
    drawn = np.random.default_rng(seed).permutation(drawn)
    return [Lengths(*map(int, rows[i, :4]), bool(rows[i, 4])) for i in drawn]


def make_tokenizer(words: int = 20000):
    """A tokenizer of made-up words, and the words: one token each."""
    from mmcot.training.stages.tokenizer import train_tokenizer

    letters = "bcdfghjklmnprstvwz", "aeiou"
    draw = random.Random(0)
    known = set()
    while len(known) < words:
        known.add("".join(draw.choice(letters[i % 2]) for i in range(draw.choice((4, 6, 8)))))
    known = sorted(known)
    fixed = "Question: Context: Options: Solution: Answer: The answer is (A). BECAUSE: N/A"
    return train_tokenizer([" ".join(known), *[fixed] * 3], vocab_size=words + 1000), known


def make_problems(lengths: list[Lengths], processor, words: list[str], seed: int = 0) -> list[dict]:
    """Problem records whose prompts have these lengths."""
    draw = random.Random(seed)

    def text(count: int) -> str:
        return " ".join(draw.choices(words, k=max(1, count)))

    problems = []
    for number, length in enumerate(lengths):
        problem = {
            "id": str(number),
            "choices": [text(1) for _ in range(length.choices)],
            "answer": draw.randrange(length.choices),
            "context": "",
            "lecture": "",
            "solution": text(1),
            "question": text(1),
            "images": [],
        }
        rationale = processor.encode(problem, "rationale", target=True)
        answer = processor.encode(problem, "answer")
        problem["question"] = text(1 + length.source - len(rationale["input_ids"]))
        problem["solution"] = text(1 + length.target - len(rationale["labels"]))
        missing = length.answer_source - length.source - length.target
        missing -= len(answer["input_ids"]) - len(rationale["input_ids"]) - len(rationale["labels"])
        problem["lecture"] = text(missing) if missing > 0 else ""
        problem["picture"] = length.image
        problems.append(problem)
    return problems


class Samples(torch.utils.data.Dataset):
    """Tokenised samples of a stage with the columns of `stage_dataset`, in memory."""

    def __init__(self, problems: list[dict], processor, stage: str, pictures: int):
        self.rows = []
        for number, problem in enumerate(problems):
            row = {"id": problem["id"], **processor.encode(problem, stage, target=True)}
            row.update(length=len(row["input_ids"]), target_length=len(row["labels"]))
            row["image_keys"] = [f"picture {number % pictures}"] if problem["picture"] else []
            self.rows.append(row)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | str):
        return [row[index] for row in self.rows] if isinstance(index, str) else self.rows[index]


def make_features(pictures: int, kind: str = "vit", seed: int = 0) -> torch.Tensor:
    """Random features (pictures, patches, width), float32, each exact in bfloat16."""
    draw = torch.Generator().manual_seed(seed)
    features = torch.empty(pictures, *FEATURES[kind])
    for feature in features:
        feature.normal_(generator=draw)
    return features.bfloat16().float()


def write_features(path: Path, features: torch.Tensor):
    """The features as a cache in bfloat16, opened."""
    from mmcot.training.features.cache import FeatureCache
    from mmcot.training.features.shards import FeatureWriter, write_index

    info = {"backbone": "random", "keys": "image content"}
    with FeatureWriter(path, info, torch.bfloat16) as writer:
        writer.add([f"picture {number}" for number in range(len(features))], features)
    write_index(path)
    return FeatureCache.open(path)


def make_model(
    shape: str, stage: str = "rationale", seed: int = 0, attention: str = "sdpa", features: str = "vit", **settings
):
    """A fresh network of a shape, reading features of a kind unless `image_feature_size=None`."""
    from mmcot import MMCoTConfig, MMCoTForConditionalGeneration

    torch.manual_seed(seed)
    prompt_format = "QCM-E" if stage == "rationale" else "QCMG-A"
    settings = {
        "image_feature_size": FEATURES[features][1],
        "stage": stage,
        "prompt_format": prompt_format,
        **settings,
    }
    config = MMCoTConfig(vocab_size=VOCABULARY, **SHAPES[shape], **settings)
    model = MMCoTForConditionalGeneration(config)
    model.set_attn_implementation(attention)
    return model
