"""Several backbones as one: each one's own features, side by side, in every place where one backbone can stand."""

import json

import pytest
import torch
from PIL import Image
from test_saving_mmcot import run_clean, write_problems
from tiny_models import tiny_model, vision_config
from transformers import ResNetConfig
from two_stage_models import VISION, make_stage

from mmcot import MMCoTForConditionalGeneration, MMCoTModel, MMCoTProcessor
from mmcot.backbones_mmcot import MMCoTBackbones
from mmcot.configuration_mmcot import MMCoTBackbonesConfig
from mmcot.errors_mmcot import ModelError
from mmcot.processing import MMCoTImageProcessor, image_processor_for
from mmcot.training.features.joined import from_backbones, join_vision
from mmcot.training.inference.predict import load_pipeline
from mmcot.vision_mmcot import build_vision, get_image_features

RESNET = ResNetConfig(embedding_size=8, hidden_sizes=[8, 24], depths=[1, 1], layer_type="basic")
PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


# Stands for a process of somebody who has not installed the package.
CLEAN = """
import json, os, sys
sys.modules["mmcot"] = None
os.environ["HF_HUB_OFFLINE"] = "1"
from transformers import AutoModel, AutoProcessor
problems = json.load(open(sys.argv[2]))
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
print(json.dumps(processor.post_process(model.generate(**processor(problems)), problems)))
"""


def networks(*configs):
    torch.manual_seed(0)
    return [build_vision(config).eval() for config in configs]


@torch.no_grad()
def features_of(vision, pixels, feature="last_hidden_state"):
    return get_image_features(vision, pixels, vision_feature=feature).pooler_output


def squeezed(side, mean, std):
    return MMCoTImageProcessor(size={"height": side, "width": side}, image_mean=mean, image_std=std)


@pytest.mark.parametrize("feature", ["last_hidden_state", "pooler_output"])
def test_the_features_are_the_two_alone_side_by_side(feature):
    vit, resnet = networks(vision_config(), RESNET)
    both = from_backbones([vit, resnet], vision_features=["last_hidden_state", feature])
    found = features_of(both, PIXELS)
    first, second = features_of(vit, PIXELS), features_of(resnet, PIXELS, feature)
    patches = first.shape[1]
    assert found.shape == (2, patches + second.shape[1], 16 + 24) and both.config.hidden_size == 40
    torch.testing.assert_close(found[:, :patches, :16], first)
    torch.testing.assert_close(found[:, patches:, 16:], second)
    assert not found[:, :patches, 16:].any() and not found[:, patches:, :16].any()


def test_the_fusion_s_projection_is_one_for_each():
    """Columns of its weight belong to one backbone, whose patches nothing else reaches."""
    model = tiny_model(vision_config=MMCoTBackbonesConfig(backbones=[vision_config(), RESNET]))
    features = model.get_image_features(PIXELS).pooler_output
    weight, bias = model.encoder.fusion.image_proj.weight, model.encoder.fusion.image_proj.bias
    projected = model.encoder.fusion.image_proj(features)
    torch.testing.assert_close(projected[:, :5], features[:, :5, :16] @ weight[:, :16].T + bias)
    torch.testing.assert_close(projected[:, 5:], features[:, 5:, 16:] @ weight[:, 16:].T + bias)


def test_each_gets_the_pixels_of_its_own_image_processor():
    """Its own mean and deviation, from pixels that another's have been taken out of."""
    picture = Image.effect_noise((20, 8), 90).convert("RGB")
    ours, other = squeezed(8, [0.5, 0.4, 0.3], [0.5, 0.6, 0.7]), squeezed(8, [0.2, 0.1, 0.0], [0.3, 0.2, 0.1])
    one, two = networks(vision_config(), vision_config())
    both = join_vision([one, two], ["one", "two"], [ours, other], ["last_hidden_state"] * 2)
    found = features_of(both, ours(picture, return_tensors="pt")["pixel_values"])
    for vision, processor, rows, columns in ((one, ours, (0, 5), (0, 16)), (two, other, (5, 10), (16, 32))):
        alone = features_of(vision, processor(picture, return_tensors="pt")["pixel_values"])
        torch.testing.assert_close(found[:, slice(*rows), slice(*columns)], alone, rtol=1e-4, atol=1e-5)


