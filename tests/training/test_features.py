"""The feature cache gives back what the backbone made of each picture, whatever was batched, interrupted or shared."""

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import DetrConfig, TimmWrapperConfig

from mmcot.processing.images_mmcot import image_processor_for
from mmcot.training import features as features_command
from mmcot.training.feature_cache import FeatureCache, image_key, problem_keys
from mmcot.training.feature_shards import FeatureWriter, write_index
from mmcot.training.features import extract_features, import_original
from mmcot.vision_mmcot import build_vision

INFO = {"backbone": "test", "keys": "image content"}


def write_cache(folder: Path, features: dict[str, torch.Tensor], process_index: int = 0, **options) -> None:
    with FeatureWriter(folder, INFO, process_index=process_index, **options) as writer:
        writer.add(list(features), list(features.values()))


def random_features(*patches: int, width: int = 6) -> dict[str, torch.Tensor]:
    return {f"{number:032x}": torch.randn(count, width).half() for number, count in enumerate(patches)}


# -- the cache --


def test_collate_is_ragged_and_masked(tmp_path):
    features = random_features(3, 1, 2)
    write_cache(tmp_path, features)
    cache = FeatureCache.open(tmp_path)
    a, b, c = cache.keys
    assert cache.keys == list(features) and len(cache) == 3 and a in cache and "other" not in cache
    assert cache.image_feature_size == 6 and cache.dtype == torch.float16
    batch = cache.collate([[c, a], [], [b], [a, a]])
    assert batch["image_features"].shape == (4, 6, 6) and batch["image_features"].dtype == torch.float16
    assert batch["image_attention_mask"].dtype == torch.bool
    assert batch["image_attention_mask"].sum(1).tolist() == [5, 0, 1, 6]
    assert torch.equal(batch["image_features"][0, :5], torch.cat([features[c], features[a]]))
    assert torch.equal(batch["image_features"][2, :1], features[b])
    assert not batch["image_features"][~batch["image_attention_mask"]].any()
    assert all(torch.equal(cache.get(key), features[key]) for key in features)


def test_batch_without_any_picture_is_one_masked_zero_patch(tmp_path):
    write_cache(tmp_path, random_features(3))
    batch = FeatureCache.open(tmp_path).collate([[], []], dtype=torch.float32)
    assert torch.equal(batch["image_features"], torch.zeros(2, 1, 6)) and not batch["image_attention_mask"].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_are_kept(tmp_path, dtype):
    value = torch.randn(2, 4, 3, dtype=dtype)
    with FeatureWriter(tmp_path, INFO, dtype) as writer:
        writer.add(["a", "b"], value)
    cache = FeatureCache.open(tmp_path)
    assert cache.dtype == dtype and torch.equal(cache.get("b"), value[1])
    assert cache.collate([["a"]], dtype=torch.float32)["image_features"].dtype == torch.float32


def test_unknown_keys_are_named(tmp_path):
    write_cache(tmp_path, {"id:1": torch.ones(1, 2)})
    cache = FeatureCache.open(tmp_path)
    for key in ("id:2", "", "id:1 and much longer than any key that is there"):
        assert key not in cache
        with pytest.raises(ValueError, match="has no features under key"):
            cache.get(key)
    with pytest.raises(FileNotFoundError, match="no feature cache"):
        FeatureCache.open(tmp_path / "nowhere")


def test_shards_of_processes_and_runs_are_joined_with_or_without_index(tmp_path):
    features = random_features(*[2] * 40)
    keys = list(features)
    for number, part in enumerate((keys[:15], keys[10:30])):  # 10 to 14 twice
        write_cache(tmp_path, {key: features[key] for key in part}, process_index=number, shard_bytes=100)
    write_index(tmp_path)
    assert len(FeatureCache.open(tmp_path)) == 30
    write_cache(tmp_path, {key: features[key] for key in keys[30:]})  # the index is out of date now
    assert len({path.name for path in tmp_path.glob("shard-00000-*")}) == 3 + 1
    (tmp_path / ".shard-00003-00000.safetensors.left").write_bytes(b"half-written")
    for _ in range(2):
        cache = FeatureCache.open(tmp_path)
        assert cache.keys == keys and all(torch.equal(cache.get(key), features[key]) for key in keys)
        write_index(tmp_path)


