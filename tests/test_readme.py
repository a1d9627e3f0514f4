"""The README's blocks do what they say, as they stand."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers import T5Config, T5ForConditionalGeneration

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMIT = "a" * 40


def in_hub_cache(home: Path, repo_id: str) -> Path:
    """The folder of a repository in a Hub cache, as if it had been downloaded."""
    folder = home / "hub" / f"models--{repo_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return folder / "snapshots" / COMMIT


@pytest.fixture
def hub_cache(tmp_path, tiny_tokenizer):
    """Small stand-ins for what the recipe for own data starts from: T5 and ViT."""
    import timm
    from transformers import TimmWrapperConfig, TimmWrapperModel

    from mmcot.vision_mmcot import build_vision  # noqa: F401 - the package's presets are those used below

    home = tmp_path / "home"
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    start = in_hub_cache(home, "google/flan-t5-base")
    T5ForConditionalGeneration(T5Config(vocab_size=896, **sizes)).save_pretrained(start)
    tiny_tokenizer.save_pretrained(start)
    vision = in_hub_cache(home, "timm/vit_large_patch32_384.orig_in21k_ft_in1k")
    small = timm.create_model("test_vit", img_size=384, num_classes=0)
    config = TimmWrapperConfig(architecture="test_vit", model_args={"img_size": 384}, num_classes=0)
    model = TimmWrapperModel(config)
    model.timm_model.load_state_dict(small.state_dict())
    model.save_pretrained(vision)
    return home


def test_own_data_as_it_stands(tmp_path, hub_cache):
    block = README.split("<!-- own-data:begin -->")[1].split("<!-- own-data:end -->")[0]
    record = json.loads(re.search(r"```json\n(.*?)```", block, re.S)[1])
    commands = re.search(r"```bash\n(.*?)```", block, re.S)[1]
    picture = tmp_path / record["image"]
    picture.parent.mkdir()
    lines = []
    for number in range(24):
        colour = record["choices"][number % 2]
        path = picture.with_name(f"{number}.png")
        Image.new("RGB", (24, 24), colour).save(path)
        own = {"image": str(path.relative_to(tmp_path)), "answer": "AB"[number % 2]}
        own |= {"question": f"{record['question']} ({number})", "solution": f"The box in the picture is {colour}."}
        lines.append(json.dumps({**record, **own}) + "\n")
    (tmp_path / "my-questions.jsonl").write_text("".join(lines))
    done = subprocess.run(
        ["bash", "-ec", commands],
        cwd=tmp_path,
        env={
            **os.environ,
            "HF_HOME": str(hub_cache),
            "HF_HUB_OFFLINE": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "protocol: generated" in done.stdout and (tmp_path / "runs" / "mine" / "hub" / "README.md").is_file()


def test_the_first_python_block_gives_what_it_says(tmp_path, two_stage_repository):
    """In the folder that a demo leaves, where this package isn't installed."""
    demo = tmp_path / "mmcot-demo"
    demo.mkdir()
    (demo / "hub").symlink_to(two_stage_repository)
    Image.new("RGB", (64, 64), "red").save(demo / "question.png")
    problem = {"question": "Which colour is it?", "choices": ["red", "blue"], "context": "A box."}
    (demo / "question.json").write_text(json.dumps({**problem, "image": str(demo / "question.png")}))
    block = re.search(r"```python\n(.*?)```", README, re.S)[1]
    code = 'import sys\nsys.modules["mmcot"] = None\n' + block
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert set(answer) >= {"rationale", "answer", "answer_text", "scores", "generated"}
    assert answer["answer_text"] == problem["choices"]["AB".index(answer["answer"])]


def test_the_picture_is_small_and_drawn():
    picture = Path(__file__).parents[1] / "docs" / "pictures" / "answer.svg"
    text = picture.read_text(encoding="utf-8")
    assert "docs/pictures/answer.svg" in README and picture.stat().st_size < 60_000
    assert "Rationale" in text and "where it looks" in text and text.count("<image") == 2


def test_demos_table_is_that_of_its_result_file(tmp_path):
    from mmcot.training.demo import write_readme

    copy = tmp_path / "README.md"
    copy.write_text(README.replace("0", "1"), encoding="utf-8")
    write_readme(copy, Path(__file__).parents[1] / "docs" / "results" / "demo.json")
    printed, made = (
        text.split("<!-- demo:begin -->")[1].split("<!-- demo:end -->")[0]
        for text in (README, copy.read_text(encoding="utf-8"))
    )
    assert printed == made


def test_every_command_named_exists():
    from mmcot.training.cli import COMMANDS

    named = set(re.findall(r"^mmcot ([a-z]+)", "\n".join(re.findall(r"```bash\n(.*?)```", README, re.S)), re.M))
    assert named <= set(COMMANDS) and len(named) > 8


def test_every_linked_file_exists():
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\((?!http|#)([^)]+)\)", README):
        assert (root / target).exists(), target


def test_python_blocks_compile_in_order():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) >= 2
    compile("\n".join(blocks), "README", "exec")
