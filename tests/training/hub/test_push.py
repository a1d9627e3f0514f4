"""Only complete repositories leave the house, without what doesn't belong to them, and load by name from the Hub."""

import argparse
import json
import re
import shutil
import subprocess
import sys
import textwrap
import urllib.request

import numpy as np
import pytest
from huggingface_hub import HfApi, ModelCard
from safetensors.numpy import save_file

from mmcot.training.commands import push as push_command
from mmcot.training.hub.cards import config_facts, model_card
from mmcot.training.hub.push import check_repository, push

CONFIG = {
    "model_type": "mmcot",
    "auto_map": {"AutoConfig": "configuration_mmcot.MMCoTConfig", "AutoModel": "modeling_mmcot.MMCoT"},
    "custom_pipelines": {"multimodal-cot": {"impl": "pipeline_mmcot.MMCoTPipeline", "pt": ["AutoModel"]}},
}
CODE = {
    "configuration_mmcot.py": "from transformers import PreTrainedConfig\n",
    "modeling_mmcot.py": "from .configuration_mmcot import MMCoTConfig\nfrom .layers_mmcot import layer\n",
    "layers_mmcot.py": "import torch\n\n\ndef layer(width):\n    return torch.nn.Linear(width, width)\n",
    "pipeline_mmcot.py": "from transformers import Pipeline\n",
    "processing_mmcot.py": "from transformers import ProcessorMixin\n",
}
PROCESSOR = {"auto_map": {"AutoProcessor": "processing_mmcot.MMCoTProcessor"}}
RESULTS = {"accuracy": {"Avg": 50.0}, "n": {"Avg": 8}, "ci95": {"Avg": [21.5, 78.5]}, "protocol": "generated"}


def test_dry_run_lists_what_would_go_and_sends_nothing(hub, folder, capsys):
    from mmcot.training.cli import main

    (folder / ".eval_results").mkdir()
    (folder / ".eval_results/scienceqa.yaml").write_text("- value: 1\n")
    assert main(["push", str(folder), "tester/tiny", "--dry-run"]) == 0
    out = capsys.readouterr().out
    listed = {line.split()[0] for line in out.splitlines() if line.startswith("  ")}
    assert {"README.md", "report.png", "model.safetensors", ".eval_results/scienceqa.yaml", *CODE} <= listed
    assert "optimizer.pt" not in out and "5 other files" in out and "To tester/tiny would go" in out
    assert not HfApi().repo_exists("tester/tiny")
    push(folder, "tester/tiny")
    assert set(hub.files("tester/tiny")) - {".gitattributes"} == listed
    (folder / "tokenizer.json").unlink()
    assert main(["push", str(folder), "tester/tiny", "--dry-run"]) == 2
    assert "tokenizer.json" in capsys.readouterr().err


@pytest.fixture
def folder(tmp_path):
    """A complete repository of a tiny model, and things beside it that training leaves."""
    root = tmp_path / "repository"
    (root / "checkpoint-10").mkdir(parents=True)
    texts = {**CODE, "config.json": json.dumps(CONFIG), "processor_config.json": json.dumps(PROCESSOR)}
    texts |= {"tokenizer.json": "{}", "tokenizer_config.json": "{}", "generation_config.json": "{}"}
    example = {"question": "?", "choices": ["a", "b"], "image": "example.png", "answer": 0, "said": 0}
    facts = {"model_type": "mmcot_two_stage", "dataset": "embedded", "name": "tiny", "example": example}
    texts["README.md"] = model_card(RESULTS, facts) + "\n![seen](report.png)\n"
    for name, text in texts.items():
        (root / name).write_text(text, encoding="utf-8")
    for name in ("report.png", "example.png"):
        (root / name).write_bytes(b"\x89PNG\0")
    save_file(
        {"linear.weight": np.eye(3, dtype=np.float32) * 7}, root / "model.safetensors", metadata={"format": "pt"}
    )
    for name in ("optimizer.pt", "trainer_state.json", "training_args.bin", "notes.py", "checkpoint-10/scheduler.pt"):
        (root / name).write_bytes(b"not for the Hub")
    return root


def test_what_belongs_to_the_repository_is_uploaded_and_nothing_else(hub, folder):
    url = push(folder, "tester/tiny")
    commit = url.rsplit("/", 1)[1]
    assert url == f"{hub.url}/tester/tiny/tree/{commit}" and commit == HfApi().model_info("tester/tiny").sha
    files = hub.files("tester/tiny")
    assert set(files) == {
        ".gitattributes",
        "README.md",
        "config.json",
        "example.png",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "report.png",
        "tokenizer.json",
        "tokenizer_config.json",
        *CODE,
    }
    for name in set(files) - {"README.md", ".gitattributes"}:
        assert files[name] == (folder / name).read_bytes()