def test_cache_travels_to_worker_processes(tmp_path):
    features = random_features(2, 3)
    write_cache(tmp_path, features)
    cache = FeatureCache.open(tmp_path)
    cache.get(cache.keys[0])
    data = pickle.dumps(cache)
    assert len(data) < 500 and torch.equal(pickle.loads(data).get(cache.keys[1]), features[cache.keys[1]])


def test_other_features_are_not_mixed_in(tmp_path):
    write_cache(tmp_path, random_features(2))
    with pytest.raises(ValueError, match="holds features with backbone 'test', not 'vit'; use another folder"):
        FeatureWriter(tmp_path, {**INFO, "backbone": "vit"})
    with pytest.raises(ValueError, match="dtype 'float16', not 'float32'"):
        FeatureWriter(tmp_path, INFO, torch.float32)
    with pytest.raises(ValueError, match="of width 6, not 7"):
        write_cache(tmp_path, random_features(2, width=7))


def test_overflow_is_refused_and_nothing_written(tmp_path):
    with (
        pytest.raises(ValueError, match="of a aren't finite in torch.float16"),
        FeatureWriter(tmp_path, INFO) as writer,
    ):
        writer.add(["a"], torch.full((1, 2, 2), 70000.0))
    assert not list(tmp_path.iterdir())


def test_what_was_gathered_is_written_when_an_error_ends_the_work(tmp_path):
    with pytest.raises(KeyboardInterrupt), FeatureWriter(tmp_path, INFO) as writer:
        writer.add(["a"], torch.ones(1, 2, 2))
        raise KeyboardInterrupt
    assert FeatureCache.open(tmp_path).keys == ["a"]


def in_child(function) -> list[float]:
    """The function's result, from a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # a forked process has only this thread
        os.write(writing, json.dumps(function()).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        result = file.read()
    os.waitpid(child, 0)
    return json.loads(result)


def resident(which: str) -> float:
    """Resident memory of this process in MiB, now (VmRSS) or at its highest (VmHWM)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(which)) / 1024


def sparse_shard(path: Path, keys: list[str], patches: int, width: int) -> None:
    """A shard whose features are zeros that take no room on the disk."""
    raw_keys = "".join(keys).encode()
    lengths = np.full(len(keys), patches, dtype=np.int32).tobytes()
    size = len(keys) * patches * width * 2
    begin = len(raw_keys) + len(lengths)
    header = {
        "keys": {"dtype": "U8", "shape": [len(keys), len(keys[0])], "data_offsets": [0, len(raw_keys)]},
        "num_patches": {"dtype": "I32", "shape": [len(keys)], "data_offsets": [len(raw_keys), begin]},
        "features": {"dtype": "F16", "shape": [len(keys) * patches, width], "data_offsets": [begin, begin + size]},
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + raw_keys + lengths)
        file.truncate(8 + len(text) + begin + size)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_opening_and_reading_a_large_cache_loads_nothing(tmp_path):
    rows, shard_rows = 11208, 904  # all of ScienceQA with ViT features, 3.3 GB in 16 bit
    keys = [f"{number * 2654435761 % 2**32:032x}" for number in range(rows)]
    for number, start in enumerate(range(0, rows, shard_rows)):
        path = tmp_path / f"shard-00000-{number:05d}.safetensors"
        sparse_shard(path, keys[start : start + shard_rows], 145, 1024)
    info = {"format": 1, **INFO, "width": 1024, "dtype": "float16"}
    (tmp_path / "cache.json").write_text(json.dumps(info))
    write_index(tmp_path)

    def read() -> list[float]:
        before, start = resident("VmRSS"), time.perf_counter()
        cache = FeatureCache.open(tmp_path)
        seconds, opened = time.perf_counter() - start, resident("VmRSS") - before
        batch_bytes, keys = 0, cache.keys
        for first in range(0, 2000, 16):  # 0.6 GB in all
            batch_bytes += cache.collate([[key] for key in keys[first : first + 16]])["image_features"].nbytes
        return [len(cache), seconds, opened, batch_bytes, resident("VmRSS") - before]

    size, seconds, opened, batch_bytes, grown = in_child(read)
    assert size == rows and batch_bytes == 2000 * 145 * 1024 * 2
    assert seconds < 1 and opened < 20 and grown < 50


# -- keys --


def picture_file(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.BICUBIC).save(path)
    return path