def test_another_size_is_reached_by_resizing():
    small = vision_config()
    large = vision_config()
    large.image_size = 16
    one, two = networks(large, small)
    processors = [image_processor_for(16), image_processor_for(8)]
    both = join_vision([one, two], ["large", "small"], processors, ["last_hidden_state"] * 2)
    pixels = torch.randn(2, 3, 16, 16)
    resized = torch.nn.functional.interpolate(pixels, (8, 8), mode="bicubic", antialias=True)
    torch.testing.assert_close(features_of(both, pixels)[:, -5:, 16:], features_of(two, resized))
    half = both.to(torch.bfloat16)
    assert features_of(half, pixels).dtype == torch.bfloat16


def test_what_can_t_be_joined_is_refused_by_name():
    vit, resnet = networks(vision_config(), RESNET)
    features = ["last_hidden_state"] * 2
    detr = image_processor_for("detr")
    with pytest.raises(ValueError, match="name theirs first") as caught:
        join_vision([resnet, vit], ["ours", "theirs"], [detr, image_processor_for(8)], features)
    assert "8 × 8" in str(caught.value) and caught.value.user_error
    join_vision([vit, resnet], ["theirs", "ours"], [image_processor_for(8), detr], features)
    settings = squeezed(8, None, None)
    settings.image_mean = settings.image_std = None
    with pytest.raises(ValueError, match="theirs: its MMCoTImageProcessor has no image_mean"):
        join_vision([vit, vit], ["ours", "theirs"], [image_processor_for(8), settings], features)
    with pytest.raises(ModelError, match="1 backbones: give two"):
        build_vision({"model_type": "mmcot_backbones", "backbones": [VISION]})
    with pytest.raises(ModelError, match="image_sizes are 1, but there are 2"):
        MMCoTBackbonesConfig(backbones=[RESNET, RESNET], image_sizes=[[8, 8]])


def test_one_stage_saves_and_loads_the_same(tmp_path):
    config = MMCoTBackbonesConfig(
        backbones=[vision_config(), RESNET], pixel_scales=[[1.0] * 3, [2.0] * 3], image_sizes=[[8, 8], None]
    )
    model = tiny_model(vision_config=config)
    with torch.no_grad():
        for number, parameter in enumerate(model.encoder.vision.parameters()):
            parameter.add_(0.01 * number)  # not what a seed gives
    model.encoder.vision.backbones[0].config.name_or_path = str(tmp_path)
    model.save_pretrained(tmp_path / "saved")
    again = MMCoTForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert type(again.encoder.vision) is MMCoTBackbones
    expected = model.get_image_features(PIXELS).pooler_output
    torch.testing.assert_close(again.get_image_features(PIXELS).pooler_output, expected, rtol=0, atol=0)
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["vision_config"]["pixel_scales"][1] == [2.0] * 3 and saved["image_feature_size"] == 40
    assert str(tmp_path) not in json.dumps(saved)


def test_two_stages_load_where_the_package_is_not_installed(tiny_tokenizer, tmp_path):
    other = {**VISION, "hidden_size": 16, "patch_size": 32}
    vision = {"model_type": "mmcot_backbones", "backbones": [VISION, other]}
    processor = MMCoTProcessor(image_processor_for(64), tiny_tokenizer, max_source_length=200)
    stages = [make_stage(processor, seed, vision_config=vision) for seed in (0, 1)]
    model = MMCoTModel.from_stages(*stages, processor)
    model.generation_config.max_new_tokens = 6
    model.save_pretrained(tmp_path / "source")
    problems = write_problems(tmp_path, 3)
    expected = load_pipeline(tmp_path / "source", device="cpu")(problems)
    results = run_clean(tmp_path, CLEAN, tmp_path / "source", tmp_path / "problems.json")
    for result, wanted in zip(results, expected, strict=True):
        assert result["generated"]["rationale"] == wanted["generated"]["rationale"]
        assert result["scores"] == pytest.approx(wanted["scores"], abs=1e-4)