def test_card_names_the_repository_and_a_commit_that_has_the_files(hub, folder):
    push(folder, "tester/tiny")
    text = hub.files("tester/tiny")["README.md"].decode()
    assert "path/to/this/folder" not in text and '"tester/tiny", revision="' in text
    picture = re.search(r'"image": "(.*?)"', text)[1]
    at_commit = text.split('revision="')[1].split('"')[0]
    assert picture == f"{hub.url}/tester/tiny/resolve/{at_commit}/example.png"
    assert urllib.request.urlopen(picture).read() == (folder / "example.png").read_bytes()
    pinned = text.split('revision="')[1].split('"')[0]
    at_pinned = set(hub.files("tester/tiny", revision=pinned))
    assert at_pinned >= {"config.json", "model.safetensors", *CODE} and "README.md" not in at_pinned
    card = ModelCard.load("tester/tiny")
    assert card.data.license == "apache-2.0" and card.data.eval_results[0].metric_value == 50.0
    assert "path/to/this/folder" in (folder / "README.md").read_text()  # the folder stays as it was


def test_pushing_again_sends_what_is_new(hub, folder):
    push(folder, "tester/tiny")
    before = len(hub.requests)
    (folder / "generation_config.json").write_text('{"max_length": 5}')
    push(folder, "tester/tiny", commit_message="longer")
    assert hub.files("tester/tiny")["generation_config.json"] == b'{"max_length": 5}'
    assert not [request for request in hub.requests[before:] if request.method == "PUT"]  # the weights are there
    assert HfApi().list_repo_commits("tester/tiny")[0].title == "longer"


def test_private_and_branch(hub, folder):
    url = push(folder, "tester/secret", private=True, revision="trial")
    assert HfApi().model_info("tester/secret").private and not HfApi(token=False).repo_exists("tester/secret")
    assert set(hub.files("tester/secret")) == {".gitattributes"}
    assert "model.safetensors" in hub.files("tester/secret", revision="trial")
    assert HfApi().model_info("tester/secret", revision="trial").sha == url.rsplit("/", 1)[1]