def test_image_key_is_the_content(tmp_path):
    path = picture_file(tmp_path / "a.png")
    data = path.read_bytes()
    copy = tmp_path / "b.png"
    copy.write_bytes(data)
    references = [path, str(copy), data, {"path": None, "bytes": data}, {"path": str(path), "bytes": None}]
    assert len({image_key(reference) for reference in references}) == 1
    image = Image.open(path)
    assert image_key(image) == image_key(np.asarray(image)) == image_key(image.convert("RGBA"))
    assert len({image_key(path), image_key(image), image_key(picture_file(copy, seed=1))}) == 3
    with pytest.raises(FileNotFoundError):
        image_key(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="not an image reference: 3"):
        image_key(3)


def test_problem_keys(tmp_path):
    path = picture_file(tmp_path / "a.png")
    write_cache(tmp_path / "cache", {image_key(path): torch.ones(2, 3)})
    cache = FeatureCache.open(tmp_path / "cache")
    for problem in ({"images": [str(path)]}, {"image": path.read_bytes()}):
        assert problem_keys(problem, cache) == [image_key(path)]
    assert problem_keys({"image": None}, cache) == problem_keys({"images": []}, cache) == []
    with pytest.raises(ValueError, match="lacks the features of a picture of problem 7; run `mmcot features`"):
        problem_keys({"id": "7", "image": picture_file(tmp_path / "b.png", seed=1)}, cache)


# -- extraction --


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
        torch.set_num_threads(1)
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
    with pytest.raises(ValueError, match="holds features with fingerprint"):  # other preprocessing
        extract_features(
            pictures, tiny_backbone("resnet"), tmp_path / "cache", image_processor=image_processor_for("resnet")
        )


def test_pending_pixels_are_bounded(pictures, tmp_path, monkeypatch):
    whole = small(pictures, tmp_path / "whole")
    monkeypatch.setattr(features_command, "MAX_PENDING_BYTES", 0)
    assert_same(whole, small(pictures, tmp_path / "bounded", batch_size=8))


# -- the original's files --


def released(folder: Path, shape: tuple, suffix: str = ".npy", repeat: bool = False) -> tuple[Path, Path, np.ndarray]:
    """A file of features, a name map of every row but row 0 in another order, and the array."""
    array = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    if repeat:
        array[:] = array[:, :1]
    path = folder / f"features{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    else:
        torch.save(torch.from_numpy(array), path)
    (folder / "name_map.json").write_text(json.dumps({str(900 - row): str(row) for row in range(1, shape[0])}))
    return path, folder / "name_map.json", array


@pytest.mark.parametrize(
    ("shape", "suffix", "name"),
    [((5, 100, 256), ".npy", "detr"), ((3, 145, 1024), ".pth", "vit"), ((3, 49, 2048), ".npy", "clip")],
)
def test_import_keeps_every_row_under_its_question(tmp_path, shape, suffix, name):
    path, name_map, array = released(tmp_path, shape, suffix)
    cache = import_original(path, name_map, tmp_path / "cache", dtype="float32")
    assert cache.info["backbone"] == name and len(cache) == shape[0] - 1
    for row in range(1, shape[0]):
        problem = {"id": str(900 - row), "images": ["its picture, which nobody opens"]}
        (key,) = problem_keys(problem, cache)
        assert torch.equal(cache.get(key), torch.from_numpy(array[row]))
    assert problem_keys({"id": "900", "images": []}, cache) == []
    with pytest.raises(ValueError, match="picture of problem 900"):
        problem_keys({"id": "900", "images": ["a.png"]}, cache)
    assert len(import_original(path, name_map, tmp_path / "cache", dtype="float32")) == shape[0] - 1
    assert len(list((tmp_path / "cache").glob("shard-*"))) == 1  # nothing was done twice


def test_import_of_repeated_resnet_vectors(tmp_path):
    path, name_map, array = released(tmp_path, (3, 512, 2048), repeat=True)
    cache = import_original(path, name_map, tmp_path / "cache", dtype="float32")
    assert torch.equal(cache.get("id:898"), torch.from_numpy(array[2, :1]))
    array[2, 77, 5] += 1
    np.save(path, array)
    with pytest.raises(ValueError, match="row 2 isn't one vector repeated 512 times"):
        import_original(path, name_map, tmp_path / "other")


