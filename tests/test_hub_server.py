"""The local Hub server answers the installed huggingface_hub, transformers and datasets as the Hub would."""

import subprocess
import sys
import textwrap

import huggingface_hub
import pytest
from huggingface_hub import HfApi, ModelCard, errors, hf_hub_download, snapshot_download
from packaging import version

WEIGHTS = bytes(range(256)) * 64  # 16 KiB
needs_hub_2 = pytest.mark.skipif(
    version.parse(huggingface_hub.__version__) < version.parse("2"),
    reason="huggingface_hub before 2 checks cards at huggingface.co and resumes in another way",
)


def test_account_and_creation(hub):
    api = HfApi()
    assert api.endpoint == hub.url and api.whoami()["name"] == hub.user
    with pytest.raises(errors.HfHubHTTPError, match="Invalid user token"):
        HfApi(token="hf_wrong").whoami()
    assert str(api.create_repo("tester/m")) == f"{hub.url}/tester/m"
    assert api.create_repo("tester/m", exist_ok=True).repo_id == "tester/m"
    assert api.create_repo("d", repo_type="dataset", private=True).repo_id == "tester/d"
    with pytest.raises(errors.HfHubHTTPError, match="409"):
        api.create_repo("tester/m")
    with pytest.raises(errors.HfHubHTTPError, match="403"):
        api.create_repo("someone-else/m")
    assert api.repo_exists("tester/m") and not api.repo_exists("tester/d")
    assert api.repo_exists("tester/d", repo_type="dataset") and api.dataset_info("tester/d").private
    api.delete_repo("tester/m")
    assert not api.repo_exists("tester/m")


def test_upload_download_and_snapshot(hub, tmp_path):
    api = HfApi()
    folder = tmp_path / "folder"
    (folder / "sub dir").mkdir(parents=True)
    content = {"config.json": b"{}", "sub dir/ü.txt": "ü".encode(), "model.safetensors": WEIGHTS, "empty.txt": b""}
    for name, data in content.items():
        (folder / name).write_bytes(data)
    api.create_repo("tester/m")
    commit = api.upload_folder(repo_id="tester/m", folder_path=folder, commit_message="all files")
    assert commit.oid == api.model_info("tester/m").sha
    assert {r.origin for r in hub.requests if r.method == "PUT"} == {"cdn"}  # the weights took the LFS way
    assert hub.files("tester/m") == {**content, ".gitattributes": hub.files("tester/m")[".gitattributes"]}

    local = snapshot_download("tester/m", allow_patterns=["*.json", "*.safetensors", "sub dir/*"])
    for name in ("config.json", "sub dir/ü.txt", "model.safetensors"):
        with open(f"{local}/{name}", "rb") as file:
            assert file.read() == content[name]
    assert all("authorization" not in r.headers for r in hub.requests if r.origin == "cdn")
    # a file that hasn't changed makes no commit, and one that is in the cache no second download
    assert api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="tester/m").oid == commit.oid
    before = len(hub.requests)
    hf_hub_download("tester/m", "model.safetensors")
    assert [r.method for r in hub.requests[before:]] == ["HEAD"]


def test_tree_and_information(hub):
    head = hub.add_repo("tester/d", {"a/b/x.parquet": WEIGHTS, "a/y.txt": "y", "z.txt": "z"}, "dataset")
    api = HfApi()
    assert sorted(api.list_repo_files("tester/d", repo_type="dataset")) == [
        ".gitattributes",
        "a/b/x.parquet",
        "a/y.txt",
        "z.txt",
    ]
    tree = {e.path: e for e in api.list_repo_tree("tester/d", "a", recursive=True, expand=True, repo_type="dataset")}
    assert set(tree) == {"a/b", "a/b/x.parquet", "a/y.txt"} and tree["a/y.txt"].last_commit.oid == head
    assert tree["a/b/x.parquet"].lfs.size == len(WEIGHTS) and tree["a/y.txt"].lfs is None
    assert [e.path for e in api.list_repo_tree("tester/d", "a", repo_type="dataset")] == ["a/b", "a/y.txt"]
    assert [e.path for e in api.get_paths_info("tester/d", ["a", "z.txt", "no"], repo_type="dataset")] == [
        "a",
        "z.txt",
    ]
    info = api.repo_info("tester/d", repo_type="dataset", revision=head, files_metadata=True)
    assert info.sha == head and {s.rfilename: s.size for s in info.siblings}["a/b/x.parquet"] == len(WEIGHTS)
    with pytest.raises(errors.EntryNotFoundError):
        list(api.list_repo_tree("tester/d", "nowhere", repo_type="dataset"))


def test_branches_tags_and_deletion(hub):
    api = HfApi()
    first = hub.add_repo("tester/m", {"a.txt": "1", "b.txt": "1", "c/d.txt": "1"})
    api.create_tag("tester/m", tag="v1")
    api.create_branch("tester/m", branch="work/x")
    api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id="tester/m", revision="work/x")
    api.delete_file("b.txt", repo_id="tester/m")
    api.delete_folder("c", repo_id="tester/m")
    refs = api.list_repo_refs("tester/m")
    assert {b.name for b in refs.branches} == {"main", "work/x"} and refs.tags[0].target_commit == first
    assert sorted(api.list_repo_files("tester/m")) == [".gitattributes", "a.txt"]
    for revision, text in (("main", "1"), ("v1", "1"), ("work/x", "2"), (first, "1"), (first[:7], "1")):
        with open(hf_hub_download("tester/m", "a.txt", revision=revision)) as file:
            assert file.read() == text
    assert "b.txt" in api.list_repo_files("tester/m", revision="v1")
    assert len(api.list_repo_commits("tester/m")) == 4
    with pytest.raises(errors.HfHubHTTPError, match="409"):
        api.create_tag("tester/m", tag="v1")
    api.delete_tag("tester/m", tag="v1")
    api.delete_branch("tester/m", branch="work/x")
    assert api.list_repo_refs("tester/m").tags == []
    with pytest.raises(errors.HfHubHTTPError, match="412"):
        api.upload_file(path_or_fileobj=b"3", path_in_repo="a.txt", repo_id="tester/m", parent_commit=first)