def test_real_model_answers_from_the_hub_where_this_package_is_not_installed(hub, tiny_tokenizer, tmp_path):
    from transformers import ViTConfig

    from mmcot import MMCoTConfig, MMCoTForConditionalGeneration, MMCoTModel, MMCoTProcessor
    from mmcot.processing import image_processor_for

    sizes = {"vocab_size": len(tiny_tokenizer), "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    vit = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    stages = [
        MMCoTForConditionalGeneration(
            MMCoTConfig(
                **sizes, vision_config=ViTConfig(**vit, image_size=16, patch_size=8), stage=stage, prompt_format=form
            )
        )
        for stage, form in (("rationale", "QCM-E"), ("answer", "QCMG-A"))
    ]
    stages[1].encoder.vision.load_state_dict(stages[0].encoder.vision.state_dict())
    model = MMCoTModel.from_stages(*stages, MMCoTProcessor(image_processor_for(16), tiny_tokenizer))
    facts = {**config_facts(model.config.to_dict()), "dataset": "embedded", "name": "tiny"}
    model.save_pretrained(tmp_path / "model", model_card=model_card(None, facts))
    revision = push(tmp_path / "model", "tester/tiny").rsplit("/", 1)[1]
    code = f"""
        import sys
        sys.modules["mmcot"] = None  # importing it fails
        from PIL import Image
        from transformers import AutoModel, AutoProcessor, pipeline

        pinned = {{"revision": "{revision}", "trust_remote_code": True}}
        picture = Image.new("RGB", (20, 20), "red")
        problem = {{"question": "Which colour?", "choices": ["red", "blue"], "image": picture}}
        answer = pipeline("multimodal-cot", model="tester/tiny", **pinned)(problem, max_new_tokens=5)
        model = AutoModel.from_pretrained("tester/tiny", **pinned)
        processor = AutoProcessor.from_pretrained("tester/tiny", **pinned)
        output = model.generate(**processor([problem], return_tensors="pt"), max_new_tokens=5)
        assert processor.post_process(output, [problem])[0] == answer, answer
        assert set(answer["scores"]) == {{"A", "B"}}
        model.push_to_hub("tester/again")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=hub.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(hub.files("tester/again")) == set(hub.files("tester/tiny"))


def without(name):
    return lambda folder: (folder / name).unlink()


def with_config(**changes):
    def change(folder):
        (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))

    return change


def with_text(name, old, new):
    def change(folder):
        path = folder / name
        assert old in path.read_text(encoding="utf-8")
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")

    return change


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def with_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def with_shards(*shards, tensors=("linear.weight",)):
    def change(folder):
        (folder / "model.safetensors").unlink()
        save_file({"linear.weight": np.zeros((3, 3), np.float32)}, folder / "model-00001-of-00002.safetensors")
        index = {"weight_map": {**dict.fromkeys(tensors, "model-00001-of-00002.safetensors"), **dict(shards)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("config.json"), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
        (with_config(auto_map=None), "config.json has no auto_map"),
        (with_config(custom_pipelines={}), "config.json has no custom_pipelines"),
        (with_config(auto_map={"AutoModel": "other/repo--modeling_mmcot.MMCoT"}), "another repository"),
        (without("pipeline_mmcot.py"), "pipeline_mmcot.py, named in config.json"),
        (without("layers_mmcot.py"), "layers_mmcot.py, named in modeling_mmcot.py"),
        (without("processing_mmcot.py"), "processing_mmcot.py, named in processor_config.json"),
        (with_text("layers_mmcot.py", "def layer(", "def layer"), "layers_mmcot.py, line 4"),
        (without("model.safetensors"), "model.safetensors is missing"),
        (with_pickle, "pytorch_model.bin is a pickle"),
        (cut_weights, "model.safetensors is damaged"),
        (with_shards(("x", "model-00002-of-00002.safetensors")), "model-00002-of-00002.safetensors .* is missing"),
        (with_shards(tensors=("linear.weight", "lost")), "lacks 1 tensors .* lost"),
        (without("processor_config.json"), "processor_config.json .* is missing"),
        (without("tokenizer.json"), "tokenizer.json .* is missing"),
        (without("README.md"), "README.md, the model card, is missing"),
        (with_text("README.md", "license: apache-2.0\n", ""), "names no license"),
        (with_text("README.md", "model-index:", "model-index: ["), "no valid metadata"),
        (without("report.png"), "report.png, which is missing"),
        (lambda folder: (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n"), "gives no results"),
    ],
)
def test_incomplete_folder_is_refused_before_anything_is_sent(hub, folder, change, message):
    change(folder)
    with pytest.raises(ValueError, match=message) as caught:
        push(folder, "tester/tiny")
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["", "a b", "a/b/c", "https://huggingface.co/a/b", "a//b"])
def test_names_are_looked_at_first_also_by_a_dry_run(hub, folder, capsys, name):
    from mmcot.training.cli import main

    for names in ([name], ["tester/tiny", "--space", name or " "]):
        for dry in (["--dry-run"], []):
            assert main(["push", str(folder), *names, *dry]) == 2
            assert "can't be a repository's name, give user/name" in capsys.readouterr().err
    assert hub.requests == []


def test_a_runs_folder_is_told_where_its_repository_lies(hub, folder):
    run = folder.parent / "run"
    shutil.copytree(folder, run / "hub")
    with pytest.raises(
        ValueError, match=r"config.json is missing \(the folder of a run: its repository is .*run/hub\)"
    ):
        push(run, "tester/tiny")


def test_shards_are_all_sent(folder):
    with_shards()(folder)
    files = check_repository(folder)
    assert {"model-00001-of-00002.safetensors", "model.safetensors.index.json"} <= set(files)
    assert "model.safetensors" not in files


def test_refusals_of_the_hub_are_one_clear_line(hub, folder):
    for repo_id, token, message in (
        ("tester/tiny", "hf_wrong", "hf auth login"),
        ("someone-else/tiny", None, "no right to write"),
        ("not a name", None, "Repo id"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            push(folder, repo_id, token=token)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        push(folder / "nowhere", "tester/tiny")
    hub.close()
    with pytest.raises(ValueError, match=f"tester/tiny: not uploaded to {hub.url}"):
        push(folder, "tester/tiny")


def test_command(hub, folder, capsys):
    parser = argparse.ArgumentParser()
    push_command.add_arguments(parser)
    assert push_command.run(parser.parse_args([str(folder), "tester/tiny", "--private", "--revision", "main"])) == 0
    shown = capsys.readouterr().out
    commit = HfApi().model_info("tester/tiny").sha
    assert shown.startswith(f"{hub.url}/tester/tiny/tree/{commit}\n") and HfApi().model_info("tester/tiny").private
    assert f'model="tester/tiny",\n                  revision="{commit}", trust_remote_code=True' in shown
    compile(shown.split("commit:\n")[1], "usage", "exec")


def test_space_goes_beside_the_model_and_loads_its_commit(hub, folder, capsys):
    from mmcot.training.cli import main

    (folder / "examples").mkdir()
    (folder / "examples" / "examples.json").write_text("[]")
    assert main(["push", str(folder), "tester/tiny", "--space", "--dry-run"]) == 0
    assert "To the Space tester/tiny would go: app.py" in capsys.readouterr().out
    assert main(["push", str(folder), "tester/tiny", "--space", "tester/ask"]) == 0
    assert "spaces/tester/ask is its page" in capsys.readouterr().out
    files = hub.files("tester/ask", repo_type="space")
    assert {"app.py", "README.md", "requirements.txt", "mmcot_app/page.py", "mmcot_app/drawing.py"} <= set(files)
    commits = HfApi().list_repo_commits("tester/tiny")
    assert commits[0].commit_id.encode() in files["app.py"] and b"import mmcot" not in files["mmcot_app/page.py"]
    assert "examples/examples.json" in hub.files("tester/tiny")
