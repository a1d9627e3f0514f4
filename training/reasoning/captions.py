"""Captions of a data set's pictures by any captioning or image-text-to-text model, in the original project's layout.

    {"model": "Salesforce/blip-image-captioning-base", …, "captions": {"1": "a map of …", …}}

The original's own came from nlpconnect/vit-gpt2-image-captioning (v1) and InstructBLIP (now); either works here.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcot.training.common import ExistingFileError, UserError, drop_cut_line, full_disk_told, read_jsonl, write_json
from mmcot.training.data.batched import read_column

PROMPT = "Write a short description of the image."  # for models that follow instructions
ENCODER_DECODER = "vision-encoder-decoder"
# read pictures alone; a prompt is optional, the caption's beginning
CAPTIONERS = ("blip", "git", ENCODER_DECODER)


def write_captions(
    problems,
    model: str | Path,
    output: str | Path,
    *,
    prompt: str | None = None,
    max_new_tokens: int = 64,
    num_beams: int = 1,
    batch_size: int = 8,
    device: str | None = None,
    dtype: str = "auto",
) -> dict[str, Any]:
    """Captions the picture of each question that has one; equal pictures once.

    Cut off, the same call goes on with what `<output>.partial-records` holds.

    Args:
        problems: a Dataset of problem records. Of several pictures the first is captioned; questions whose choices
            alone are pictures have no caption.
        model: folder or Hub id of a captioning model (BLIP, GIT, ViT-GPT2, InstructBLIP) or of one that chats about
            pictures (SmolVLM, Qwen-VL).
        output: JSON file; it appears when it is whole.
        prompt: what a model is told; default: `PROMPT` for those that follow instructions, nothing for captioners,
            whose caption would begin with it.
        max_new_tokens, num_beams: of generation.
        device, dtype: as in `load_model`.

    Returns:
        what the file holds.

    Raises:
        UserError: the file is there already; no question has a picture; the model isn't there or reads no pictures;
            what was begun is by another model or options.
    """
    from tqdm import tqdm

    output = Path(output)
    if output.exists():
        raise ExistingFileError(f"{output} is there already: choose another name, or remove it")
    for name, value in {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "batch_size": batch_size}.items():
        if value < 1:
            raise UserError(f"{name} is a whole number of at least 1, not {value}")
    keys = picture_keys(problems)
    if not keys:
        raise UserError("no question has a picture of its own: there is nothing to caption")
    captioner = load_captioner(model, prompt, max_new_tokens, num_beams, device, dtype)
    facts = {"model": str(model), "prompt": captioner.prompt, "max_length": max_new_tokens, "num_beams": num_beams}
    rows = {key: row for row, key in reversed(list(keys.values()))}  # the first question of each picture
    with _Begun(output, facts) as begun:
        todo = [key for key in rows if key not in begun.captions]
        with tqdm(total=len(todo), unit="picture", desc="captions") as progress:
            for start in range(0, len(todo), batch_size):
                batch = todo[start : start + batch_size]
                images = [problems[rows[key]]["images"][0] for key in batch]
                for key, caption in zip(batch, captioner(images), strict=True):
                    begun.add(key, caption)
                progress.update(len(batch))
    content = {**facts, "captions": {id_: begun.captions[key] for id_, (_, key) in keys.items()}}
    write_json(output, content)
    begun.path.unlink()
    return content


def picture_keys(problems) -> dict[str, tuple[int, str]]:
    """id → (row, hash of the picture), of the questions that have a picture of their own."""
    from mmcot.training.features.image_keys import image_key

    found = {}
    columns = (read_column(problems, name) for name in ("id", "images", "has_image"))
    for row, (id_, images, own) in enumerate(zip(*columns, strict=True)):
        if own and images:
            found[id_] = (row, image_key(images[0]))
    return found


class _Begun:
    """Captions on disk as they are written: JSON Lines of a header and `key`, `caption`."""

    def __init__(self, output: Path, facts: Mapping[str, Any]):
        self.path = output.with_name(f"{output.name}.partial-records")
        self.captions: dict[str, str] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        drop_cut_line(self.path)
        records = list(read_jsonl(self.path)) if self.path.exists() else []
        if records:
            other = [key for key in facts if records[0]["header"].get(key) != facts[key]]
            if other:
                raise UserError(
                    f"{self.path}: was begun with another {', '.join(other)}: choose another output, or remove it"
                )
            self.captions = {record["key"]: record["caption"] for record in records[1:]}
        self.new, self.facts = not records, dict(facts)

    def __enter__(self) -> "_Begun":
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        if self.new:
            self._write({"header": self.facts})
        return self

    def __exit__(self, *error) -> None:
        with full_disk_told(self.path):
            self.file.close()

    def add(self, key: str, caption: str) -> None:
        self.captions[key] = caption
        self._write({"key": key, "caption": caption})

    def _write(self, record: Mapping[str, Any]) -> None:
        with full_disk_told(self.path):
            self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self.file.flush()


# ---- models --------------------------------------------------------------------------------------------------------


def load_captioner(
    name: str | Path, prompt: str | None, max_new_tokens: int, num_beams: int, device: str | None, dtype: str
):
    """A function from images to captions, with the `prompt` that it uses.

    Raises:
        UserError: no such model, or one that reads no pictures.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    try:
        kind = AutoConfig.from_pretrained(name).model_type
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: can't load a model from here: {str(error).strip().partition(chr(10))[0]}") from error
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and kind != ENCODER_DECODER:
        raise UserError(f"{name} is a {kind} model, which writes nothing about pictures")
    if kind in CAPTIONERS:
        return _Captioner(name, kind, prompt, max_new_tokens, num_beams, device, dtype)
    return _Instructed(name, prompt or PROMPT, max_new_tokens, num_beams, device, dtype)


