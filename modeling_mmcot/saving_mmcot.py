"""Saving that leaves a complete Hub repository behind: weights, code, processor, generation config, card.

transformers saves the code of a class only after `register_for_auto_class`, which keeps just the last name, never
saves the code of a custom pipeline, and knows nothing of processors. A folder from `save_pretrained` here needs
nothing else to load with `AutoModel`, `AutoProcessor` and `pipeline` where this package is not installed.
"""

import json
import shutil
from pathlib import Path

from transformers.utils import cached_file

TASK = "multimodal-cot"

# Written by others than the model: carried over from the repository that the model was loaded from.
REPOSITORY_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "processing_mmcot.py",
    "prompts_mmcot.py",
    "image_processing_mmcot.py",
    "README.md",
    "LICENSE",
)


def read_repository_files(source: str, **hub_kwargs) -> dict[str, bytes]:
    """The repository files of a repository or folder of ours, by name; absent ones are left out.

    They are kept in memory (a few MB), so that a model can be saved whole after its source is gone. A starting point
    such as a plain T5 has a card and a tokenizer too, but they don't describe the model that is made from it.
    """

    def read(name: str) -> bytes | None:
        path = cached_file(
            source,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
            **hub_kwargs,
        )
        return None if path is None else Path(path).read_bytes()

    config = read("config.json")
    if config is None or not str(json.loads(config).get("model_type", "")).startswith("mmcot"):
        return {}
    found = {name: read(name) for name in REPOSITORY_FILES}
    return {name: content for name, content in found.items() if content is not None}


def code_files() -> list[Path]:
    """The source files that travel with a model: this one and its siblings."""
    return sorted(Path(__file__).parent.glob("*_mmcot*.py"))


class CompleteSaveMixin:
    """`from_pretrained` and `save_pretrained` of a model whose repository is always complete.

    Set `processor` (an `MMCoTProcessor`) on a new model before saving it, or pass `processor=` to `save_pretrained`. A
    model that was loaded from a complete repository carries the processor and the card over by itself.
    """

    processor = None
    _repository_files: dict[str, bytes] | None = None
    _auto_map: dict[str, str] = {}
    _pipeline_auto_class = "AutoModel"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        hub_kwargs = {
            name: kwargs[name]
            for name in ("cache_dir", "revision", "token", "local_files_only", "subfolder", "force_download")
            if kwargs.get(name) is not None
        }
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if pretrained_model_name_or_path is not None:
            model._repository_files = read_repository_files(str(pretrained_model_name_or_path), **hub_kwargs)
        return loaded

    def save_pretrained(self, save_directory, *, processor=None, model_card: str | None = None, **kwargs):
        """As `PreTrainedModel.save_pretrained`, and the rest of the repository beside the weights.

        Args:
            save_directory: folder; made if missing.
            processor (`MMCoTProcessor`, *optional*): defaults to `self.processor`, then to the processor files of the
                repository that the model was loaded from.
            model_card (`str`, *optional*): text of `README.md`; a short one is written where there is none.
        """
        push_to_hub = kwargs.pop("push_to_hub", False)
        hub_kwargs = {
            name: kwargs.pop(name)
            for name in ("repo_id", "commit_message", "private", "token", "create_pr", "revision")
            if push_to_hub and name in kwargs
        }
        self.config.auto_map = dict(self._auto_map)
        self.config.custom_pipelines = {
            TASK: {"impl": "pipeline_mmcot.MMCoTPipeline", "pt": [self._pipeline_auto_class], "type": "multimodal"}
        }
        # Under the names of the modules: names of an older layout, which transformers prefers for some backbones, are
        # unknown to `Trainer` when it resumes or takes up the best checkpoint, and it goes on without those weights.
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            self._complete_folder(Path(save_directory), processor or self.processor, model_card)
        if push_to_hub:
            hub_kwargs.setdefault("repo_id", Path(save_directory).name)
            self.push_to_hub(**hub_kwargs)

    def _complete_folder(self, folder: Path, processor, model_card: str | None) -> None:
        # transformers may have written an auto_map of its own on the way: ours has every name
        self.config.auto_map = dict(self._auto_map)
        self.config.save_pretrained(folder)
        for source in code_files():
            if source.resolve() != (folder / source.name).resolve():
                shutil.copyfile(source, folder / source.name)
        for name, content in (self._repository_files or {}).items():
            if not (folder / name).exists():
                (folder / name).write_bytes(content)
        if processor is not None:
            processor.save_pretrained(folder)
        card = folder / "README.md"
        if model_card is not None:
            card.write_text(model_card, encoding="utf-8")
        elif not card.exists():
            card.write_text(_minimal_card(self), encoding="utf-8")


def _minimal_card(model) -> str:
    """A card that claims nothing: no results are known here."""
    return (
        "---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\ntags:\n- multimodal-cot\n---\n\n"
        f"# {type(model).__name__}\n\n"
        "A Multimodal Chain-of-Thought model (Zhang et al., [arXiv 2302.00923](https://arxiv.org/abs/2302.00923)), "
        f"{model.num_parameters() / 1e6:.1f} M parameters. No evaluation is recorded for these weights.\n\n"
        "```python\nfrom transformers import pipeline\n\n"
        f'answer = pipeline("{TASK}", model="<this repository>", trust_remote_code=True)\n'
        'answer({"question": "…", "choices": ["…", "…"], "image": "picture.png"})\n```\n'
    )
