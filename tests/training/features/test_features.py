"""Extracted features are those that each picture gets alone, whatever was batched, interrupted or shared."""

import json
import os
import signal
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest
import timm
import torch
from feature_helpers import only_this_thread, picture_file, released
from PIL import Image
from transformers import DetrConfig, TimmWrapperConfig, ViTConfig, ViTModel

from mmcot.processing import image_processor_for
from mmcot.training.commands import features as features_command
from mmcot.training.common import UserError
from mmcot.training.features import pictures as picture_batches
from mmcot.training.features.backbone import weights_fingerprint
from mmcot.training.features.cache import FeatureCache, image_key, problem_keys
from mmcot.training.features.extract import extract_features
from mmcot.training.features.match import check_features_match
from mmcot.training.features.shards import FeatureWriter
from mmcot.vision_mmcot import build_vision


def tiny_backbone(name: str):
    """The preset's kind of network, small, with random weights."""
    torch.manual_seed(0)
    if name == "detr":
        backbone = {"model_type": "timm_backbone", "backbone": "test_resnet", "features_only": True}
        config = DetrConfig(
            backbone_config=backbone | {"out_indices": [1, 2, 3, 4]},
            **{"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 7},
            **{
                "encoder_ffn_dim": 32,
                "decoder_ffn_dim": 32,
                "encoder_attention_heads": 2,
                "decoder_attention_heads": 2,
            },
        )
    elif name == "vit":
        settings = {"img_size": 384, "patch_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2}
        config = TimmWrapperConfig(architecture="vit_tiny_patch16_384", model_args=settings)
    else:
        config = TimmWrapperConfig(architecture="test_resnet")
    return build_vision(config).eval()


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Nine pictures of four sizes, one of them twice under different names."""
    sizes = [(40, 30), (30, 40), (40, 30), (50, 50), (40, 30), (64, 21), (30, 40), (40, 30)]
    for number, size in enumerate(sizes):
        picture_file(tmp_path / f"pictures/{number % 2}/{number}.png", size, number)
    (tmp_path / "pictures/again.png").write_bytes((tmp_path / "pictures/0/0.png").read_bytes())
    return tmp_path / "pictures"


def plain_features(name: str, vision, path: Path) -> torch.Tensor:
    """One picture through timm's or transformers' own functions."""
    image = Image.open(path).convert("RGB")
    if name == "detr":
        from torchvision import transforms

        steps = [transforms.Resize(224), transforms.ToTensor()]
        steps.append(transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        return vision(transforms.Compose(steps)(image)[None]).last_hidden_state[0]
    settings = {
        "vit": {"input_size": (3, 384, 384), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.5,) * 3},
        "clip": {"crop_pct": 0.9, "mean": timm.data.OPENAI_CLIP_MEAN, "std": timm.data.OPENAI_CLIP_STD},
        "resnet": {"crop_pct": 0.95},
    }[name]
    transform = timm.data.create_transform(**{"input_size": (3, 224, 224), "interpolation": "bicubic"} | settings)
    hidden = vision.timm_model.forward_features(transform(image)[None])
    if name == "resnet":
        return vision.timm_model.forward_head(hidden, pre_logits=True)
    return hidden[0] if name == "vit" else hidden[0].flatten(1).T  # the grid, before pooling


@pytest.mark.parametrize(
    ("name", "shape"), [("detr", (7, 32)), ("vit", (145, 32)), ("clip", (49, 96)), ("resnet", (1, 96))]
)
def test_batched_features_equal_the_plain_call(pictures, tmp_path, name, shape):
    vision = tiny_backbone(name)
    feature = "pooler_output" if name == "resnet" else None
    cache = extract_features(
        *(pictures, vision, tmp_path / "cache"),
        **{"image_processor": image_processor_for(name), "vision_feature": feature},
        **{"batch_size": 3, "dtype": "float32", "num_workers": 0, "device": "cpu"},
    )
    files = sorted(pictures.rglob("*.png"))
    assert len(files) == 9 and len(cache) == 8
    with torch.inference_mode():
        for path in files:
            found = cache.get(image_key(path))
            assert found.shape == shape
            torch.testing.assert_close(found, plain_features(name, vision, path), atol=2e-5, rtol=1e-4)


def small(pictures, out: Path, **options):
    options = {"batch_size": 2, "num_workers": 0, "device": "cpu", "shard_bytes": 1, "show_progress": False} | options
    vision = tiny_backbone("resnet")
    return extract_features(pictures, vision, out, image_processor=image_processor_for("clip"), **options)


def content(cache: FeatureCache) -> dict[str, torch.Tensor]:
    return {key: cache.get(key) for key in cache.keys}


def assert_same(one: FeatureCache, other: FeatureCache) -> None:
    assert one.keys == other.keys
    for key, value in content(one).items():
        torch.testing.assert_close(value, other.get(key), atol=1e-3, rtol=1e-3)


def test_workers_and_problem_records_give_the_same_cache(pictures, tmp_path):
    files = sorted(map(str, pictures.rglob("*.png")))
    problems = [{"id": "0", "images": []}, {"id": "1", "images": files[:5]}, {"id": "2", "image": files[5]}]
    problems += [{"id": path, "images": [{"path": None, "bytes": Path(path).read_bytes()}]} for path in files[6:]]
    cache = small(problems, tmp_path / "records", num_workers=1, shard_bytes=None)
    assert_same(cache, small(pictures, tmp_path / "folder"))
    assert len(problem_keys(problems[1], cache)) == 5


def test_two_processes_give_the_same_cache_as_one(pictures, tmp_path):
    whole = small(pictures, tmp_path / "whole")
    small(pictures, tmp_path / "shared", process_index=1, num_processes=2)
    shared = small(pictures, tmp_path / "shared", process_index=0, num_processes=2)
    assert {path.name[6:11] for path in (tmp_path / "shared").glob("shard-*")} == {"00000", "00001"}
    assert_same(whole, shared)


def test_a_killed_run_is_taken_up(pictures, tmp_path, monkeypatch):
    whole = small(pictures, tmp_path / "whole")
    child = os.fork()
    if child == 0:  # dies while it writes its third shard, as by `kill -9`
        only_this_thread()
        monkeypatch.setattr(FeatureWriter, "_write_shard", dies_at(FeatureWriter._write_shard, 3))
        small(pictures, tmp_path / "killed")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    finished = FeatureCache.open(tmp_path / "killed").keys
    assert len(finished) == 2
    assert len(list((tmp_path / "killed").glob(".shard-*"))) == 1  # the half-written one
    added = []
    add = FeatureWriter.add
    monkeypatch.setattr(FeatureWriter, "add", lambda self, keys, value: added.extend(keys) or add(self, keys, value))
    assert_same(whole, small(pictures, tmp_path / "killed"))
    assert sorted(added + finished) == whole.keys and not list((tmp_path / "killed").glob(".shard-*"))
    added.clear()
    assert_same(whole, small(pictures, tmp_path / "killed"))
    assert not added


def dies_at(write, number: int):
    """`write`, but the process kills itself in the call of that number, with half a shard written."""
    calls = []

    def dying(self, path, keys, features):
        calls.append(path)
        if len(calls) == number:
            path.with_name(f".{path.name}.half").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, path, keys, features)

    return dying


def test_unreadable_and_missing_pictures_are_named(pictures, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    for workers in (0, 1):
        with pytest.raises(ValueError, match="problem 5: its picture can't be read") as raised:
            small([{"id": "5", "images": [str(bad)]}], tmp_path / "cache", num_workers=workers)
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="no pictures"):
        small([{"id": "5", "images": []}], tmp_path / "cache")
    small(pictures, tmp_path / "cache")
    with pytest.raises(
        ValueError, match="holds features with preprocessing {'image_mean': .0.48.*not {'image_mean': .0.485"
    ):  # other preprocessing
        extract_features(
            pictures, tiny_backbone("resnet"), tmp_path / "cache", image_processor=image_processor_for("resnet")
        )


def test_pending_pixels_are_bounded(pictures, tmp_path, monkeypatch):
    whole = small(pictures, tmp_path / "whole")
    monkeypatch.setattr(picture_batches, "MAX_PENDING_BYTES", 0)
    assert_same(whole, small(pictures, tmp_path / "bounded", batch_size=8))


def command(*arguments) -> int:
    parser = ArgumentParser()
    features_command.add_arguments(parser)
    return features_command.run(parser.parse_args([str(argument) for argument in arguments]))


def test_command(pictures, tmp_path, capsys):
    tiny_backbone("clip").save_pretrained(tmp_path / "backbone")
    image_processor_for("clip").save_pretrained(tmp_path / "backbone")
    options = ["--backbone", tmp_path / "backbone", "--device", "cpu", "--num-workers", 0, "--dtype", "bfloat16"]
    assert command(pictures, *options, "--output", tmp_path / "folder") == 0
    assert "features of 8 pictures, width 96, bfloat16" in capsys.readouterr().out
    lines = [{"question": "?", "choices": ["a", "b"], "image": str(path)} for path in sorted(pictures.rglob("*.png"))]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command(tmp_path / "test.jsonl", *options, "--split", "test", "--output", tmp_path / "records")
    assert_same(FeatureCache.open(tmp_path / "folder"), FeatureCache.open(tmp_path / "records"))
    path, name_map, _ = released(tmp_path, (3, 100, 256))
    assert command("--import-original", path, "--name-map", name_map, "--output", tmp_path / "imported") == 0


def test_command_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for arguments, error, message in (
        ((), ValueError, "name a SOURCE and a --backbone"),
        (("--import-original", "detr.npy"), ValueError, "needs --name-map"),
        ((tmp_path, "--backbone", tmp_path / "none"), FileNotFoundError, "neither a preset .* nor a model's folder"),
        ((tmp_path, "--backbone", "detr"), FileNotFoundError, "detr-resnet-101-dc5: can't get the backbone's weights"),
    ):
        with pytest.raises(error, match=message) as raised:
            command(*arguments, "--output", tmp_path / "cache")
        assert "\n" not in str(raised.value)


def test_importing_the_command_is_cheap():
    code = (
        "import sys, mmcot.training.features.extract; assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_features_are_known_by_output_weights_and_preprocessing(pictures, tmp_path):
    torch.manual_seed(0)
    vision, processor = tiny_backbone("clip"), image_processor_for("clip")
    options = {"device": "cpu", "num_workers": 0, "show_progress": False}
    cache = extract_features(pictures, vision, tmp_path / "cache", image_processor=processor, **options)
    assert cache.matches(vision, processor) and cache.matches(vision, processor, "last_hidden_state")
    with pytest.raises(UserError, match="vision_feature: last_hidden_sta.* against pooler_output"):
        check_features_match(cache, vision, processor, "pooler_output")
    with pytest.raises(UserError, match="preprocessing size"):
        check_features_match(cache, vision, image_processor_for(64))
    torch.nn.init.ones_(next(vision.parameters()))
    with pytest.raises(UserError, match="weights: "):
        check_features_match(cache, vision, processor)


def test_a_poolers_weights_count_where_it_is_asked():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    vision = ViTModel(ViTConfig(image_size=32, patch_size=16, **sizes))
    before = {feature: weights_fingerprint(vision, feature) for feature in ("last_hidden_state", "pooler_output")}
    torch.nn.init.ones_(vision.pooler.dense.weight)
    assert weights_fingerprint(vision, "last_hidden_state") == before["last_hidden_state"]
    assert weights_fingerprint(vision, "pooler_output") != before["pooler_output"]


def test_a_wrong_path_is_told_before_the_backbone_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("mmcot.training.features.backbone.load_backbone", lambda *args: pytest.fail("loaded"))
    with pytest.raises(UserError, match="wrong: no such file or folder"):
        extract_features(tmp_path / "wrong", "vit", tmp_path / "out")
