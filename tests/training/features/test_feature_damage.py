"""A damaged cache is refused in one line that names file and remedy; the same command makes anew what is damaged."""

import json
import os
import resource
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import torch
from feature_helpers import in_child
from safetensors import safe_open

from mmcot.training.common import UserError
from mmcot.training.features.cache import FeatureCache
from mmcot.training.features.layout import damaged_content, read_rows, shard_paths
from mmcot.training.features.repair import put_damage_aside, tell_what_is_lost
from mmcot.training.features.shards import FeatureWriter, write_index

INFO = {"backbone": "test", "keys": "image content"}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"<!DOCTYPE html><html><body>404</body></html>"


@pytest.fixture
def features() -> dict[str, torch.Tensor]:
    return {f"{number:032x}": torch.randn(3, 6).half() for number in range(12)}


@pytest.fixture
def folder(tmp_path, features) -> Path:
    """A cache of three shards of four pictures each, with its index."""
    fill(tmp_path / "cache", features)
    assert len(shard_paths(tmp_path / "cache")) == 3
    return tmp_path / "cache"


def fill(folder: Path, features: dict[str, torch.Tensor]) -> list[str]:
    """What `mmcot features` does: damage put aside, what is missing added. Returns the keys that it added."""
    with FeatureWriter(folder, INFO, shard_bytes=4 * 36) as writer:
        lost = put_damage_aside(folder)
        done = FeatureCache.open(folder) if shard_paths(folder) else ()
        added = [key for key in features if key not in done]
        for key in added:
            writer.add([key], [features[key]])
    write_index(folder)
    tell_what_is_lost(lost, FeatureCache.open(folder))
    return added


def assert_whole(folder: Path, features: dict[str, torch.Tensor]) -> None:
    cache = FeatureCache.open(folder)
    assert cache.keys == sorted(features)
    assert all(torch.equal(cache.get(key), value) for key, value in features.items())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def extended(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 20)


def of(content: bytes):
    def overwrite(path: Path) -> None:
        path.write_bytes(content)

    overwrite.__name__ = f"of_{content[:8]!r}"
    return overwrite


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "cut off or damaged"),
        (extended, "cut off or damaged"),
        (of(b""), "empty"),
        (of(b"\0" * 500), "empty"),
        (of(POINTER), "a Git LFS pointer, not the file itself"),
        (of(PAGE), "a web page, not the file itself"),
        (of(b"\x80\x04pickle" * 9), "cut off or damaged"),
    ],
)
@pytest.mark.parametrize("with_index", [True, False])
def test_a_damaged_shard_is_named_and_made_anew(folder, features, damage, message, with_index, caplog):
    shard = shard_paths(folder)[1]
    keys = [key.decode() for key in read_rows(shard)["keys"]]
    damage(shard)
    if not with_index:
        (folder / "index.safetensors").unlink()
    with pytest.raises(UserError, match=rf"{shard.name}: {message}.*run the same `mmcot features` command") as raised:
        FeatureCache.open(folder)
    assert "\n" not in str(raised.value)
    assert fill(folder, features) == keys
    assert_whole(folder, features)
    assert (
        shard.name in caplog.text and ("its 4 pictures" if with_index else "whose number isn't known") in caplog.text
    )
    assert (folder / f"damaged-{shard.name}").exists() and not shard.exists()
    assert fill(folder, features) == []  # once is enough


def test_all_damaged_shards_are_counted(folder):
    for shard in shard_paths(folder)[:2]:
        cut(shard)
    with pytest.raises(UserError, match=r"\(and 1 more of its 3 shards\)"):
        FeatureCache.open(folder)


def test_pictures_of_a_damaged_shard_that_are_not_made_anew_are_told(folder, features, caplog):
    shard = shard_paths(folder)[0]
    keys = [key.decode() for key in read_rows(shard)["keys"]]
    cut(shard)
    others = {key: value for key, value in features.items() if key not in keys[:3]}
    assert fill(folder, others) == keys[3:]
    assert "3 pictures of damaged shards weren't among these" in caplog.text


