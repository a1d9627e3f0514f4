"""`MMCoTProcessor`: problems become the tensors that either stage reads; what the stages write becomes answers.

Stage 2's source is put together from token ids: prefix (question, context, options) + rationale + closing
("Answer:" and the end token). Tokens of T5-style vocabularies never span white space, so that this equals tokenising
the joined text, and a model can put it together on its own device.
"""

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

from .image_processing_mmcot import MMCoTImageProcessor, copy_code, image_rows, load_images
from .prompts_mmcot import (
    OPTION_LETTERS,
    ProblemError,
    build_prompt,
    option_letter,
    parse_answer,
    problem_name,
    reads_rationale,
    source_segments,
    split_format,
)

SOURCE_TRUNCATIONS = ("keep_ends", "end")
_ANSWER_PREFIX = "The answer is ("


class MMCoTProcessorKwargs(ProcessingKwargs, total=False):
    # T5 has no segment ids, whatever a generic tokenizer would give.
    _defaults = {"text_kwargs": {"return_token_type_ids": False}}


class MMCoTProcessor(ProcessorMixin):
    """Image processor, tokenizer and prompts of Multimodal-CoT.

    Args:
        image_processor: None for a text-only model. `image_processor_for(preset)` makes the paper's.
        tokenizer: T5's, or any other whose tokens don't span white space.
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
            raise ValueError("MMCoTProcessor needs a tokenizer")
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
                raise ValueError(
                    f"two stages need an answer_format that reads the rationale (QCMG-A), not {answer_format!r}; "
                    "for a one-stage model give rationale_format=None"
                )
        if source_truncation not in SOURCE_TRUNCATIONS:
            raise ValueError(f"source_truncation is one of {SOURCE_TRUNCATIONS}, not {source_truncation!r}")
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
            ValueError: a problem that can't be asked (see `check_problem`); one whose question and options alone are
                too long.
        """
        if problems is None:
            return self._encode_text_and_images(text, images, kwargs)
        if text is not None:
            raise ValueError("give either problems or text, not both")
        problems = [problems] if isinstance(problems, Mapping) else list(problems)
        if not problems or not all(isinstance(problem, Mapping) for problem in problems):
            raise ValueError(
                "problems must be a dict or a non-empty list of dicts; give texts as text=, images as images="
            )
        # Defaults that a tokenizer was saved with must not shorten a problem's source.
        merged = self._merge_kwargs(MMCoTProcessorKwargs, tokenizer_init_kwargs=None, **kwargs)
        text_kwargs = merged["text_kwargs"]
        data = self._encode_problems(problems, stage, rationales, text_kwargs)
        if self.image_processor is not None:
            if images is not None:
                rows = image_rows(images, len(problems))
            else:
                rows = [load_images(problem) for problem in problems]
            data.update(self.encode_images(rows, **merged["images_kwargs"]))
        return BatchFeature(data, tensor_type=text_kwargs.get("return_tensors") or "pt")

    def encode(
        self, problem: Mapping[str, Any], stage: str | None = None, rationale: str | None = None, target: bool = False
    ) -> dict[str, list[int]]:
        """`input_ids` of one problem's source and, with `target`, `labels`; neither images nor padding.

        `stage` is "rationale" or "answer", and may be None for a one-stage model.
        """
        prompt_format = self._prompt_format(stage)
        prefix, middle, closing = self._source_ids(problem, prompt_format, rationale, self.max_source_length)
        encoded = {"input_ids": self._join(prefix, middle, closing, self.max_source_length)}
        if target:
            text = build_prompt(problem, prompt_format, use_caption=self.use_caption)[1]
            encoded["labels"] = self._ids(text) + self._end_ids
        return encoded

    def answer_token_ids(self) -> dict[str, list[int]]:
        """Token ids with which a model puts stage 2 together and scores the options.

        Returns:
            `answer_suffix_ids`: "Answer:" and the end token; `option_prefix_ids`: the forced start of an answer, "The
            answer is ("; `option_letter_ids`: the 26 letters after it.

        Raises:
            ValueError: this tokenizer joins a letter with what stands before or after it.
        """
        answers = [self._ids(f"{_ANSWER_PREFIX}{letter}).") for letter in OPTION_LETTERS]
        prefix = os.path.commonprefix(answers)
        letters = [answer[len(prefix)] for answer in answers if len(answer) > len(prefix)]
        endings = {tuple(answer[len(prefix) + 1 :]) for answer in answers}
        if len(set(letters)) != len(OPTION_LETTERS) or len(endings) != 1 or not prefix:
            raise ValueError(
                f"options can't be scored with this tokenizer: after {_ANSWER_PREFIX!r} the 26 letters are not one "
                "token each"
            )
        return {
            "answer_suffix_ids": self._ids("Answer:") + self._end_ids,
            "option_prefix_ids": prefix,
            "option_letter_ids": letters,
        }

    def load_images(self, problem: Mapping[str, Any]) -> list:
        """The problem's images as RGB PIL images; see `mmcot.processing.load_images`."""
        return load_images(problem)

    def check_problem(self, problem: Mapping[str, Any]) -> None:
        """Raise a ValueError that says what is wrong (and of which problem, if it has an id): an empty question; fewer
        than two or more than 26 choices; no image field (if there is an image processor; None in it is fine); an image
        that can't be read."""
        self._check_text(problem)
        if self.image_processor is not None:
            if "image" not in problem and "images" not in problem:
                raise ValueError(
                    f"{problem_name(problem)} has no field 'image' or 'images' (None or [] says: no image)"
                )
            load_images(problem)

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
            raise ValueError(f"{len(problems)} problems for {size} outputs")
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
                choices = len(problems[row]["choices"]) if problems else len(scores or OPTION_LETTERS)
                index = parse_answer(answer, choices)
            else:
                index = OPTION_LETTERS.index(max(scores, key=scores.get)) if scores else None
            result = {
                "rationale": readable,
                "answer": None if index is None else option_letter(index),
                "answer_index": index,
            }
            if problems is not None:
                result["answer_text"] = None if index is None else problems[row]["choices"][index]
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
        from beside this file, which asks no one to trust remote code."""
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
            self._check_text(problem)
        both = stage is None and self.rationale_format is not None
        if rationales is not None and (both or stage == "rationale"):
            raise ValueError('rationales are read by stage="answer" only')
        rationales = [rationales] if isinstance(rationales, str) else rationales
        rationales = [None] * len(problems) if rationales is None else list(rationales)
        if len(rationales) != len(problems):
            raise ValueError(f"{len(rationales)} rationales for {len(problems)} problems")

        limit = text_kwargs.get("max_length") or self.max_source_length
        if both and limit != self.max_source_length:
            raise ProblemError(
                f"max_length={limit} holds for one stage: a model joins stage 2's source up to its own limit, "
                f"{self.max_source_length}; give stage=, or make processor and model with max_source_length={limit}"
            )
        prompt_format = self.rationale_format if both else self._prompt_format(stage)
        sources = [
            self._join(*self._source_ids(problem, prompt_format, rationale, limit), limit)
            for problem, rationale in zip(problems, rationales, strict=True)
        ]
        data = dict(zip(("input_ids", "attention_mask"), self._pad(sources, limit, text_kwargs), strict=True))
        if both:
            prefixes = [self._source_ids(problem, self.answer_format, "", limit)[0][:limit] for problem in problems]
            padded = self._pad(prefixes, limit, text_kwargs)
            data.update(zip(("answer_input_ids", "answer_attention_mask"), padded, strict=True))
        if stage is None:
            data["num_choices"] = [len(problem["choices"]) for problem in problems]
        return data

    def _prompt_format(self, stage: str | None) -> str:
        if stage == "answer" or (stage is None and self.rationale_format is None):
            return self.answer_format
        if stage == "rationale" and self.rationale_format is not None:
            return self.rationale_format
        known = '"answer"' if self.rationale_format is None else '"rationale" or "answer"'
        raise ValueError(f"stage must be {known}, not {stage!r}")

    def _source_ids(self, problem, prompt_format, rationale, limit) -> tuple[list[int], list[int], list[int]]:
        """Token ids of prefix, rationale and closing; with "keep_ends" they fit into `limit` together."""
        *segments, closing = source_segments(problem, prompt_format, use_caption=self.use_caption, rationale=rationale)
        closing_ids = self._ids(closing.text) + self._end_ids
        head = [segment for segment in segments if segment.kind != "G"]
        prefix = self._ids(" ".join(segment.text for segment in head))
        middle = self._ids(" ".join(segment.text for segment in segments if segment.kind == "G"))
        if self.source_truncation == "keep_ends":
            budget = limit - len(closing_ids)
            reserved = limit // 4 if reads_rationale(prompt_format) else 0
            if len(prefix) > budget - reserved:
                prefix = self._shorten(problem, head, budget - reserved)
            middle = middle[: budget - len(prefix)]
        return prefix, middle, closing_ids

    def _shorten(self, problem, segments, budget: int) -> list[int]:
        """The prefix's ids in at most `budget`, by cutting the context at its end, then texts after "BECAUSE:"."""
        pieces = [self._ids(segment.text) for segment in segments]
        for kinds in (("C",), ("L", "E", "LE")):
            for index, (kind, text) in enumerate(segments):
                excess = sum(map(len, pieces)) - budget
                if excess > 0 and kind in kinds:
                    keep = len(pieces[index]) - excess
                    label = self._ids(text.split(":", 1)[0] + ":")  # alone it would say nothing
                    pieces[index] = pieces[index][:keep] if keep > len(label) else []
        ids = sum(pieces, [])
        if len(ids) > budget:
            raise ValueError(
                f"{problem_name(problem)}: question and options alone take {len(ids)} tokens, and there is room for "
                f"{max(budget, 0)}: raise max_source_length (now {self.max_source_length})"
            )
        return ids

    def _join(self, prefix, middle, closing, limit) -> list[int]:
        ids = prefix + middle + closing
        end = self._end_ids
        return ids if len(ids) <= limit else ids[: limit - len(end)] + end

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []

    @property
    def _end_ids(self) -> list[int]:
        """The end token, in a list."""
        end = self.tokenizer.eos_token_id
        return [end] if end is not None else self.tokenizer("")["input_ids"]

    def _pad(self, rows: list[list[int]], limit: int, text_kwargs) -> tuple[list[list[int]], list[list[int]]]:
        """(ids, mask), padded on the right whatever the tokenizer's own side is."""
        padding = text_kwargs.get("padding", True)
        if padding in (False, "do_not_pad"):
            return rows, [[1] * len(row) for row in rows]
        width = limit if padding == "max_length" else max(map(len, rows))
        multiple = text_kwargs.get("pad_to_multiple_of") or 1
        width = -(-width // multiple) * multiple
        pad = self.tokenizer.pad_token_id or 0
        ids = [row + [pad] * (width - len(row)) for row in rows]
        return ids, [[1] * len(row) + [0] * (width - len(row)) for row in rows]

    def _check_text(self, problem: Mapping[str, Any]) -> None:
        if not str(problem.get("question") or "").strip():
            raise ValueError(f"{problem_name(problem)}: the question is empty")
        choices = problem.get("choices")
        count = 0 if choices is None else len(choices)
        if not 2 <= count <= len(OPTION_LETTERS):
            raise ValueError(
                f"{problem_name(problem)} has {count} choice{'' if count == 1 else 's'}; "
                f"there must be 2 to {len(OPTION_LETTERS)}"
            )

    def _decode(self, ids, row: int) -> tuple[str | None, str | None]:
        """(the text as decoded, the text for readers) of one row of ids, in which -100 is padding too."""
        if ids is None:
            return None, None
        pad = self.tokenizer.pad_token_id or 0
        tokens = [pad if token == -100 else int(token) for token in torch.as_tensor(ids[row]).tolist()]
        text = self.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        # T5's vocabulary has no backslash: the two characters \n of the targets come back as <unk>n.
        special = {self.tokenizer.pad_token_id, self.tokenizer.eos_token_id}
        readable = self.tokenizer.decode([token for token in tokens if token not in special])
        if self.tokenizer.unk_token is not None:
            readable = readable.replace(f"{self.tokenizer.unk_token}n", "\n").replace(self.tokenizer.unk_token, "")
        lines = [" ".join(line.split()) for line in readable.replace("\\n", "\n").strip().split("\n")]
        return text, "\n".join(lines).removeprefix("Solution:").strip()

    # ---- images ----

    def _encode_text_and_images(self, text, images, kwargs) -> BatchFeature:
        if text is None and images is None:
            raise ValueError("give problems, or text, or images")
        merged = self._merge_kwargs(MMCoTProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        data = {} if text is None else dict(self.tokenizer(text, **merged["text_kwargs"]))
        if images is not None:
            if self.image_processor is None:
                raise ValueError("this processor has no image processor: its model reads text only")
            texts = None if text is None else 1 if isinstance(text, str) else len(text)
            data.update(self.encode_images(image_rows(images, texts), **merged["images_kwargs"]))
        return BatchFeature(data, tensor_type=merged["text_kwargs"].get("return_tensors"))

    def encode_images(self, rows: list[list], **images_kwargs) -> dict[str, torch.Tensor]:
        """Pixel values, pixel mask and image mask of each row's images; see `__call__` for their shapes."""
        flat = [image for row in rows for image in row]
        # Where a batch has no image at all, a blank one tells the shape that zeros have to have.
        encoded = self.image_processor(
            flat or [Image.new("RGB", (32, 32))], **{**images_kwargs, "return_tensors": "pt"}
        )
        count = max(1, *map(len, rows))
        present = torch.tensor([[column < len(row) for column in range(count)] for row in rows])  # (batch, images)
        data = {"image_attention_mask": present}
        for name, absent in (("pixel_values", 0), ("pixel_mask", 1)):  # a mask of zeros only would give NaN
            if name in encoded:
                values = encoded[name]
                placed = values.new_full((*present.shape, *values.shape[1:]), absent)
                placed[present] = values[: len(flat)]
                data[name] = placed if count > 1 else placed[:, 0]
        return data
