"""Saving that leaves a complete Hub repository behind: weights, code, processor, generation config, card.

transformers saves the code of a class only after `register_for_auto_class`, which keeps just the last name, never
saves the code of a custom pipeline, and knows nothing of processors. A folder from `save_pretrained` here needs
nothing else to load with `AutoModel`, `AutoProcessor` and `pipeline` where this package is not installed.
"""

import contextlib
import importlib.util
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import cached_file

from .errors_mmcot import ModelError, ModelFileError
from .loading_mmcot import HUB_ARGUMENTS, check_loaded, loading_errors, read_weights, what_is_wrong

TASK = "multimodal-cot"
# The tags that cards carry are tasks of transformers'; the Hub's snippet names them, and gets the same pipeline.
TASKS = (TASK, "image-text-to-text", "question-answering")
UPLOAD_ARGUMENTS = ("repo_id", "private", "token", "commit_message", "commit_description", "revision", "create_pr")
# Written by others than the model: carried over from the repository that the model was loaded from.
REPOSITORY_FILES = ["README.md", "example.png", "requirements.txt", "LICENSE", "spiece.model"]
REPOSITORY_FILES += ["processor_config.json", "preprocessor_config.json"]
REPOSITORY_FILES += ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
PROCESSING_FILES = ["processing_mmcot.py", "image_processing_mmcot.py", "image_reading_mmcot.py", "prompts_mmcot.py"]
PROCESSING_FILES += ["tokens_mmcot.py"]


def _processing_folder() -> Path | None:
    """The folder of the processor's code, where the package is installed; in a Hub repository all code lies in one."""
    spec = importlib.util.find_spec(f"{__package__}.processing")
    return Path(spec.origin).parent if spec and spec.origin else None


def code_files() -> list[Path]:
    """The source files that travel with a model: those of this folder and the processor's with `_mmcot` in their name.

    The others (checkpoints.py, image_presets.py) serve to make models, not to run them.
    """
    folders = [Path(__file__).parent, _processing_folder()]
    return sorted(file for folder in folders if folder for file in folder.glob("*_mmcot*.py"))


def read_repository_files(source, **hub) -> dict[str, bytes]:
    """What a repository or folder of ours holds beside the model, by name; absent files are left out.

    They are kept in memory (a few MB), so that a model can be saved whole after its source is gone. Code is among them
    only where this file itself came with it, by `trust_remote_code`: the installed package writes its own code, and
    drops names of other code (`auto_map`) from the settings.
    """
    installed = _processing_folder() is not None
    known = {file.stem for file in code_files()}

    def own_code(settings: dict) -> dict:
        if isinstance(settings.get("auto_map"), dict):
            names = settings["auto_map"].items()
            settings["auto_map"] = {auto: name for auto, name in names if str(name).split(".")[0] in known}
        return settings

    found = {}
    for name in REPOSITORY_FILES if installed else REPOSITORY_FILES + PROCESSING_FILES:
        with contextlib.suppress(OSError):  # absent
            path = str(cached_file(source, name, **hub))
            found[name] = Path(path).read_bytes()
        if installed and name in found and name.endswith("config.json"):
            try:
                settings = json.loads(found[name], object_hook=own_code)
            except ValueError as error:
                raise ModelFileError(f"{path} {what_is_wrong(path)}: download it again") from error
            found[name] = json.dumps(settings, indent=2, ensure_ascii=False).encode() + b"\n"
    return found


