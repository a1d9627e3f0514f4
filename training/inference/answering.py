"""A model's `generate` in a chosen dtype: by the engine where it gives the same, else by transformers'."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from mmcot.answers_mmcot import MMCoTOutput, prepare_generation_config
from mmcot.training.common import UserError
from mmcot.training.inference.decoder_weights import is_plain_t5
from mmcot.training.inference.engine import StageWeights, TwoStageWeights, answer_questions
from mmcot.training.inference.generation import generate, greedy_config, use_engine
from mmcot.training.inference.matrices import Int8Linear
from mmcot.training.inference.precision import answering_dtype, check_dtype

BATCH_INPUTS = ("input_ids", "attention_mask", "answer_input_ids", "answer_attention_mask", "num_choices")
IMAGE_INPUTS = ("pixel_values", "pixel_mask", "image_features", "image_attention_mask")


class Answering:
    """How a model answers; `use_engine` puts its `generate` in place of the model's.

    Args:
        model: an `MMCoTModel` or `MMCoTForConditionalGeneration`, on its device, in evaluation mode.
        dtype: one of `DTYPES`. "auto" leaves weights that aren't float32 as they are. In another dtype than the
            model's the weights are read once: changes afterwards have no effect.
    """

    def __init__(self, model, dtype: str = "float32"):
        check_dtype(dtype)
        self.model, self.two_stage = model, hasattr(model, "rationale")
        self.dtype = dtype_for(model, dtype)
        self._weights: Any = None
        self._int8: nn.Module | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles of a model, whose `generate` this may be, read its weights again: packed ones have no
        storage to be copied from."""
        return {**self.__dict__, "_weights": None, "_int8": None}

    @property
    def name(self) -> str:
        """The dtype in words, for a predictions file."""
        return str(self.dtype).removeprefix("torch.")

    def weights(self, packed: bool | None = None) -> Any:
        """The engine's weights: of both stages, or of the one; `packed` as in `StageWeights`."""
        if self._weights is not None:
            return self._weights
        found = (TwoStageWeights if self.two_stage else StageWeights)(self.model, self.dtype, packed)
        if self.dtype != self.model.dtype:  # else they are the model's own, and may change with it
            self._weights = found
        return found

    def engine_options(self, mode: str, generation_config=None, options: Mapping[str, Any] | None = None):
        """What the engine is told about rationales (`max_new_tokens`, `eos_token_id`), or None if transformers'
        `generate` has to answer."""
        if not self.two_stage or mode != "score" or not is_plain_t5(self.model.answer):
            return None
        config, others = prepare_generation_config(self.model, generation_config, **(options or {}))
        config = greedy_config(self.model.rationale, config, others)
        return config and {"max_new_tokens": config.max_new_tokens, "eos_token_id": config.eos_token_id}

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any):
        """As the model's."""
        given = {name: kwargs[name] for name in (*BATCH_INPUTS, *IMAGE_INPUTS) if kwargs.get(name) is not None}
        options = {name: value for name, value in kwargs.items() if name not in (*BATCH_INPUTS, *IMAGE_INPUTS)}
        mode, config = options.pop("mode", "score"), options.pop("generation_config", None)
        of_engine = None
        if not args and {"input_ids", "attention_mask", "answer_input_ids", "num_choices"} <= given.keys():
            special = options.pop("output_image_attention", False) or options.pop("rationale_ids", None) is not None
            of_engine = None if special else self.engine_options(mode, config, options)
        if of_engine is None:
            return self._by_transformers(*args, **kwargs)
        return self._by_engine(given, of_engine)

    def _by_transformers(self, *args: Any, **kwargs: Any):
        model = self.model
        if self.dtype == torch.int8:
            if self._int8 is None:
                self._int8 = with_int8(model)
            model = self._int8
        low = self.dtype == torch.bfloat16 != model.dtype
        with torch.autocast(model.device.type, torch.bfloat16, enabled=low):
            if self.two_stage or self.dtype == torch.int8:
                return type(model).generate(model, *args, **kwargs)
            return generate(model, *args, **kwargs)

    def _by_engine(self, given: dict[str, torch.Tensor], of_engine: dict[str, Any]) -> MMCoTOutput:
        model, rows = self.model, len(given["input_ids"])
        low = self.dtype == torch.bfloat16 != model.dtype
        with torch.autocast(model.device.type, torch.bfloat16, enabled=low):
            images = model._image_inputs(*(given.get(name) for name in IMAGE_INPUTS))
        batch = {name: value.cpu() for name, value in given.items() if name not in IMAGE_INPUTS} | images
        found: dict[str, dict[int, torch.Tensor]] = {}
        names = ("rationale_ids", "option_log_probs", "answer_source_ids", "answer_source_mask")
        for keys, output in answer_questions(
            model, [(list(range(rows)), batch)], slots=rows, weights=self.weights(), **of_engine
        ):
            for name in names:
                found.setdefault(name, {}).update(zip(keys, output[name], strict=True))
        pad = model.rationale.config.pad_token_id
        padding = {"rationale_ids": pad, "answer_source_ids": pad, "option_log_probs": -torch.inf}
        together = {
            name: pad_sequence([own[row] for row in range(rows)], True, padding.get(name, 0))
            for name, own in found.items()
        }
        output = MMCoTOutput(**together, image_features=images.get("image_features"))
        output.image_attention_mask = images.get("image_attention_mask")
        return output


