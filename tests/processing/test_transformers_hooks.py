"""Methods of transformers that are overridden: each test fails when transformers stops calling one as it does."""

import inspect

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, CLIPImageProcessor
from transformers.image_processing_backends import PilBackend
from transformers.processing_utils import ProcessorMixin

from mmcot.processing import MMCoTImageProcessor, MMCoTProcessor, image_processor_for


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (
            ProcessorMixin,
            "_get_arguments_from_pretrained",
            ["pretrained_model_name_or_path", "processor_dict", "kwargs"],
        ),
        (ProcessorMixin, "_load_tokenizer_from_pretrained", ["sub_processor_type", "pretrained_model_name_or_path"]),
        (ProcessorMixin, "_merge_kwargs", ["ModelProcessorKwargs", "tokenizer_init_kwargs", "kwargs"]),
        (ProcessorMixin, "check_argument_for_proper_class", ["argument_name", "argument"]),
        (ProcessorMixin, "save_pretrained", ["save_directory", "push_to_hub", "kwargs"]),
        (PilBackend, "_preprocess", ["images", "do_pad", "pad_size", "return_tensors", "kwargs", "do_rescale"]),
        (PilBackend, "process_image", ["image", "do_convert_rgb", "input_data_format", "kwargs"]),
        (PilBackend, "resize", ["image", "size", "resample", "kwargs"]),
        (PilBackend, "center_crop", ["image", "size", "kwargs"]),
        (PilBackend, "pad", ["images", "pad_size", "return_mask"]),
        (PilBackend, "fetch_images", ["image_url_or_urls"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_they_are_there_with_the_arguments_that_are_used(owner, name, parameters):
    found = list(inspect.signature(getattr(owner, name)).parameters)
    assert set(parameters) <= set(found), found
    ours = MMCoTProcessor if owner is ProcessorMixin else MMCoTImageProcessor
    if name in vars(ours):  # what comes first by position is the same
        assert list(inspect.signature(getattr(ours, name)).parameters)[:2] == found[:2]


def test_every_overridden_method_of_the_image_processor_is_called(monkeypatch, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    for name in ("fetch_images", "process_image", "_preprocess", "resize", "center_crop"):
        called = []
        real = getattr(MMCoTImageProcessor, name)
        monkeypatch.setattr(MMCoTImageProcessor, name, lambda *a, r=real, c=called, **k: c.append(1) or r(*a, **k))
        image_processor_for("clip")(str(tmp_path / "a.png"), return_tensors="pt")
        assert called, name
        monkeypatch.undo()


def test_rows_are_cropped_as_timm_does_and_not_as_the_base_class():
    image = np.arange(7 * 7 * 3, dtype=np.uint8).reshape(3, 7, 7)
    processor = MMCoTImageProcessor(do_resize=False, do_center_crop=True, crop_size={"height": 4, "width": 4})
    got = processor(torch.tensor(image), do_normalize=False, do_rescale=False, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(got.to(torch.uint8), torch.tensor(image[:, 2:6, 2:6]))  # round(1.5) is 2
    wide = processor(torch.tensor(image[:, :3]), do_normalize=False, do_rescale=False, return_tensors="pt")
    assert wide["pixel_values"].shape == (1, 3, 4, 4)  # too small: padded, as the base class does


@pytest.fixture
def saved(tiny_tokenizer, tmp_path):
    """Folders of a processor with our image processor, with one of transformers, and without any."""
    parts = {"ours": image_processor_for(16), "other": CLIPImageProcessor(), "none": None}
    for name, part in parts.items():
        MMCoTProcessor(part, tiny_tokenizer).save_pretrained(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", ["ours", "other", "none"])
def test_a_saved_processor_loads_with_its_own_kind_of_image_processor(saved, name, monkeypatch):
    """`_get_arguments_from_pretrained`: ours from beside the processor's file, without trust in the folder's code."""
    called = []
    real = MMCoTProcessor._get_arguments_from_pretrained.__func__
    monkeypatch.setattr(
        MMCoTProcessor,
        "_get_arguments_from_pretrained",
        classmethod(lambda *a, **k: called.append(1) or real(*a, **k)),
    )
    loaded = MMCoTProcessor.from_pretrained(saved / name)
    assert called
    kind = {"ours": MMCoTImageProcessor, "other": type(CLIPImageProcessor()), "none": type(None)}[name]
    assert type(loaded.image_processor) is kind
    assert loaded.tokenizer.get_vocab() == MMCoTProcessor.from_pretrained(saved / "none").tokenizer.get_vocab()
    if name == "ours":  # the inherited method alone would not do
        monkeypatch.setattr(AutoImageProcessor, "from_pretrained", None)
        MMCoTProcessor.from_pretrained(saved / name)
    if name == "none":
        monkeypatch.delattr(MMCoTProcessor, "_get_arguments_from_pretrained")
        with pytest.raises(Exception):  # noqa: B017 - whatever transformers says of a missing part
            MMCoTProcessor.from_pretrained(saved / name)


def test_subfolders_are_passed_on(saved):
    for name in ("ours", "none"):
        loaded = MMCoTProcessor.from_pretrained(saved, subfolder=name)
        assert (loaded.image_processor is None) == (name == "none")


def test_saved_names_of_the_code(saved):
    """Every file that the code imports is beside it, and `auto_map` names classes that are there."""
    for name in ("ours", "none"):
        files = {path.name for path in (saved / name).glob("*.py")}
        for path in (saved / name).glob("*.py"):
            wanted = {
                line.split()[1][1:] + ".py" for line in path.read_text().splitlines() if line.startswith("from .")
            }
            assert wanted <= files, path.name
        loaded = AutoProcessor.from_pretrained(saved / name, trust_remote_code=True)
        assert loaded.to_dict()["auto_map"] == {"AutoProcessor": "processing_mmcot.MMCoTProcessor"}


def test_defaults_of_a_call_are_merged_as_before(tiny_tokenizer):
    """A tokenizer's saved settings don't shorten problems, but hold for bare texts; segment ids are never given."""
    tiny_tokenizer.init_kwargs["max_length"] = 3
    try:
        processor = MMCoTProcessor(None, tiny_tokenizer)
        problem = {"question": "What is it?", "choices": ["a", "b"]}
        assert processor(problem)["input_ids"].shape[1] > 10
        tiny_tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        assert set(processor(text="one two")) == {"input_ids", "attention_mask"}
    finally:
        del tiny_tokenizer.init_kwargs["max_length"]
        tiny_tokenizer.model_input_names = ["input_ids", "attention_mask"]