class CompleteSaveMixin:
    """`from_pretrained` and `save_pretrained` of a model whose repository is always complete.

    Set `processor` (an `MMCoTProcessor`) on a new model before saving it, or pass `processor=` to `save_pretrained`. A
    model that was loaded from a complete repository carries the processor and the card over by itself.
    """

    processor: Any = None
    _repository_files: dict[str, bytes] | None = None
    _auto_map: dict[str, str] = {}
    _pipeline_auto_class = "AutoModel"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """As `PreTrainedModel.from_pretrained`, but incomplete checkpoints are refused.

        Raises:
            ModelError: a file is missing or damaged; weights are missing, unknown, of other shapes or not finite. The
                message is one line that names them.
        """
        source = pretrained_model_name_or_path
        if source is None:
            return super().from_pretrained(None, *model_args, config=config, **kwargs)
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        give_info, any_shape = kwargs.pop("output_loading_info", False), kwargs.pop("ignore_mismatched_sizes", False)
        kwargs |= {"weights_only": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        with loading_errors(source):
            try:
                saved_config, _ = PreTrainedConfig.get_config_dict(source, **hub)
            except OSError:  # an adapter's folder, a GGUF file, nothing at all: transformers knows or says it better
                saved_config = {}
            except (AttributeError, TypeError):
                saved_config = None
            if not isinstance(saved_config, dict):
                raise ModelError(f"{source}: config.json holds no settings: download it again")
            config = cls._adapt(source, saved_config, read_weights(source, **hub), config, kwargs)
            where = None if "state_dict" in kwargs else source
            model, info = super().from_pretrained(where, *model_args, config=config, **kwargs)
            model.config.name_or_path = str(source)
            model._after_loading(info)
        check_loaded(source, model, info, saved_config, any_shape)
        if str(saved_config.get("model_type")).startswith("mmcot"):  # a plain T5's card doesn't describe this model
            model._repository_files = read_repository_files(source, **hub)
        return (model, info) if give_info else model

    @classmethod
    def _adapt(cls, source, saved_config: dict, weights: dict[str, Tensor], config, kwargs: dict):
        """The configuration to load with; `kwargs` get a `state_dict` if weights go by other names in the files."""
        found, own = saved_config.get("model_type"), cls.config_class.model_type
        if saved_config and found != own:
            raise ModelError(f"{source} is a {found} model: {cls.__name__} loads {own} models")
        return config

    def _after_loading(self, info: dict) -> None:
        """Completes a loaded model before its weights are checked; `info` is transformers' loading info."""

    def save_pretrained(
        self, save_directory, *, processor: Any = None, model_card: str | None = None, push_to_hub=False, **kwargs
    ):
        """As `PreTrainedModel.save_pretrained`, and the rest of the repository beside the weights.

        Args:
            save_directory: folder; made if missing.
            processor (`MMCoTProcessor`, *optional*): defaults to `self.processor`, then to the processor files of the
                repository that the model was loaded from.
            model_card (`str`, *optional*): text of `README.md`; a short one is written where there is none.
            push_to_hub: upload the same to `repo_id`, by default the folder's name; see `push_to_hub`.
        """
        upload = {name: kwargs.pop(name) for name in UPLOAD_ARGUMENTS if push_to_hub and name in kwargs}
        self.config.auto_map = dict(self._auto_map)
        pipeline = {"impl": "pipeline_mmcot.MMCoTPipeline", "pt": [self._pipeline_auto_class], "type": "multimodal"}
        self.config.custom_pipelines = {task: pipeline for task in TASKS}
        processor = processor or self.processor
        if processor is not None and self.config.option_letter_ids is None:
            with contextlib.suppress(ValueError):  # a tokenizer whose letters are not one token each
                ids = processor.answer_token_ids()  # with them the model answers by itself
                self.config.update({name: ids[name] for name in ids if hasattr(self.config, name)})
        # Under the names of the modules: names of an older layout, which transformers prefers for some backbones, are
        # unknown to `Trainer` when it resumes or takes up the best checkpoint, and it goes on without those weights.
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            self._complete_folder(Path(save_directory), processor, model_card)
        if push_to_hub:
            upload = {"repo_id": Path(save_directory).name, **upload}
            self.push_to_hub(**upload, processor=processor, model_card=model_card)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token=None, **kwargs) -> Any:
        """Uploads what `save_pretrained` writes, this model's card included; the repository is made if missing.

        `kwargs` are those of `save_pretrained` and `commit_message`, `commit_description`, `revision`, `create_pr`.
        """
        upload = {name: kwargs.pop(name) for name in UPLOAD_ARGUMENTS if name in kwargs}
        repo_id = HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            return HfApi(token=token).upload_folder(repo_id=repo_id, folder_path=folder, **upload)

    def _complete_folder(self, folder: Path, processor, model_card: str | None) -> None:
        # transformers may have written an auto_map of its own on the way: ours has every name
        self.config.auto_map = dict(self._auto_map)
        self.config.save_pretrained(folder)
        for name, content in (self._repository_files or {}).items():
            if not (folder / name).exists():
                (folder / name).write_bytes(content)
        for source in code_files():
            if source.resolve() != (folder / source.name).resolve():
                shutil.copyfile(source, folder / source.name)
        if processor is not None:
            processor.save_pretrained(folder)
        card = folder / "README.md"
        if model_card is not None:
            card.write_text(model_card, encoding="utf-8")
        elif not card.exists():
            card.write_text(_minimal_card(self), encoding="utf-8")
        for weights in folder.glob("*.safetensors"):  # safetensors lets only their owner read them
            weights.chmod(card.stat().st_mode)


def _minimal_card(model) -> str:
    """A card that claims nothing: no results are known here."""
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [multimodal-cot]
---
# {type(model).__name__}

A Multimodal Chain-of-Thought model (Zhang et al., [arXiv 2302.00923](https://arxiv.org/abs/2302.00923)) of
{model.num_parameters() / 1e6:.1f} M parameters. No evaluation is recorded for these weights.
```python
from transformers import pipeline
answer = pipeline("{TASK}", model="<this repository>", trust_remote_code=True)
answer({{"question": "…", "choices": ["…", "…"], "image": "picture.png"}})
```
"""


__all__ = ["CompleteSaveMixin", "code_files", "read_repository_files"]