def test_import_of_the_released_resnet_file_which_has_one_vector_a_picture(tmp_path):
    path, name_map, array = released(tmp_path, (3, 1, 2048))
    np.save(path, array[:, 0])
    cache = import_original(path, name_map, tmp_path / "cache", dtype="float32")
    assert cache.info["backbone"] == "resnet" and torch.equal(cache.get("id:898"), torch.from_numpy(array[2]))


def test_import_refuses_what_does_not_fit(tmp_path):
    path, name_map, _ = released(tmp_path, (2, 577, 768))
    with pytest.raises(ValueError, match=r"features are \(577, 768\).*vit \(145, 1024\).*circulates"):
        import_original(path, name_map, tmp_path / "cache")
    with pytest.raises(ValueError, match=r"those of vit are \(145, 1024\)"):
        import_original(path, name_map, tmp_path / "cache", backbone="vit")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/config.json").write_text(json.dumps({"model_type": "mmcot", "image_feature_size": 1024}))
    with pytest.raises(ValueError, match="768 wide, but .*checkpoint was trained on features of width 1024"):
        import_original(path, name_map, tmp_path / "cache", checkpoint=tmp_path / "checkpoint")
    name_map.write_text(json.dumps({"4": 2}))
    (tmp_path / "checkpoint/config.json").write_text(json.dumps({"image_feature_size": 768}))
    with pytest.raises(ValueError, match="question 4 has row 2, but the features have 2 rows"):
        import_original(path, name_map, tmp_path / "cache", checkpoint=tmp_path / "checkpoint")
    name_map.write_text("[1]")
    with pytest.raises(ValueError, match="JSON object from question id to row"):
        import_original(path, name_map, tmp_path / "cache", checkpoint=tmp_path / "checkpoint")
    assert not (tmp_path / "cache").exists()


def test_import_asks_the_original_checkpoints_weights(shared_dir, tmp_path):
    path, name_map, _ = released(tmp_path, (2, 4, 48))
    for name in ("golden_t5relu_detr", "golden_old_flangated_detr"):
        with pytest.raises(ValueError, match="48 wide, but .* was trained on features of width 256"):
            import_original(path, name_map, tmp_path / "cache", checkpoint=shared_dir / "golden" / name)


def test_import_never_unpickles(tmp_path):
    (tmp_path / "name_map.json").write_text("{}")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    torch.save({"a": io.BytesIO()}, tmp_path / "objects.pth")
    torch.save(torch.zeros(1, 100, 256), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("objects.npy", "objects.pth", "old.pth"):
        with pytest.raises(ValueError, match=name) as raised:
            import_original(tmp_path / name, tmp_path / "name_map.json", tmp_path / "cache")
        assert "\n" not in str(raised.value)
    with pytest.raises(FileNotFoundError, match="nowhere.npy: no such file"):
        import_original(tmp_path / "nowhere.npy", tmp_path / "name_map.json", tmp_path / "cache")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("suffix", [".npy", ".pth"])
def test_import_of_a_large_file_stays_small(tmp_path, suffix):
    """Zeros of ResNet's shape are all read but never held as a whole; in the .npy they take no room on the disk."""
    rows, limit = {".npy": (300, 400), ".pth": (100, 200)}[suffix]  # limit in MiB, of 1200 and 400
    path = tmp_path / f"resnet{suffix}"
    if suffix == ".npy":
        np.lib.format.open_memmap(path, "w+", np.float32, (rows, 512, 2048)).flush()
    else:
        torch.save(torch.zeros(rows, 512, 2048), path)
    (tmp_path / "name_map.json").write_text(json.dumps({str(row): row for row in range(rows)}))

    def import_all() -> list[float]:
        before = resident("VmRSS")
        cache = import_original(path, tmp_path / "name_map.json", tmp_path / "cache")
        return [len(cache), resident("VmHWM") - before]  # at its highest

    size, grown = in_child(import_all)
    assert size == rows and grown < limit
    path.unlink()


# -- the command --


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
    lines = [{"question": "?", "choices": ["a"], "image": str(path)} for path in sorted(pictures.rglob("*.png"))]
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
        ((tmp_path, "--backbone", "detr"), FileNotFoundError, "detr-resnet-101-dc5: can't get the weights of detr"),
    ):
        with pytest.raises(error, match=message) as raised:
            command(*arguments, "--output", tmp_path / "cache")
        assert "\n" not in str(raised.value)


def test_importing_the_command_is_cheap():
    code = "import sys, mmcot.training.features; assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