def exchange(path: Path, tensor: str, first: int, second: int) -> None:
    """Two rows of a tensor change places."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[tensor]
    data = bytearray(path.read_bytes())
    begin, end = (8 + size + offset for offset in entry["data_offsets"])
    width = (end - begin) // entry["shape"][0]
    one, other = (slice(begin + row * width, begin + (row + 1) * width) for row in (first, second))
    data[one], data[other] = data[other], data[one]
    path.write_bytes(data)


def test_exchanged_keys_are_noticed(folder, features):
    shard = shard_paths(folder)[2]
    exchange(shard, "keys", 0, 3)
    assert_whole(folder, features)  # by the index, which is right
    (folder / "index.safetensors").unlink()
    with pytest.raises(UserError, match=f"{shard.name}: its keys were changed or exchanged; run the same"):
        FeatureCache.open(folder)
    assert len(fill(folder, features)) == 4
    assert_whole(folder, features)


@pytest.mark.parametrize("column", ["keys", "shard", "start"])
def test_an_exchanged_index_is_not_believed(folder, features, column, caplog):
    exchange(folder / "index.safetensors", column, 1, 10)
    assert_whole(folder, features)
    assert "index.safetensors: damaged (its rows were changed)" in caplog.text
    assert fill(folder, features) == []
    caplog.clear()
    assert_whole(folder, features)
    assert not caplog.text  # written anew


@pytest.mark.parametrize("content", [b"", POINTER, PAGE, b"\0" * 100, b"junk that is long enough to be a header"])
def test_a_damaged_index_is_not_believed(folder, features, content):
    (folder / "index.safetensors").write_bytes(content)
    assert_whole(folder, features)


def test_exchanged_shards_are_noticed(folder, features):
    one, other = shard_paths(folder)[:2]
    assert one.stat().st_size == other.stat().st_size
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)
    assert_whole(folder, features)


def test_exchanged_or_changed_features_are_noticed_by_the_same_command(folder, features):
    first, second = shard_paths(folder)[:2]
    exchange(first, "features", 0, 3)  # a patch of one picture and a patch of the next
    data = bytearray(second.read_bytes())
    data[-1] ^= 1
    second.write_bytes(data)
    assert len(damaged_content(first)) == 2 and len(damaged_content(second)) == 1
    assert len(fill(folder, features)) == 8
    assert_whole(folder, features)


def test_a_shard_of_another_cache_is_refused(folder, tmp_path, features):
    with FeatureWriter(tmp_path / "other", {**INFO, "backbone": "vit"}) as writer:
        writer.add(["a"], [torch.ones(3, 6)])
    (stranger,) = shard_paths(tmp_path / "other")
    shutil.copy(stranger, folder)
    with pytest.raises(
        UserError, match=f"{stranger.name}: holds features with backbone 'vit', but cache.json.*'test'"
    ):
        FeatureCache.open(folder)
    fill(folder, features)
    assert_whole(folder, features)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 50, b'{"format": 1, "wid', b"[1]", b"{}", b'{"format": 1, "width": "6"}', POINTER, PAGE, None],
)
def test_a_damaged_cache_json_is_named_and_written_anew(folder, features, content):
    before = json.loads((folder / "cache.json").read_text())
    if content is None:
        (folder / "cache.json").unlink()
    else:
        (folder / "cache.json").write_bytes(content)
    with pytest.raises(UserError, match="cache.json: .*run the same `mmcot features` command again") as raised:
        FeatureCache.open(folder)
    assert "\n" not in str(raised.value)
    assert fill(folder, features) == []
    assert json.loads((folder / "cache.json").read_text()) == before
    assert_whole(folder, features)


def test_a_damaged_cache_json_never_lets_other_features_in(folder):
    (folder / "cache.json").write_bytes(b"")
    with pytest.raises(UserError, match="holds features with backbone 'test', not 'vit'"):
        FeatureWriter(folder, {**INFO, "backbone": "vit"})


def test_a_cache_json_of_a_later_version_is_not_damage(folder):
    info = json.loads((folder / "cache.json").read_text())
    (folder / "cache.json").write_text(json.dumps({**info, "format": 2}))
    for open_it in (lambda: FeatureCache.open(folder), lambda: FeatureWriter(folder, INFO)):
        with pytest.raises(UserError, match="a feature cache of format 2; this version"):
            open_it()


def as_earlier_version(folder: Path, features: dict[str, torch.Tensor]) -> None:
    """A cache as the version before wrote it: keys last, no checksums, one fingerprint."""
    from mmcot.training.features.layout import _key_tensor, _write_tensors

    folder.mkdir()
    info = {
        "format": 1,
        "backbone": "vit",
        "keys": "image content",
        "fingerprint": "ab",
        "width": 6,
        "dtype": "float16",
    }
    (folder / "cache.json").write_text(json.dumps(info))
    import numpy as np

    lengths = torch.tensor([len(value) for value in features.values()], dtype=torch.int32)
    keys = _key_tensor(np.array([key.encode() for key in features], dtype=np.bytes_))
    tensors = {"num_patches": [lengths], "features": list(features.values()), "keys": [keys]}
    _write_tensors(folder / "shard-00000-00000.safetensors", tensors, {})


def test_caches_of_the_version_before_open(tmp_path, features):
    as_earlier_version(tmp_path / "old", features)
    assert_whole(tmp_path / "old", features)
    assert "by an earlier version" in FeatureCache.open(tmp_path / "old").describe()
    with pytest.raises(UserError, match="made by an earlier version of mmcot"):
        FeatureWriter(tmp_path / "old", {**INFO, "backbone": "vit", "weights": "cd", "preprocessing": {}})
    (tmp_path / "old/cache.json").write_bytes(b"")  # and nothing says any more what made its shards
    with pytest.raises(UserError, match="don't say which backbone made them; delete the folder"):
        FeatureWriter(tmp_path / "old", INFO)


def test_nan_in_shards_without_checksums_is_damage(tmp_path, features):
    features = {**features, "f" * 32: torch.full((3, 6), float("nan")).half()}
    as_earlier_version(tmp_path / "old", features)
    assert damaged_content(tmp_path / "old/shard-00000-00000.safetensors") == ["f" * 32]


def test_a_full_disk_leaves_what_was_finished(folder, features):
    def write_more() -> list[str]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        writer = FeatureWriter(folder, INFO)
        writer.add(["small"], [torch.ones(3, 6)])
        writer._flush()
        try:
            writer.add(["large"], [torch.ones(9000, 6)])
            writer.close()
        except UserError as error:
            return [str(error), *sorted(path.name for path in folder.glob(".*"))]
        return []

    (message, *left) = in_child(write_more)
    assert "can't be written (File too large); mend that and run the same command again" in message
    assert not left  # neither half a shard nor a lock
    assert fill(folder, {**features, "small": torch.ones(3, 6).half()}) == []


def as_nobody(function):
    """In a process that may only read; root may do everything."""

    def dropped():
        if os.geteuid() == 0:
            os.setegid(65534)
            os.seteuid(65534)
        return function()

    return in_child(dropped)


@pytest.fixture
def open_folder(features):
    """As `folder`, where everybody may go: pytest's folders are for their owner alone."""
    with tempfile.TemporaryDirectory(prefix="mmcot-tests-") as outer:
        Path(outer).chmod(0o755)
        fill(Path(outer) / "cache", features)
        yield Path(outer) / "cache"
        (Path(outer) / "cache").chmod(0o755)


