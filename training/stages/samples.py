"""Samples of one stage: token ids of problems, kept in Arrow, and the collator that adds pictures or features."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import datasets

from mmcot.processing import build_prompt
from mmcot.training.common import UserError, full_disk_told
from mmcot.training.data.batched import read_column
from mmcot.training.features.cache import problem_keys
from mmcot.training.stages.fingerprints import features_fingerprint

SHOWN = 20  # ids in a message


def stage_dataset(
    problems: datasets.Dataset,
    processor,
    stage: str,
    *,
    rationales: dict[str, str] | str = "target",
    max_target_length: int | None = None,
    features=None,
) -> datasets.Dataset:
    """Tokenised samples with the columns `id, input_ids, labels, length, target_length, images`.

    With `features` also `image_keys`. Computed once and cached by `datasets`; nothing is padded, no picture is opened,
    and none is written again: pictures stay in the problems' own table.

    Args:
        stage: "rationale" or "answer".
        rationales: what the answer stage reads: id → rationale; "target", the rationale stage's gold target, the like
            of which it will read in use; or "lecture_and_solution" as in the original's training, whatever the
            rationale stage is trained to write.
        max_target_length: labels are cut to this many tokens, the closing one kept.
        features: a `FeatureCache`, whose keys of each problem are looked up.

    Raises:
        UserError: a rationale is missing, or a feature, or problems don't fit into `max_source_length`: all are named.
    """
    from datasets import concatenate_datasets, config

    if isinstance(rationales, dict):
        missing = [id_ for id_ in read_column(problems, "id") if id_ not in rationales]
        if missing:
            raise UserError(f"{len(missing)} of {len(problems)} problems have no rationale, the first: {missing[0]}")
    encode = sample_encoder(processor, stage, rationales, max_target_length, features)
    settings = (
        "without images",  # renews what an earlier version has cached
        stage,
        max_target_length,
        processor.tokenizer.backend_tokenizer.to_str(),
        processor.rationale_format,
        processor.answer_format,
        processor.use_caption,
        processor.max_source_length,
        processor.source_truncation,
        sorted(rationales.items()) if isinstance(rationales, dict) else rationales,
        (str(features.path), features_fingerprint(features)) if features is not None else None,
    )
    fingerprint = hashlib.sha256(repr((problems._fingerprint, settings)).encode()).hexdigest()[:32]
    # pictures are read for their keys only
    read = problems if features is not None else problems.remove_columns("images")
    with full_disk_told(config.HF_DATASETS_CACHE):
        samples = read.map(
            encode,
            remove_columns=[name for name in read.column_names if name != "id"],
            new_fingerprint=fingerprint,
            desc=f"{stage} samples",
        )
    told = zip(read_column(samples, "id"), read_column(samples, "fault"), strict=True)
    faults = {id_: fault for id_, fault in told if fault}
    if faults:
        first = next(iter(faults.values()))
        others = list(map(str, faults))[1:]
        shown = f"; so {'does' if len(others) == 1 else 'do'} {', '.join(others[:SHOWN])}" if others else ""
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        raise UserError(f"{stage} stage: {first}{shown}{more}")
    # side by side: the one table has the pictures, the other the tokens
    return concatenate_datasets([samples.remove_columns("fault"), problems.select_columns("images")], axis=1)


def sample_encoder(processor, stage: str, rationales, max_target_length: int | None, features=None):
    """What makes a sample's columns, but `id` and `images`, of a problem; arguments as in `stage_dataset`. A problem
    that can't be made one has the reason in `fault`, which is empty otherwise."""

    def rationale_of(problem: dict[str, Any]) -> str | None:
        if isinstance(rationales, dict):
            return rationales[problem["id"]]
        if stage == "rationale" or rationales == "lecture_and_solution" or processor.rationale_format is None:
            return None  # the prompt takes the problem's own
        return build_prompt(problem, processor.rationale_format)[1]

    def encode(problem: dict[str, Any]) -> dict[str, Any]:
        try:
            sample = processor.encode(problem, stage, rationale=rationale_of(problem), target=True)
        except ValueError as error:  # told of all problems at once
            sample = {"input_ids": [], "labels": [], "fault": str(error)}
        labels = sample["labels"]
        if max_target_length is not None and len(labels) > max_target_length:
            labels = [*labels[: max_target_length - 1], labels[-1]]
        row = {"input_ids": sample["input_ids"], "labels": labels, "fault": sample.get("fault", "")}
        row.update(length=len(row["input_ids"]), target_length=len(labels))
        if features is not None:
            row["image_keys"] = problem_keys(problem, features)
        return row

    return encode


class StageCollator:
    """Pads a batch to its longest row and adds the pictures.

    Args:
        processor: an `MMCoTProcessor`.
        features: a `FeatureCache` to read instead of opening pictures.
        with_images: False for a text-only network.
        keep_images: hold preprocessed pictures in memory (half precision), for small sets and many epochs.
        label_length: pad labels to this, not to the longest row's: the original's loss, which counts padding, depends
            on it.

    Gives input_ids, attention_mask (batch, source), labels (batch, target; -100 where padded), and the image inputs of
    `MMCoTForConditionalGeneration`.
    """

    def __init__(
        self,
        processor,
        features=None,
        with_images: bool = True,
        keep_images: bool = False,
        label_length: int | None = None,
    ):
        self.processor = processor
        self.label_length = label_length
        self.features = features
        self.with_images = with_images and (features is not None or processor.image_processor is not None)
        self.kept: dict[str, torch.Tensor] | None = {} if keep_images else None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pad = self.processor.tokenizer.pad_token_id
        batch = {
            "input_ids": _pad([row["input_ids"] for row in rows], pad),
            "labels": _pad([row["labels"] for row in rows], -100, self.label_length or 0),
        }
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
        if self.with_images:
            batch.update(self.image_inputs(rows))
        return batch

    def image_inputs(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Features or pixels of the rows' pictures, with their mask."""
        if self.features is not None:
            return self.features.collate([row["image_keys"] for row in rows])
        if self.kept is None:
            return self.processor.encode_images([self.processor.load_images(row) for row in rows])
        return self._kept_pixels(rows)

    def _kept_pixels(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """As `processor.encode_images`, from pictures that are preprocessed once and kept in half precision."""
        missing = list({row["id"]: row for row in rows if row["id"] not in self.kept}.values())
        if missing:
            encoded = self.processor.encode_images([self.processor.load_images(row) for row in missing])
            if "pixel_mask" in encoded:
                raise UserError("keep_images is for images that the image processor brings to one size")
            pixels, present = encoded["pixel_values"], encoded["image_attention_mask"]
            pixels = pixels.view(*present.shape, *pixels.shape[-3:]).half()  # (rows, images, 3, height, width)
            for row, own, mask in zip(missing, pixels, present, strict=True):
                self.kept[row["id"]] = own[mask]
        kept = [self.kept[row["id"]] for row in rows]
        present = torch.arange(max(1, *map(len, kept))) < torch.tensor([len(images) for images in kept])[:, None]
        pixels = torch.zeros(*present.shape, *kept[0].shape[1:])
        pixels[present] = torch.cat(kept).float()
        return {
            "pixel_values": pixels if present.shape[1] > 1 else pixels[:, 0],
            "image_attention_mask": present,
        }


def _pad(rows: list[list[int]], value: int, length: int = 0) -> torch.Tensor:
    """Right-padded (batch, longest or `length`) int64."""
    padded = torch.full((len(rows), max(length, *map(len, rows))), value, dtype=torch.long)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return padded
