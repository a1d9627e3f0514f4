"""Broken images are named, all at once, before anything is trained on them."""

import pytest
from PIL import Image
from record_files import json_lines, picture, problem

from mmcot.training.common import UserError
from mmcot.training.data.image_check import broken_images, check_images
from mmcot.training.data.problems import load_problems


@pytest.fixture
def source(tmp_path):
    for number in range(30):
        Image.effect_noise((32, 32), 50).convert("RGB").save(tmp_path / f"{number}.png")
    rows = [problem(id=f"p{number}", image=f"{number}.png") for number in range(30)]
    return json_lines(tmp_path / "mine.jsonl", *rows, problem(id="none"))


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_whole_images_pass(source):
    assert broken_images(load_problems(source)) == {}
    check_images(load_problems(source))


def test_every_broken_image_is_named_in_one_line(source, tmp_path):
    cut(tmp_path / "4.png")
    (tmp_path / "9.png").write_text("<html>")
    problems = load_problems(source)
    (tmp_path / "7.png").unlink()
    with pytest.raises(UserError) as raised:
        check_images(problems, num_workers=2)
    message = str(raised.value)
    assert message.startswith(f"images of 3 problems can't be read: problem p4: image '{tmp_path}/4.png': ")
    assert f"problem p7: image '{tmp_path}/7.png': there is no such file" in message
    assert f"problem p9: image '{tmp_path}/9.png': no image of a known format" in message and "\n" not in message


def test_one_broken_image_is_a_short_line(source, tmp_path):
    cut(tmp_path / "4.png")
    with pytest.raises(UserError, match=f"^problem p4: image '{tmp_path}/4.png': ") as raised:
        check_images(load_problems(source))
    assert len(str(raised.value)) < 250


def test_many_broken_images_are_counted(source, tmp_path):
    for number in range(30):
        cut(tmp_path / f"{number}.png")
    with pytest.raises(UserError) as raised:
        check_images(load_problems(source))
    message = str(raised.value)
    assert message.startswith("images of 30 problems") and message.count("problem p") == 20 and "10 more: p" in message


def test_a_set_that_was_whole_is_not_decoded_again_until_a_file_changes(source, tmp_path, monkeypatch):
    problems = load_problems(source)
    check_images(problems)
    read = []
    monkeypatch.setattr(
        "mmcot.training.data.image_check._fault", lambda one: read.append(one["id"]) or (one["id"], None)
    )
    check_images(problems)
    assert not read
    picture(tmp_path / "4.png", "blue")
    check_images(problems)
    assert len(read) == 31


def test_bytes_and_plain_records_are_checked_too():
    good, bad = {"bytes": picture(), "path": None}, {"bytes": picture()[:40], "path": None}
    assert list(broken_images([{"id": "a", "images": [good]}, {"id": "b", "images": [good, bad]}])) == ["b"]
    assert "image (bytes)" in broken_images([{"id": "b", "images": [bad]}])["b"]