def test_what_is_missing_or_closed_is_told_apart(hub):
    hub.add_repo("tester/open", {"a.txt": "a"})
    hub.add_repo("tester/secret", {"a.txt": "a"}, private=True)
    hub.add_repo("tester/gated", {"a.txt": "a"}, gated=True)
    hub.add_repo("someone/else", {"a.txt": "a"})
    for arguments, error in (
        (("tester/nothing", "a.txt"), errors.RepositoryNotFoundError),
        (("tester/open", "b.txt"), errors.EntryNotFoundError),
        (("tester/open", "a.txt", "v9"), errors.RevisionNotFoundError),
    ):
        repo_id, name, *revision = arguments
        with pytest.raises(error):
            hf_hub_download(repo_id, name, revision=revision[0] if revision else None)
    with pytest.raises(errors.GatedRepoError):
        hf_hub_download("tester/gated", "a.txt", token=False)
    with pytest.raises(errors.RepositoryNotFoundError):
        hf_hub_download("tester/secret", "a.txt", token=False)
    assert hf_hub_download("tester/secret", "a.txt") and hf_hub_download("tester/gated", "a.txt")
    with pytest.raises(errors.HfHubHTTPError, match="401"):
        HfApi().upload_file(path_or_fileobj=b"", path_in_repo="x", repo_id="tester/open", token=False)
    with pytest.raises(errors.HfHubHTTPError, match="403"):
        HfApi().upload_file(path_or_fileobj=b"", path_in_repo="x", repo_id="someone/else")
    assert set(hub.files("tester/open")) == {".gitattributes", "a.txt"}


@needs_hub_2
def test_download_that_breaks_off_is_resumed(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 500)  # what counts as received
    hub.add_repo("tester/m", {"model.safetensors": WEIGHTS})
    hub.cut_next_download = 1000
    with open(hf_hub_download("tester/m", "model.safetensors"), "rb") as file:
        assert file.read() == WEIGHTS
    gets = [r for r in hub.requests if r.origin == "cdn" and r.method == "GET"]
    assert [r.status for r in gets] == [200, 206] and gets[1].headers["range"] == "bytes=1000-"


def test_parts_of_files(hub):
    hub.add_repo("tester/m", {"model.safetensors": WEIGHTS})
    url = huggingface_hub.hf_hub_url("tester/m", "model.safetensors")
    get = huggingface_hub.get_session().get
    for wanted, part in (
        ("bytes=10-19", WEIGHTS[10:20]),
        ("bytes=16380-", WEIGHTS[16380:]),
        ("bytes=-5", WEIGHTS[-5:]),
    ):
        answer = get(url, headers={"Range": wanted}, follow_redirects=True)
        assert (answer.status_code, answer.content) == (206, part)
    assert get(url, headers={"Range": "bytes=99999-"}, follow_redirects=True).status_code == 416


@needs_hub_2
def test_card_is_pushed_and_loaded(hub):
    hub.add_repo("tester/m")
    ModelCard("---\nlicense: mit\n---\n# A card\n").push_to_hub("tester/m")
    assert ModelCard.load("tester/m").data.license == "mit"


def test_transformers_and_datasets_over_http(hub, tmp_path):
    """In a fresh process, as users have it: push a tiny T5, load it by its Auto classes, read a parquet data set."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"question": ["a", "b"], "answer": [0, 1]}), tmp_path / "test.parquet")
    files = {"data/test-00000-of-00001.parquet": tmp_path / "test.parquet", "README.md": "---\nlicense: mit\n---\n"}
    hub.add_repo("tester/data", files, "dataset")
    code = """
        import torch, datasets
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import (AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast, T5Config,
                                  T5ForConditionalGeneration)

        config = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        model = T5ForConditionalGeneration(config)
        model.push_to_hub("tester/t5", commit_message="weights")
        words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "hello": 3}, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").push_to_hub("tester/t5")

        assert AutoConfig.from_pretrained("tester/t5").d_model == 8
        assert AutoTokenizer.from_pretrained("tester/t5")("hello you")["input_ids"] == [3, 2]
        loaded = AutoModelForSeq2SeqLM.from_pretrained("tester/t5").state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())

        assert datasets.load_dataset("tester/data", split="test")[1] == {"question": "b", "answer": 1}
        paths = "hf://datasets/tester/data/data/*.parquet"
        assert datasets.load_dataset("parquet", data_files=paths, split="train")["answer"] == [0, 1]
        assert len(list(datasets.load_dataset("tester/data", split="test", streaming=True))) == 2
        datasets.Dataset.from_dict({"x": [1, 2, 3]}).push_to_hub("tester/pushed")
        assert datasets.load_dataset("tester/pushed", split="train")["x"] == [1, 2, 3]
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=hub.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= set(hub.files("tester/t5"))
    assert not [r for r in hub.requests if r.status >= 500]
