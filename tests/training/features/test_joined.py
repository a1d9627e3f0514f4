"""Several backbones by name: features cached of both, what fits them, and a run that reads them."""

from argparse import ArgumentParser

import pytest
import torch
from feature_helpers import picture_file
from PIL import Image

from mmcot.processing import image_processor_for
from mmcot.training.cli import main
from mmcot.training.commands import features
from mmcot.training.common import UserError
from mmcot.training.features.backbone import load_backbone
from mmcot.training.features.cache import FeatureCache
from mmcot.training.features.extract import extract_features
from mmcot.training.features.image_keys import image_key
from mmcot.training.features.match import check_features_match
from mmcot.training.inference.predict import load_pipeline, open_features
from mmcot.training.stages.recipe import load_recipe
from mmcot.training.train import run_recipe
from mmcot.vision_mmcot import build_vision

SIZES = {"model_type": "vit", "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SIZES |= {"image_size": 32, "patch_size": 16}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> list[str]:
    """Two folders: the second network is wider, and its processor has other statistics and another size."""
    folder = tmp_path_factory.mktemp("backbones")
    for name, width, side in (("narrow", 8, 32), ("wide", 12, 48)):
        torch.manual_seed(width)
        build_vision({**SIZES, "hidden_size": width, "image_size": side}).save_pretrained(folder / name)
        processor = image_processor_for(side)
        processor.image_mean = [0.5 - side / 100] * 3
        processor.save_pretrained(folder / name)
    return [str(folder / "narrow"), str(folder / "wide")]


def test_features_of_both_are_cached_and_belong_to_both(backbones, tmp_path):
    picture = picture_file(tmp_path / "pictures/a.png")
    options = ["--device", "cpu", "--num-workers", "0", "--dtype", "float32", "--output", str(tmp_path / "cache")]
    named = [word for folder in backbones for word in ("--backbone", folder)]
    assert main(["features", str(tmp_path / "pictures"), *named, *options]) == 0
    cache = FeatureCache.open(tmp_path / "cache")
    assert cache.info["backbone"] == "narrow + wide" and cache.image_feature_size == 20
    found, first = cache.get(image_key(picture)), load_backbone(backbones[0])
    pixels = first.image_processor(Image.open(picture), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = first.vision.eval()(pixels).last_hidden_state[0]
    assert found.shape == (5 + 10, 20)
    torch.testing.assert_close(found[:5, :8], expected)
    check_features_match(cache, backbones)
    for other in (backbones[::-1], backbones[0], [backbones[0]] * 2):
        with pytest.raises(UserError, match="features of another backbone than vision="):
            check_features_match(cache, other)


def test_a_run_reads_them_and_publishes_both_backbones(backbones, tmp_path):
    data = "embedded:n=12,val=2,test=2"
    extract_features(data, backbones, tmp_path / "cache", num_workers=0, device="cpu", show_progress=False)
    sizes = "model={d_model: 16, d_kv: 8, d_ff: 16, num_layers: 1, num_heads: 2}"
    plan = [sizes, f"vision=[{', '.join(backbones)}]", "max_steps=2", "max_new_tokens=4", f"data={data}"]
    plan += [f"features={tmp_path / 'cache'}", "keep_images=false", f"output_dir={tmp_path / 'run'}", "use_cpu=true"]
    plan += ["eval_strategy=no", "save_strategy=no", "load_best_model_at_end=false", "disable_tqdm=true"]
    plan += [
        "rationale_format=null",
        "answer_format=QCM-A",
        "freeze_vision=true",
        "per_device_train_batch_size=8",
        "blank_probe=false",
    ]
    run_recipe(load_recipe("embedded", plan))
    pipe, question = load_pipeline(str(tmp_path / "run/hub"), "cpu"), {"question": "Which?", "choices": ["a", "b"]}
    open_features(tmp_path / "cache", pipe)  # which refuses those of another backbone
    assert pipe({**question, "image": Image.new("RGB", (50, 40), "red")})["answer"] in ("A", "B")
    assert not any(
        folder.encode() in path.read_bytes() for folder in backbones for path in (tmp_path / "run/hub").glob("*.*")
    )


def test_what_names_no_backbones_is_refused(backbones):
    with pytest.raises(UserError, match="names two or more"):
        load_backbone(backbones[:1])
    with pytest.raises(UserError, match="each of several backbones keeps its own"):
        load_backbone(backbones, vision_feature="pooler_output")
    parser = ArgumentParser()
    features.add_arguments(parser)
    with pytest.raises(UserError, match="takes one --backbone"):
        words = [
            "--import-original",
            "a",
            "--name-map",
            "b",
            "--backbone",
            "vit",
            "--backbone",
            "clip",
            "--output",
            "c",
        ]
        features.run(parser.parse_args(words))