def dtype_for(model, dtype: str) -> torch.dtype:
    """What one of `DTYPES` means for a model where it lies; see `Answering`.

    Raises:
        UserError: as `answering_dtype` does; or float32 or bfloat16 of float16 weights, with which transformers'
            `generate` would compute in float16.
    """
    if dtype == "auto" and model.dtype != torch.float32:
        return model.dtype
    if dtype in ("float32", "bfloat16") and model.dtype == torch.float16:
        raise UserError(
            f"dtype {dtype}: the model's weights are float16, and it would compute in that: give auto, or load it in "
            f"{dtype} (`from_pretrained(…, dtype=torch.{dtype})`)"
        )
    return answering_dtype(dtype, model.device)


def use_answering(model, dtype: str = "auto") -> Answering:
    """Lets a model generate in a dtype, by the engine wherever it gives what `generate` gives.

    Args:
        model, dtype: as in `Answering`. Only this object changes, not its class, and what is saved of it doesn't.
    """
    use_engine(model)
    answering = Answering(model, dtype)
    if answering.two_stage or answering.dtype != model.dtype:
        model.generate = answering.generate
    return answering


def with_int8(model) -> nn.Module:
    """A copy, for passes that aren't the engine's, whose linear layers, those of the backbone too, are in int8.
    Adapters of PEFT's that are switched on are merged into the layers below them first."""
    own = model.__dict__.pop("generate", None)  # bound to the model, with all its weights
    try:
        copied = copy.deepcopy(model)
    finally:
        if own is not None:
            model.generate = own
    _to_int8(copied)
    return copied.eval()


def _to_int8(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        below = getattr(child, "base_layer", None)  # of PEFT's adapters
        if type(below) is nn.Linear:
            child = _merged(child)
        if type(child) is nn.Linear:
            setattr(module, name, Int8Linear(child))
        elif below is None:  # adapters of embeddings and convolutions stay as they are
            _to_int8(child)


def _merged(adapted) -> nn.Linear:
    """The linear layer below an adapter, with what the adapter adds."""
    linear = adapted.get_base_layer()
    linear.weight = nn.Parameter(linear.weight.detach().clone())  # an embedding's too, where they are tied
    if not adapted.disable_adapters:
        try:
            adapted.merge()
        except (NotImplementedError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"dtype int8: an adapter ({type(adapted).__name__}) can't be merged into its layer: {reason}; give "
                "float32 or bfloat16"
            ) from error
    return linear