class _Captioner:
    """A model made for captions: BLIP, GIT, or an encoder with a decoder."""

    def __init__(self, name, kind: str, prompt: str | None, max_new_tokens, num_beams, device, dtype):
        import torch
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

        self.prompt = prompt
        self.options = {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "do_sample": False}
        if kind == ENCODER_DECODER:
            if prompt is not None:
                raise UserError(f"{name} takes no prompt: leave --prompt out")
            self.processor, self.tokenizer = (
                AutoImageProcessor.from_pretrained(name),
                AutoTokenizer.from_pretrained(name),
            )
        else:
            self.processor = AutoProcessor.from_pretrained(name)
            self.tokenizer = self.processor.tokenizer
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = ("bfloat16" if str(device).startswith("cuda") else "float32") if dtype == "auto" else dtype
        self.model = AutoModelForImageTextToText.from_pretrained(name, dtype=getattr(torch, dtype)).eval().to(device)

    def __call__(self, images: Sequence[Any]) -> list[str]:
        import torch

        from mmcot.processing import load_image

        text = {} if self.prompt is None else {"text": [self.prompt] * len(images)}
        inputs = self.processor(images=[load_image(image) for image in images], **text, return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        with torch.no_grad():
            ids = self.model.generate(**inputs, **self.options)
        return [_tidy(self.tokenizer.decode(row, skip_special_tokens=True)) for row in ids]


class _Instructed:
    """A model that is told what to do, with or without a chat template."""

    def __init__(self, name, prompt: str, max_new_tokens: int, num_beams: int, device, dtype):
        from mmcot.training.reasoning.local_model import load_model

        if num_beams > 1:
            raise UserError(f"{name} is asked greedily: leave --num-beams out")
        self.prompt, self.max_new_tokens = prompt, max_new_tokens
        self.model = load_model(name, device=device, dtype=dtype)

    def __call__(self, images: Sequence[Any]) -> list[str]:
        from mmcot.training.reasoning.calls import Request

        requests = [Request(self.prompt, images=(image,), max_new_tokens=self.max_new_tokens) for image in images]
        found = dict(self.model.complete(requests))
        return [_tidy(found[i].text).removeprefix(self.prompt).strip() for i in range(len(images))]


def _tidy(text: str) -> str:
    return " ".join(text.split())
