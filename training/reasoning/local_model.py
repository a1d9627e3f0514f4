"""Any model of transformers' as a `LanguageModel`: causal, sequence-to-sequence, or image and text to text."""

from collections.abc import Iterator
from pathlib import Path

from mmcot.training.common import UserError
from mmcot.training.reasoning.calls import Completion, Request


def is_multimodal_cot(name: str | Path) -> bool:
    """Whether a folder or Hub id is a Multimodal-CoT model, which has prompts and stages of its own."""
    from transformers import PreTrainedConfig

    try:
        kind = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
    except (OSError, ValueError):
        return False
    return kind in ("mmcot", "mmcot_two_stage")


def load_model(name: str | Path, *, device: str | None = None, dtype: str = "auto", batch_size: int = 8):
    """A model in memory.

    Args:
        name: folder or Hub id of a causal model (its chat template is used, if it has one), a sequence-to-sequence
            model (FLAN-T5), or an image-text-to-text model (SmolVLM2, Qwen-VL), which sees all pictures of a
            problem.
        device: where to compute, or "auto" for transformers' `device_map`; default: an accelerator if there is one.
        dtype: "auto" is bfloat16 on accelerators that have it natively, else float32.
        batch_size: prompts that are continued together, those of like length.

    Raises:
        UserError: no such model, or one of another kind.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: can't load a model from here: {str(error).strip().partition(chr(10))[0]}") from error
    kind = config.model_type
    if is_multimodal_cot(name):
        raise UserError(f"{name} is a Multimodal-CoT model: `mmcot predict` asks it")
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        auto = AutoModelForImageTextToText
    elif kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        auto = AutoModelForSeq2SeqLM
    elif kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        auto = AutoModelForCausalLM
    else:
        raise UserError(f"{name} is a {kind} model, which neither continues a text nor answers one")
    return LocalModel(name, auto, device, dtype, batch_size)


class LocalModel:
    """See `load_model`. `complete` continues prompts in batches of like length, greedily or by sampling."""

    def __init__(self, name: str | Path, auto, device: str | None, dtype: str, batch_size: int):
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

        self.name, self.batch_size = str(name), batch_size
        self.takes_images = auto is AutoModelForImageTextToText
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        placement = {"device_map": "auto"} if device == "auto" else {}
        if device not in (None, "auto"):
            self.device = torch.device(device)
        if dtype == "auto":
            native = self.device.type == "cuda" and torch.cuda.get_device_capability(self.device)[0] >= 8
            dtype = "bfloat16" if native else "float32"
        self.model = auto.from_pretrained(name, dtype=getattr(torch, dtype), **placement).eval()
        if not placement:
            self.model.to(self.device)
        self.parameters = sum(weight.numel() for weight in self.model.parameters())
        self.processor = AutoProcessor.from_pretrained(name) if self.takes_images else None
        self.tokenizer = self.processor.tokenizer if self.takes_images else AutoTokenizer.from_pretrained(name)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.writes_after_the_prompt = not self.model.config.is_encoder_decoder
        if self.writes_after_the_prompt:  # a prompt has to end where its continuation begins
            self.tokenizer.padding_side = "left"

    def complete(self, requests: list[Request]) -> Iterator[tuple[int, Completion]]:
        groups: dict[tuple, list[int]] = {}
        for position in sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt)):
            request = requests[position]
            # sampled ones go alone: their completion must not depend on what else is in the batch
            alone = position if request.temperature else None
            like = (request.max_new_tokens, request.temperature, request.seed, request.letters, alone)
            groups.setdefault((*like, len(request.images) > 0), []).append(position)
        for positions in groups.values():
            for start in range(0, len(positions), self.batch_size):
                batch = positions[start : start + self.batch_size]
                answered = self._batch([requests[position] for position in batch])
                yield from zip(batch, answered, strict=True)

    def _batch(self, requests: list[Request]) -> list[Completion]:
        import torch

        inputs = self._inputs(requests).to(self.model.device)
        lengths = inputs["attention_mask"].sum(1).tolist()
        with torch.no_grad():
            if requests[0].letters:
                return self._scored(requests, inputs, lengths)
            options = {"max_new_tokens": requests[0].max_new_tokens, "do_sample": requests[0].temperature > 0}
            if options["do_sample"]:
                options["temperature"] = requests[0].temperature
                torch.manual_seed(requests[0].seed or 0)
            ids = self.model.generate(**inputs, **options, pad_token_id=self.tokenizer.pad_token_id)
        if self.writes_after_the_prompt:
            ids = ids[:, inputs["input_ids"].shape[1] :]
        special = {self.tokenizer.pad_token_id, self.tokenizer.eos_token_id}
        return [
            Completion(
                self.tokenizer.decode(row, skip_special_tokens=True).strip(),
                prompt_tokens=length,
                completion_tokens=sum(token not in special for token in row.tolist()),
            )
            for row, length in zip(ids, lengths, strict=True)
        ]

    def _scored(self, requests: list[Request], inputs, lengths: list[int]) -> list[Completion]:
        """Log-probability of each letter as the next token; those of one tokenisation are compared with one
        another."""
        import torch

        if self.writes_after_the_prompt:
            logits = self.model(**inputs).logits[:, -1]
        else:
            start = self.model.config.decoder_start_token_id
            begun = torch.full((len(requests), 1), start, device=self.model.device)
            logits = self.model(**inputs, decoder_input_ids=begun).logits[:, -1]
        log_probs = logits.float().log_softmax(-1)
        ids = {letter: self._letter_id(letter) for letter in requests[0].letters}
        return [
            Completion("", length, 0, {letter: row[token].item() for letter, token in ids.items()})
            for row, length in zip(log_probs, lengths, strict=True)
        ]

    def _letter_id(self, letter: str) -> int:
        """The token of a letter after "(": the last one of "(A"."""
        return self.tokenizer(f"({letter}", add_special_tokens=False)["input_ids"][-1]

    def _inputs(self, requests: list[Request]):
        """Prompts as the model reads them: its chat template around them, if it has one, and the pictures."""
        from mmcot.processing import load_image

        pictures = [[load_image(image) for image in request.images] for request in requests]
        source = self.processor or self.tokenizer
        if getattr(source, "chat_template", None):
            chats = []
            for request, images in zip(requests, pictures, strict=True):
                content = [{"type": "image", "image": image} for image in images] if self.takes_images else []
                text = {"type": "text", "text": request.prompt}
                chats.append([{"role": "user", "content": [*content, text] if self.takes_images else request.prompt}])
            texts = [source.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
        else:
            mark = f"{getattr(source, 'image_token', '<image>')}\n" if self.takes_images else ""
            texts = [mark * len(images) + request.prompt for request, images in zip(requests, pictures, strict=True)]
        if self.takes_images:
            images = pictures if any(pictures) else None
            return self.processor(text=texts, images=images, padding=True, return_tensors="pt")
        # a chat template writes the special tokens itself
        special = not getattr(source, "chat_template", None)
        return self.tokenizer(texts, padding=True, add_special_tokens=special, return_tensors="pt")
