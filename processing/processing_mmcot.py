"""`MMCoTProcessor`: problems become the tensors that either stage reads; what the stages write becomes answers."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.tokenization_utils_base import TextInput
from transformers.utils import PROCESSOR_NAME

from .image_processing_mmcot import MMCoTImageProcessor, check_aspect, copy_code, image_rows, stack_images
from .image_reading_mmcot import load_images
from .prompts_mmcot import (
    OPTION_LETTERS,
    ProblemError,
    build_prompt,
    check_text,
    choices_of,
    option_letter,
    parse_answer,
    problem_name,
    reads_rationale,
    split_format,
)
from .tokens_mmcot import check_tokenizer, end_ids, join_parts, readable_text, source_parts, token_ids, warn_of_losses

SOURCE_TRUNCATIONS = ("keep_ends", "end")
_ANSWER_PREFIX = "The answer is ("


class MMCoTProcessorKwargs(ProcessingKwargs, total=False):
    # T5 has no segment ids, whatever a generic tokenizer would give.
    _defaults = {"text_kwargs": {"return_token_type_ids": False}}


_KWARGS: Any = MMCoTProcessorKwargs  # transformers asks for the class, and its annotation for an instance


class MMCoTProcessor(ProcessorMixin):
    """Image processor, tokenizer and prompts of Multimodal-CoT.

    Args:
        image_processor: None for a text-only model. `image_processor_for(preset)` makes the paper's.
        tokenizer: T5's, or any other whose tokens don't span white space (mT5's; ByT5's bytes do, and are refused).
        rationale_format: prompt format of stage 1; None for a one-stage model.
        answer_format: prompt format of stage 2 (with G, such as "QCMG-A"), or of a one-stage model (such as "QCM-A").
        use_caption: add a problem's `caption` to its context.
        max_source_length: tokens of a source, the end token included.
        source_truncation: "keep_ends" shortens the context, and in stage 2 the rationale, at their ends, so that
            question, options and closing survive: stage 2's prefix gets at most max_source_length - closing -
            max_source_length // 4 tokens (so that it never depends on the rationale), the rationale what is left.
            "end" cuts the whole source's end, as the original does.
    """

    valid_processor_kwargs = MMCoTProcessorKwargs

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        rationale_format: str | None = "QCM-E",
        answer_format: str = "QCMG-A",
        use_caption: bool = False,
        max_source_length: int = 512,
        source_truncation: str = "keep_ends",
    ):
        if tokenizer is None:
            raise ProblemError("MMCoTProcessor needs a tokenizer")
        check_tokenizer(tokenizer, len(tokenizer))
        if image_processor is not None:
            super().__init__(image_processor, tokenizer)
        else:  # ProcessorMixin knows no optional parts
            self.check_argument_for_proper_class("tokenizer", tokenizer)
            self.chat_template = self.image_processor = None
            self.tokenizer = tokenizer
        split_format(answer_format)
        if rationale_format is not None:
            split_format(rationale_format)
            if not reads_rationale(answer_format):
                raise ProblemError(
                    f"two stages need an answer_format that reads the rationale (QCMG-A), not {answer_format!r}; "
                    "for a one-stage model give rationale_format=None"
                )
        if source_truncation not in SOURCE_TRUNCATIONS:
            raise ProblemError(f"source_truncation is one of {SOURCE_TRUNCATIONS}, not {source_truncation!r}")
        self.rationale_format = rationale_format
        self.answer_format = answer_format
        self.use_caption = use_caption
        self.max_source_length = max_source_length
        self.source_truncation = source_truncation

    # ---- inputs of a model ----

    def __call__(
        self,
        problems: Mapping[str, Any] | list[Mapping[str, Any]] | None = None,
        images: ImageInput | None = None,
        text: TextInput | list[TextInput] | None = None,
        *,
        stage: str | None = None,
        rationales: str | list[str | None] | None = None,
        **kwargs: Unpack[MMCoTProcessorKwargs],
    ) -> BatchFeature:
        """Model inputs of problems, or of bare texts and images.

        Args:
            problems: one problem or several (dicts; see `build_prompt` and `load_images` for their keys).
            images: without problems: one image, one for each text, or a list for each text. With problems: the same,
                in place of the problems' own.
            text: without problems: what to tokenise.
            stage: "rationale" or "answer": that stage's inputs. None: all that a two-stage `generate` needs, or the
                inputs of a one-stage model.
            rationales: for stage="answer", one for each problem; None (all, or one): gold lecture and solution.
            kwargs: of tokenizer and image processor, flat or in `text_kwargs` / `images_kwargs`. With problems,
                `max_length` stands in for max_source_length, for the inputs of one stage only; return_tensors is
                "pt" by default.

        Returns:
            `input_ids`, `attention_mask` (batch, tokens), right-padded; with an image processor `pixel_values`
            (batch, 3, height, width), or (batch, images, 3, height, width) if a problem has several images, zeros
            where there is none; `image_attention_mask` (batch, images), bool, False where there is none; `pixel_mask`
            if the image processor gives one (1 all over where there is no image). For stage=None also `num_choices`
            (batch,), and, for two stages, `answer_input_ids`, `answer_attention_mask`: stage 2's source up to the
            rationale.

        Raises:
            ProblemError: a problem that can't be asked (see `check_problem`); one whose question and options alone are
                too long.
        """
        if problems is None:
            return self._encode_text_and_images(text, images, kwargs)
        if text is not None:
            raise ProblemError("give either problems or text, not both")
        problems = [problems] if isinstance(problems, Mapping) else list(problems)
        if not problems or not all(isinstance(problem, Mapping) for problem in problems):
            raise ProblemError(
                "problems must be a dict or a non-empty list of dicts; give texts as text=, images as images="
            )
        # Defaults that a tokenizer was saved with must not shorten a problem's source.
        merged = self._merge_kwargs(_KWARGS, tokenizer_init_kwargs=None, **kwargs)
        text_kwargs = merged["text_kwargs"]
        data = self._encode_problems(problems, stage, rationales, text_kwargs)
        if self.image_processor is not None:
            if images is not None:
                rows = image_rows(images, len(problems))
            else:
                rows = [self.load_images(problem) for problem in problems]
            data.update(self.encode_images(rows, **merged["images_kwargs"]))
        return BatchFeature(data, tensor_type=text_kwargs.get("return_tensors") or "pt")

    def encode(
        self, problem: Mapping[str, Any], stage: str | None = None, rationale: str | None = None, target: bool = False
    ) -> dict[str, list[int]]:
        """`input_ids` of one problem's source and, with `target`, `labels`; neither images nor padding.

        `stage` is "rationale" or "answer", and may be None for a one-stage model.
        """
        prompt_format = self._prompt_format(stage)
        warn_of_losses(self.tokenizer, problem)
        parts = self._source_parts(problem, prompt_format, rationale, self.max_source_length)
        encoded = {"input_ids": join_parts(self.tokenizer, parts, self.max_source_length)}
        if target:
            text = build_prompt(problem, prompt_format, use_caption=self.use_caption)[1]
            encoded["labels"] = token_ids(self.tokenizer, text) + end_ids(self.tokenizer)
        return encoded

    def answer_token_ids(self) -> dict[str, list[int]]:
        """Token ids with which a model puts stage 2 together and scores the options.

        Returns:
            `answer_suffix_ids`: "Answer:" and the end token; `option_prefix_ids`: the forced start of an answer, "The
            answer is ("; `option_letter_ids`: the 26 letters after it.

        Raises:
            ProblemError: this tokenizer joins a letter with what stands before or after it.
        """
        answers = [token_ids(self.tokenizer, f"{_ANSWER_PREFIX}{letter}).") for letter in OPTION_LETTERS]
        prefix = list(os.path.commonprefix(answers))
        letters = [answer[len(prefix)] for answer in answers if len(answer) > len(prefix)]
        endings = {tuple(answer[len(prefix) + 1 :]) for answer in answers}
        if len(set(letters)) != len(OPTION_LETTERS) or len(endings) != 1 or not prefix:
            raise ProblemError(
                f"options can't be scored with this tokenizer: after {_ANSWER_PREFIX!r} the 26 letters are not one "
                "token each"
            )
        return {
            "answer_suffix_ids": token_ids(self.tokenizer, "Answer:") + end_ids(self.tokenizer),
            "option_prefix_ids": prefix,
            "option_letter_ids": letters,
        }

    def load_images(self, problem: Mapping[str, Any]) -> list[Image.Image]:
        """The problem's images as RGB PIL images; see `mmcot.processing.load_images`. One that is too narrow for the
        image processor is an error too."""
        images = load_images(problem)
        for image in images:
            try:
                check_aspect(*image.size, getattr(self.image_processor, "size", None) or {})
            except ProblemError as error:
                raise ProblemError(f"{problem_name(problem)}: {error}") from None
        return images

    def check_problem(self, problem: Mapping[str, Any]) -> list[Image.Image]:
        """The problem's images (none without an image processor), after a look at the whole problem.

        Raises:
            ProblemError: it says what is wrong, and of which problem, if that has an id: a field that is no text; an
                empty question; fewer than two or more than 26 choices; no image field (if there is an image processor;
                None in it is fine); an image that can't be read.
        """
        check_text(problem)
        warn_of_losses(self.tokenizer, problem)
        if self.image_processor is None:
            return []
        if "image" not in problem and "images" not in problem:
            raise ProblemError(f"{problem_name(problem)} has no field 'image' or 'images' (None or [] says: no image)")
        return self.load_images(problem)

    # ---- outputs of a model ----

    def post_process(
        self, outputs: Mapping[str, Any], problems: Mapping[str, Any] | list[Mapping[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """What a two-stage `generate` gave, as one dict for each problem.

        Args:
            outputs: `rationale_ids`, `answer_ids` (batch, tokens), `option_log_probs` (batch, choices; -inf beyond a
                row's own choices); any of them may be missing or None.
            problems: the questions, for `answer_text` and for the number of choices.

        Returns:
            dicts of `rationale` (without its leading "Solution:", newlines restored), `answer` (letter; parsed from a
            generated answer, else the most probable; None if unparsable), `answer_index`, `answer_text` (if problems
            are given), `scores` ({letter: probability among the own choices}, or None), `generated` ({"rationale",
            "answer"}: the texts as they were decoded).
        """
        if isinstance(problems, Mapping):
            problems = [problems]
        rationale_ids, answer_ids, log_probs = (
            outputs.get(name) for name in ("rationale_ids", "answer_ids", "option_log_probs")
        )
        size = next(len(rows) for rows in (rationale_ids, answer_ids, log_probs) if rows is not None)
        if problems is not None and len(problems) != size:
            raise ProblemError(f"{len(problems)} problems for {size} outputs")
        results = []
        for row in range(size):
            rationale, readable = self._decode(rationale_ids, row)
            answer, _ = self._decode(answer_ids, row)
            scores = None
            if log_probs is not None:
                probabilities = torch.as_tensor(log_probs[row]).float().softmax(-1)
                finite = torch.isfinite(torch.as_tensor(log_probs[row])).tolist()
                scores = {option_letter(i): probabilities[i].item() for i, own in enumerate(finite) if own}
            if answer is not None:
                choices = len(choices_of(problems[row])) if problems else len(scores or OPTION_LETTERS)
                index = parse_answer(answer, choices)
            else:
                index = OPTION_LETTERS.index(max(scores, key=lambda letter: scores[letter])) if scores else None
            letter = None if index is None else option_letter(index)
            result = {"rationale": readable, "answer": letter, "answer_index": index}
            if problems is not None:
                result["answer_text"] = None if index is None else choices_of(problems[row])[index]
            results.append({**result, "scores": scores, "generated": {"rationale": rationale, "answer": answer}})
        return results

    # ---- saving and loading ----

    @property
    def model_input_names(self) -> list[str]:
        names = ["input_ids", "attention_mask"]
        if self.image_processor is not None:
            names += [*self.image_processor.model_input_names, "image_attention_mask"]
        return names

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "auto_map": {"AutoProcessor": "processing_mmcot.MMCoTProcessor"}}

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Save the processor with its code files, so that `AutoProcessor` loads the folder with trust_remote_code
        where this package isn't installed. `kwargs` are those of `push_to_hub`."""
        if self.image_processor is not None:
            saved = super().save_pretrained(save_directory)
        else:
            os.makedirs(save_directory, exist_ok=True)
            self.tokenizer._set_processor_class(type(self).__name__)
            self.tokenizer.save_pretrained(save_directory)
            saved = [os.path.join(save_directory, PROCESSOR_NAME)]
            self.to_json_file(saved[0])
        copy_code(save_directory)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return saved

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        """As inherited, but without an image processor where none was saved, and with our own image processor's class
        from beside this file, which loads without trust_remote_code."""
        saved = (processor_dict or {}).get("image_processor", {})
        if saved is not None and saved.get("image_processor_type") != MMCoTImageProcessor.__name__:
            return super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)
        image_processor = None
        if saved is not None:
            image_processor = MMCoTImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        tokenizer = cls._load_tokenizer_from_pretrained("tokenizer", pretrained_model_name_or_path, **kwargs)
        return [image_processor, tokenizer]

    # ---- text ----

    def _encode_problems(self, problems, stage, rationales, text_kwargs) -> dict[str, Any]:
        for problem in problems:
            check_text(problem)
            warn_of_losses(self.tokenizer, problem)
        both = stage is None and self.rationale_format is not None
        if rationales is not None and (both or stage == "rationale"):
            raise ProblemError('rationales are read by stage="answer" only')
        rationales = [rationales] if isinstance(rationales, str) else rationales
        rationales = [None] * len(problems) if rationales is None else list(rationales)
        if len(rationales) != len(problems):
            raise ProblemError(f"{len(rationales)} rationales for {len(problems)} problems")

        limit = text_kwargs.get("max_length") or self.max_source_length
        if both and limit != self.max_source_length:
            raise ProblemError(
                f"max_length={limit} holds for one stage: a model joins stage 2's source up to its own limit, "
                f"{self.max_source_length}; give stage=, or make processor and model with max_source_length={limit}"
            )
        prompt_format = self._prompt_format("rationale" if both else stage)
        sources = [
            join_parts(self.tokenizer, self._source_parts(problem, prompt_format, rationale, limit), limit)
            for problem, rationale in zip(problems, rationales, strict=True)
        ]
        data = self._pad(sources, limit, text_kwargs)
        if both:
            prefixes = [self._source_parts(problem, self.answer_format, "", limit)[0][:limit] for problem in problems]
            padded = self._pad(prefixes, limit, text_kwargs)
            data.update({f"answer_{name}": values for name, values in padded.items()})
        if stage is None:
            data["num_choices"] = [len(choices_of(problem)) for problem in problems]
        return data

    def _prompt_format(self, stage: str | None) -> str:
        if stage == "answer" or (stage is None and self.rationale_format is None):
            return self.answer_format
        if stage == "rationale" and self.rationale_format is not None:
            return self.rationale_format
        known = '"answer"' if self.rationale_format is None else '"rationale" or "answer"'
        raise ProblemError(f"stage must be {known}, not {stage!r}")

    def _source_parts(self, problem, prompt_format: str, rationale: str | None, limit: int):
        cut = self.source_truncation == "keep_ends"
        options = {"rationale": rationale, "use_caption": self.use_caption, "cut": cut}
        return source_parts(self.tokenizer, problem, prompt_format, limit, **options)

    def _pad(self, rows: list[list[int]], limit: int, text_kwargs) -> dict[str, list[list[int]]]:
        """`input_ids` and `attention_mask`, padded on the right whatever the tokenizer's own side is."""
        padding = text_kwargs.get("padding", True)
        return self.tokenizer.pad(
            {"input_ids": rows},
            padding=padding,
            max_length=limit if padding == "max_length" else None,
            pad_to_multiple_of=text_kwargs.get("pad_to_multiple_of"),
            padding_side="right",
            return_attention_mask=True,
        ).data

    def _decode(self, ids, row: int) -> tuple[str | None, str | None]:
        """A row as it was decoded, and for readers; -100 in it is padding too."""
        if ids is None:
            return None, None
        tokens = [token for token in torch.as_tensor(ids[row]).tolist() if token != -100]
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip(), readable_text(self.tokenizer, tokens)

    def _encode_text_and_images(self, text, images, kwargs) -> BatchFeature:
        if text is None and images is None:
            raise ProblemError("give problems, or text, or images")
        merged = self._merge_kwargs(_KWARGS, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        data = {} if text is None else dict(self.tokenizer(text, **merged["text_kwargs"]))
        if images is not None:
            if self.image_processor is None:
                raise ProblemError("this processor has no image processor: its model reads text only")
            texts = None if text is None else 1 if isinstance(text, str) else len(text)
            data.update(self.encode_images(image_rows(images, texts), **merged["images_kwargs"]))
        return BatchFeature(data, tensor_type=merged["text_kwargs"].get("return_tensors"))

    def encode_images(self, rows: list[list], **images_kwargs) -> dict[str, torch.Tensor]:
        """Pixel values, pixel mask and image mask of each row's images; see `__call__` for their shapes."""
        return stack_images(self.image_processor, rows, **images_kwargs)
