"""What the benchmark runs on: networks of T5's shapes, and questions as long as ScienceQA's.

`lengths.json` holds how long real questions, rationales and both stages' sources are together, in tokens of
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
BYTES_OF_PICTURE = 50_000
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


def make_problems(
    lengths: list[Lengths], processor, words: list[str], files: list[bytes] | None = None, seed: int = 0
) -> list[dict]:
    """Problem records whose prompts have these lengths, and pictures of these files in turn."""
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
            "images": [{"bytes": files[number % len(files)], "path": None}] if files and length.image else [],
        }
        rationale = processor.encode(problem, "rationale", target=True)
        answer = processor.encode(problem, "answer")
        problem["question"] = text(1 + length.source - len(rationale["input_ids"]))
        problem["solution"] = text(1 + length.target - len(rationale["labels"]))
        missing = length.answer_source - length.source - length.target
        missing -= len(answer["input_ids"]) - len(rationale["input_ids"]) - len(rationale["labels"])
        problem["lecture"] = text(missing) if missing > 0 else ""
        problems.append(problem)
    return problems


class Setting:
    """What all parts run on.

    Attributes:
        processor, problems: made up, as long as ScienceQA's. Files of pictures are random bytes, which are hashed and
            never opened.
        features, cache: of the pictures, in memory and as a cache on disk, in bfloat16; `kind` of them.
        samples: `stage_dataset` of the rationale stage, also as a list: `rows`.
    """

    def __init__(self, count: int, pictures: int, folder: Path, kind: str = "vit"):
        from datasets import Dataset

        from mmcot.processing import MMCoTProcessor
        from mmcot.training.features.cache import FeatureCache, image_key
        from mmcot.training.features.shards import FeatureWriter, write_index
        from mmcot.training.stages.samples import stage_dataset

        tokenizer, words = make_tokenizer()
        self.kind, self.processor = kind, MMCoTProcessor(None, tokenizer)
        files = [random.Random(number).randbytes(BYTES_OF_PICTURE) for number in range(pictures)]
        self.problems = make_problems(draw_lengths(count), self.processor, words, files)
        draw = torch.Generator().manual_seed(0)
        self.features = torch.empty(pictures, *FEATURES[kind]).normal_(generator=draw).bfloat16().float()
        info = {"backbone": "random", "keys": "image content"}
        with FeatureWriter(folder / "features", info, torch.bfloat16) as writer:
            writer.add([image_key(file) for file in files], self.features)
        write_index(folder / "features")
        self.cache = FeatureCache.open(folder / "features")
        self._numbers = {image_key(file): number for number, file in enumerate(files)}
        table = Dataset.from_list(self.problems)
        self.samples = stage_dataset(table, self.processor, "rationale", features=self.cache)
        self.rows = list(self.samples)
        self.keys = {row["id"]: row["image_keys"] for row in self.rows}

    def original_features(self) -> torch.Tensor:
        """(pictures, patches, width) as the original has them: ResNet's one vector is repeated."""
        repeats = ORIGINAL_PATCHES.get(self.kind)
        return self.features if repeats is None else self.features.repeat(1, repeats, 1)

    def original_images(self, ids: list[str], features: torch.Tensor) -> torch.Tensor:
        """Features of problems' pictures as the original stacks them, a block of zeros without one."""
        numbers = [[self._numbers[key] for key in self.keys[id_]] for id_ in ids]
        return torch.stack([features[own[0]] if own else torch.zeros_like(features[0]) for own in numbers])


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
