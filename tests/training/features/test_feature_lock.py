"""Two `mmcot features` on one folder lose nothing: the second is told who is at work."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from feature_helpers import in_children, picture_file
from transformers import ViTConfig, ViTModel

from mmcot.processing import image_processor_for
from mmcot.training.common import UserError
from mmcot.training.features.backbone import load_backbone
from mmcot.training.features.cache import FeatureCache
from mmcot.training.features.extract import extract_features
from mmcot.training.features.layout import shard_paths
from mmcot.training.features.shards import FeatureWriter, write_index

INFO = {"backbone": "test", "keys": "image content"}
HOLDER = """
import sys, time, torch
from mmcot.training.features.shards import FeatureWriter
writer = FeatureWriter(sys.argv[1], {"backbone": "test", "keys": "image content"})
writer.add(["first"], [torch.ones(2, 3)])
writer._flush()
writer._wait()
# lives on, as a DataLoader's
worker = torch.multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
worker.start()
print(worker.pid, flush=True)
worker.join()
"""


def test_a_second_writer_is_told_who_holds_the_folder_and_a_killed_one_hinders_nobody(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(
            UserError, match=rf"`mmcot features` \(process {holder.pid} on .*\) is writing to it; wait"
        ):
            FeatureWriter(tmp_path, INFO)
        assert FeatureCache.open(tmp_path).keys == ["first"]  # readers may
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # its worker lives, and doesn't keep the lock
        with FeatureWriter(tmp_path, INFO) as writer:
            writer.add(["second"], [torch.ones(2, 3)])
        assert FeatureCache.open(tmp_path).keys == ["first", "second"]
        assert not list(tmp_path.glob(".lock*"))
    finally:
        holder.kill()
        os.kill(worker, signal.SIGKILL)


def make_pictures_and_backbone(folder: Path, count: int) -> None:
    for number in range(count):
        picture_file(folder / f"pictures/{number}.png", seed=number)
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32)
    ViTModel(config).save_pretrained(folder / "vit")
    image_processor_for(32).save_pretrained(folder / "vit")


def extract(folder: Path, **options) -> str:
    """Extracts as the command does, a shard a picture, and gives the message of an error."""
    try:
        extract_features(
            folder / "pictures",
            folder / "vit",
            folder / "cache",
            **{"batch_size": 1, "device": "cpu", "num_workers": 0, "shard_bytes": 1, "show_progress": False} | options,
        )
    except UserError as error:
        return str(error)
    return ""


def test_two_at_once_lose_no_picture(tmp_path):
    make_pictures_and_backbone(tmp_path, 34)
    said = in_children(lambda: extract(tmp_path), lambda: extract(tmp_path))
    assert "" in said and all(text == "" or "is writing to it" in text for text in said)
    assert len(FeatureCache.open(tmp_path / "cache")) == 34


def test_writers_never_share_a_file_name(tmp_path, monkeypatch):
    """Where the file system knows no locks, that alone keeps all pictures."""

    def no_lock(path, timeout):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("filelock.FileLock.acquire", no_lock)
    writers = [FeatureWriter(tmp_path, INFO) for _ in range(2)]
    for number, writer in enumerate(writers):
        writer.add([f"picture {number}"], [torch.ones(2, 3)])
    for writer in writers:
        writer.close()
    write_index(tmp_path)
    assert FeatureCache.open(tmp_path).keys == ["picture 0", "picture 1"]


def test_processes_of_one_launch_write_side_by_side(tmp_path):
    with FeatureWriter(tmp_path, INFO) as one, FeatureWriter(tmp_path, INFO, process_index=1) as other:
        with pytest.raises(UserError, match="is writing to it"):
            FeatureWriter(tmp_path, INFO, process_index=1)
        one.add(["a"], [torch.ones(2, 3)])
        other.add(["b"], [torch.ones(2, 3)])
    assert FeatureCache.open(tmp_path).keys == ["a", "b"]


def launched(folder: Path, killed_after: int | None = None) -> list[str | None]:
    """Two processes as `accelerate launch` starts them; the second kills itself after so many shards."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        port = one.getsockname()[1]

    def process(rank: int) -> str:
        PartialState._reset_state()  # of the process that was forked
        os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank), ACCELERATE_USE_CPU="true")
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
        write, written = FeatureWriter._write_shard, []

        def write_and_die(self, *args):
            write(self, *args)
            written.append(args)
            if rank == 1 and len(written) == killed_after:
                os.kill(os.getpid(), signal.SIGKILL)

        FeatureWriter._write_shard = write_and_die
        try:
            return extract(folder)
        except Exception as error:  # the other process is gone
            return type(error).__name__

    return in_children(lambda: process(0), lambda: process(1))


def test_two_launched_processes_are_killed_and_gone_on_with(tmp_path):
    make_pictures_and_backbone(tmp_path, 10)
    first, second = launched(tmp_path, killed_after=2)
    assert first and second is None
    shards = shard_paths(tmp_path / "cache")
    assert len(FeatureCache.open(tmp_path / "cache")) == len(shards) == 7
    assert launched(tmp_path) == ["", ""]
    assert len(FeatureCache.open(tmp_path / "cache")) == 10
    assert set(shards) < set(shard_paths(tmp_path / "cache")) and len(shard_paths(tmp_path / "cache")) == 10
    shards[0].write_bytes(b"")
    (tmp_path / "pictures/10.png").write_bytes(b"broken")
    first, second = launched(tmp_path)  # what one process finds stops both, when all else is done
    assert first == second and "pictures/10.png: its picture can't be read" in first
    assert len(FeatureCache.open(tmp_path / "cache")) == 10


def test_a_launch_on_a_folder_in_use_stops_all_processes(tmp_path):
    make_pictures_and_backbone(tmp_path, 2)
    info = {**load_backbone(str(tmp_path / "vit")).info, "keys": "image content"}
    with FeatureWriter(tmp_path / "cache", info):
        first, second = launched(tmp_path)
    assert first == second and "is writing to it" in first
