"""A feature cache gives back what was put in, whoever wrote it and however large it is."""

import json
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_helpers import in_child, picture_file, resident
from PIL import Image

from mmcot.training.features.cache import FeatureCache, image_key, problem_keys
from mmcot.training.features.shards import FeatureWriter, write_index

INFO = {"backbone": "test", "keys": "image content"}


def write_cache(folder: Path, features: dict[str, torch.Tensor], process_index: int = 0, **options) -> None:
    with FeatureWriter(folder, INFO, process_index=process_index, **options) as writer:
        writer.add(list(features), list(features.values()))


def random_features(*patches: int, width: int = 6) -> dict[str, torch.Tensor]:
    return {f"{number:032x}": torch.randn(count, width).half() for number, count in enumerate(patches)}


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


def test_the_writer_keeps_its_own_copy(tmp_path):
    value = torch.ones(2, 1, 3)
    with FeatureWriter(tmp_path, INFO, torch.float32) as writer:
        writer.add(["a", "b"], value)
        writer.add(["c"], [value[0]])
        value.zero_()
    assert all(FeatureCache.open(tmp_path).get(key).all() for key in "abc")


def test_equal_pixels_of_another_shape_are_another_picture():
    wide, high = (Image.new("RGB", size, "red") for size in ((6, 2), (2, 6)))
    assert wide.tobytes() == high.tobytes() and image_key(wide) != image_key(high)


def test_a_slow_run_writes_before_a_shard_is_full(tmp_path, monkeypatch):
    """What a killed process leaves is what was written after `FLUSH_SECONDS`."""
    monkeypatch.setattr("mmcot.training.features.shards.FLUSH_SECONDS", -1)
    with FeatureWriter(tmp_path, INFO) as writer:
        for key in "ab":  # the second shard waits for the first
            writer.add([key], torch.ones(1, 2, 2))
        assert FeatureCache.open(tmp_path).keys[0] == "a"
