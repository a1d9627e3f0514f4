"""What a record's images may be: files below the source's folder; everything else only with leave."""

import base64
import os
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from record_files import json_lines, picture, problem

from mmcot.training.common import MissingFileError, UserError
from mmcot.training.data.problems import load_problems


@pytest.fixture
def outside(tmp_path):
    """A picture beside the source's folder `data`, and links to it from inside."""
    picture(tmp_path / "away" / "x.png")
    picture(tmp_path / "data-too" / "x.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "away" / "x.png")
    (tmp_path / "data" / "folder").symlink_to(tmp_path / "away")
    picture(tmp_path / "data" / "in" / "y.png")
    (tmp_path / "data" / "good.png").symlink_to("in/y.png")
    return tmp_path


@pytest.mark.parametrize(
    "name", ["../away/x.png", "in/../../away/x.png", "link.png", "folder/x.png", "ABSOLUTE", "../data-too/x.png"]
)
@pytest.mark.parametrize("gone", [False, True])
def test_files_outside_of_the_folder_need_leave(outside, name, gone):
    name = str(outside / "away" / "x.png") if name == "ABSOLUTE" else name
    if gone:  # whether it is there is no one's business either
        (outside / "away" / "x.png").unlink()
        (outside / "data-too" / "x.png").unlink()
    path = json_lines(outside / "data" / "mine.jsonl", problem(image=name))
    with pytest.raises(
        UserError, match="line 1: its image .* lies outside of .*/data: .*allow_outside=true"
    ) as raised:
        load_problems(path)
    assert not isinstance(raised.value, FileNotFoundError)
    if gone:
        with pytest.raises(MissingFileError):
            load_problems(path, allow_outside=True)
    else:
        assert load_problems(path, allow_outside=True)["has_image"][:] == [True]


def test_home_folder_needs_leave(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    picture(tmp_path / "home" / "x.png")
    path = json_lines(tmp_path / "data" / "mine.jsonl", problem(image="~/x.png"))
    with pytest.raises(UserError, match="'~/x.png' lies outside .*allow_outside=true"):
        load_problems(path)
    [[image]] = load_problems(path, allow_outside=True)["images"]
    assert image["path"] == str(tmp_path / "home" / "x.png")


def test_links_and_absolute_paths_within_the_folder_are_fine(outside):
    names = ["good.png", "in/../in/y.png", str(outside / "data" / "in" / "y.png")]
    path = json_lines(outside / "data" / "mine.jsonl", *(problem(image=name) for name in names))
    assert load_problems(path)["has_image"][:] == [True] * 3
    json_lines(outside / "data" / "tables" / "train.jsonl", problem(image="../in/y.png"))
    path.unlink()
    assert load_problems(outside / "data")["has_image"][:] == [True], "below the source's folder, if above the file's"


def test_the_hubs_cache_is_made_of_links(tmp_path):
    repository = tmp_path / "hub" / "datasets--someone--questions"
    snapshot = repository / "snapshots" / "0123abc"
    picture(repository / "blobs" / "aaa")
    snapshot.mkdir(parents=True)
    (snapshot / "a.png").symlink_to("../../blobs/aaa")
    json_lines(repository / "blobs" / "bbb", problem(image="a.png"))
    (snapshot / "train.jsonl").symlink_to("../../blobs/bbb")
    assert load_problems(snapshot)["has_image"][:] == [True]
    assert load_problems(snapshot / "train.jsonl")["has_image"][:] == [True]
    (tmp_path / "hub" / "secret.png").write_bytes(picture())
    (snapshot / "a.png").unlink()
    (snapshot / "a.png").symlink_to("../../../secret.png")
    json_lines(repository / "blobs" / "bbb", problem(image="a.png", id="again"))
    with pytest.raises(UserError, match="lies outside"):
        load_problems(snapshot)


def test_an_original_folder_whose_images_are_links(tmp_path):
    import json

    picture(tmp_path / "away" / "train" / "4" / "image.png")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "problems.json").write_text(json.dumps({"4": problem(image="image.png", split="train")}))
    (folder / "images").symlink_to(tmp_path / "away")
    with pytest.raises(UserError, match="problem 4: .*leads out of .*allow_outside=true"):
        load_problems(folder)
    assert load_problems(folder, allow_outside=True)["has_image"][:] == [True]
    (folder / "problems.json").write_text(json.dumps({"4": problem(image="../5/image.png", split="train")}))
    with pytest.raises(UserError, match="problem 4: 'image' must be the name of a file"):
        load_problems(folder, allow_outside=True)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.png", "https://example.org/x.png", "HTTP://x/y.png"])
def test_addresses_need_leave(tmp_path, url):
    path = json_lines(tmp_path / "mine.jsonl", problem(image=url))
    with pytest.raises(UserError, match="line 1: its image is an address, .*allow_urls=true"):
        load_problems(path)


@pytest.fixture
def server():
    """Serves a picture under every path but /bad, and counts the requests of each."""
    requests = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests[self.path] += 1
            self.send_response(500 if "bad" in self.path else 200)
            self.end_headers()
            self.wfile.write(picture())

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.requests, running.url = requests, f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_an_allowed_address_is_read_once_into_the_table(tmp_path, monkeypatch, server):
    rows = [problem(question=f"{number}?", image=f"{server.url}/{number}.png") for number in range(20)]
    path = json_lines(tmp_path / "mine.jsonl", *rows)
    with pytest.raises(UserError, match="line 1.*: its image .* can't be read"):
        load_problems(path, allow_urls=True)  # this machine's own addresses need more than that
    assert not server.requests
    monkeypatch.setenv("MMCOT_ALLOW_PRIVATE_URLS", "1")
    for _ in range(2):
        problems = load_problems(path, "train", allow_urls=True)
    asked = problems["question"][:]
    lines = [f"{path}/line {number}" for number, row in enumerate(rows, start=1) if row["question"] in asked]
    assert [images for (images,) in problems["images"]] == [{"path": line, "bytes": picture()} for line in lines]
    assert set(server.requests.values()) == {1} and len(server.requests) == len(problems) < 20
    path = json_lines(tmp_path / "mine.jsonl", problem(image=f"{server.url}/bad.png"))
    with pytest.raises(UserError, match="line 1: its image .*bad.png' can't be read: .*500"):
        load_problems(path, allow_urls=True)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y.png", "s3://x/y", "javascript:alert(1)"])
def test_other_addresses_are_never_read(tmp_path, url):
    path = json_lines(tmp_path / "mine.jsonl", problem(image=url))
    for leave in ({}, {"allow_urls": True, "allow_outside": True}):
        with pytest.raises(UserError, match="an address of a kind that is never read"):
            load_problems(path, **leave)


def test_data_in_the_record_itself(tmp_path):
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    path = json_lines(tmp_path / "mine.jsonl", problem(image=url))
    assert load_problems(path)[0]["images"] == [{"path": f"{path}/line 1", "bytes": picture()}]
    with pytest.raises(UserError, match="base64"):
        load_problems(json_lines(tmp_path / "mine.jsonl", problem(image=url[:-2] + "!")))


def test_what_is_no_plain_file_is_missing(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder"):
        with pytest.raises(MissingFileError, match="is missing"):
            load_problems(json_lines(tmp_path / "mine.jsonl", problem(image=name)))
    with pytest.raises(UserError, match="lies outside"):
        load_problems(json_lines(tmp_path / "mine.jsonl", problem(image="/dev/zero")))


def test_image_folder(tmp_path):
    """The Hub's layout: metadata beside the images, a folder a split."""
    for split in ("train", "validation"):
        picture(tmp_path / "fold" / split / "0.png")
        json_lines(tmp_path / "fold" / split / "metadata.jsonl", problem(file_name="0.png"))
    for split in ("train", "val"):
        problems = load_problems(tmp_path / "fold", split)
        assert problems["has_image"][:] == [True] and problems["split"][:] == [split]
    metadata = "file_name,question,choices,answer\ntrain/0.png,Which?,a | b,0\nvalidation/0.png,Which?,a | b,1\n"
    for split in ("train", "validation"):
        (tmp_path / "fold" / split / "metadata.jsonl").unlink()
    (tmp_path / "fold" / "metadata.csv").write_text(metadata)
    assert load_problems(tmp_path / "fold", "val")["answer"][:] == [1]


def test_original_image_rule_says_how_many_questions_lose_images(tmp_path, caplog):
    rows = [problem(images=["a.png", "b.png"], split="val"), problem(image="a.png", split="val"), problem(split="val")]
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    path = json_lines(tmp_path / "mine.jsonl", *rows)
    load_problems(path, "val", image_rule="all")
    load_problems(path, "val", image_rule="none")
    assert not caplog.records
    assert list(map(len, load_problems(path, "val", image_rule="original")["images"])) == [1, 1, 0]
    assert "mine.jsonl: image_rule=original: 1 of 3 questions of split val lose images" in caplog.text


def test_original_image_rule_on_real_problems(shared_dir, caplog):
    load_problems(shared_dir / "data" / "scienceqa", image_rule="original")
    assert "22 of 1,174 questions lose images" in caplog.text
