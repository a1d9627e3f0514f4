"""The original project's released features arrive whole, or are refused with the reason."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from feature_helpers import in_child, picture_file, released, resident

from mmcot.training.common import UserError
from mmcot.training.features.cache import problem_keys
from mmcot.training.features.match import check_features_cover
from mmcot.training.features.original import import_original


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


def test_import_asks_the_original_checkpoints_weights(golden_dir, tmp_path):
    path, name_map, _ = released(tmp_path, (2, 4, 48))
    for name in ("golden_t5relu_detr", "golden_old_flangated_detr"):
        with pytest.raises(ValueError, match="48 wide, but .* was trained on features of width 256"):
            import_original(path, name_map, tmp_path / "cache", checkpoint=golden_dir / name)


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
    rows, limit = {".npy": (300, 300), ".pth": (100, 200)}[suffix]  # limit in MiB, of 1200 and 400
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


@pytest.fixture
def imported(tmp_path):
    """Features of the questions 899 and 898, and a picture."""
    path, name_map, _ = released(tmp_path, (3, 100, 256))
    return import_original(path, name_map, tmp_path / "cache"), str(picture_file(tmp_path / "a.png"))


def test_imported_features_are_found_without_the_pictures_files(imported):
    """`image_rule=none` leaves the files out; the record still says that it has a picture."""
    cache, picture = imported
    for problem in ({"id": "899", "images": [], "has_image": True}, {"id": "899", "images": [picture]}):
        assert problem_keys(problem, cache) == ["id:899"]
    assert problem_keys({"id": "4", "images": [], "has_image": False}, cache) == []
    with pytest.raises(UserError, match="lacks the features of a picture of problem 4"):
        problem_keys({"id": "4", "images": [], "has_image": True}, cache)


@pytest.mark.parametrize("changes", [{"id": "train-899"}, {"subject": "geography of Mars"}, {"id": "0899"}])
def test_imported_features_are_never_another_sources(imported, changes):
    cache, picture = imported
    problem = {"id": "899", "images": [picture], "subject": "natural science"}
    check_features_cover(cache, [problem])
    with pytest.raises(UserError, match="isn't ScienceQA's"):
        problem_keys({**problem, **changes}, cache)
    with pytest.raises(UserError, match="aren't ScienceQA's"):
        check_features_cover(cache, [problem, {**problem, **changes}])


def test_imported_features_of_questions_without_a_picture_are_refused(imported):
    """Then the ids are another source's, though they look alike."""
    cache, picture = imported
    seen, blind = (
        {"id": "899", "images": [picture], "has_image": True},
        {"id": "898", "images": [], "has_image": False},
    )
    with pytest.raises(UserError, match="has features of a picture for 1 problems .898., which have none here"):
        check_features_cover(cache, [seen, blind])