def test_a_folder_that_is_read_only_opens_but_takes_no_features(open_folder, features):
    folder = open_folder

    def read_and_write() -> list[str]:
        assert_whole(folder, features)
        try:
            FeatureWriter(folder, INFO)
        except UserError as error:
            said = [str(error)]
        try:
            FeatureWriter(folder / "below", INFO)
        except UserError as error:
            said.append(str(error))
        return said

    for path in [folder, *folder.iterdir()]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    writable, makeable = as_nobody(read_and_write)
    assert writable == f"{folder}: can't be written to (Permission denied)"
    assert makeable == f"{folder / 'below'}: can't be made a folder (Permission denied); take another one"


def test_a_cache_that_may_not_be_read_says_so(open_folder):
    folder = open_folder

    def opened() -> str:
        try:
            FeatureCache.open(folder)
        except UserError as error:
            return str(error)
        return ""

    shard = shard_paths(folder)[0]
    shard.chmod(0o000)
    assert as_nobody(opened).startswith(f"{shard}: can't be read (")
    (folder / "cache.json").chmod(0o000)
    assert as_nobody(opened).startswith(f"{folder / 'cache.json'}: can't be read (Permission denied)")
    folder.chmod(0o000)
    assert as_nobody(opened).startswith(f"{folder / 'cache.json'}: can't be read (Permission denied)")


def test_a_file_in_place_of_the_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UserError, match="can't be made a folder"):
            FeatureWriter(path, INFO)


def test_a_shard_that_is_cut_off_while_in_use_is_an_error(folder):
    cache = FeatureCache.open(folder)
    shard = shard_paths(folder)[0]
    os.truncate(shard, shard.stat().st_size - 20)
    with pytest.raises(UserError, match=f"{shard.name}: was cut off while it is in use"):
        cache.collate([[key] for key in cache.keys])


def test_shards_are_plain_safetensors(folder, features):
    for shard in shard_paths(folder):
        with safe_open(shard, "pt") as tensors:
            stored = tensors.get_tensor("features").unflatten(0, (4, 3))
            keys = [bytes(key.tolist()).rstrip(b"\0").decode() for key in tensors.get_tensor("keys")]
            assert json.loads(tensors.metadata()["info"])["backbone"] == "test"
        assert all(torch.equal(one, features[key]) for key, one in zip(keys, stored, strict=True))
