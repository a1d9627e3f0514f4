"""What the documented commands for own data run on: a folder of pictures with questions, and small stand-ins for the
checkpoints that they start from, in a Hub cache."""

import json
import os
import sys
from pathlib import Path

from PIL import Image

COMMIT = "a" * 40
COLOURS = ("red", "blue")


def in_hub_cache(home: Path, repo_id: str) -> Path:
    """The folder of a repository in a Hub cache, as if it had been downloaded."""
    folder = home / "hub" / f"models--{repo_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return folder / "snapshots" / COMMIT


def make_hub_cache(home: Path, tokenizer) -> Path:
    """Fills `home` (HF_HOME) with a small T5 and a small ViT, named as the recipe `own-data` names them."""
    import timm
    from transformers import T5Config, T5ForConditionalGeneration, TimmWrapperConfig, TimmWrapperModel

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
    start = in_hub_cache(home, "google/flan-t5-base")
    T5ForConditionalGeneration(T5Config(vocab_size=896, **sizes)).save_pretrained(start)
    tokenizer.save_pretrained(start)
    small = timm.create_model("test_vit", img_size=384, num_classes=0)
    config = TimmWrapperConfig(architecture="test_vit", model_args={"img_size": 384}, num_classes=0)
    model = TimmWrapperModel(config)
    model.timm_model.load_state_dict(small.state_dict())
    model.save_pretrained(in_hub_cache(home, "timm/vit_large_patch32_384.orig_in21k_ft_in1k"))
    return home


def box_questions(folder: Path, count: int, images: str = "boxes") -> list[dict]:
    """Questions about the colour of a box, whose pictures are drawn into `folder/images/`."""
    (folder / images).mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        colour = COLOURS[number % 2]
        path = folder / images / f"{number}.png"
        Image.new("RGB", (24, 24), colour).save(path)
        row = {"question": f"Which colour is the box? ({number})", "choices": list(COLOURS), "answer": number % 2}
        row |= {"image": str(path.relative_to(folder)), "solution": f"The box in the picture is {colour}."}
        rows.append(row)
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def environment(home: Path, **more: str) -> dict[str, str]:
    """Variables of a process that runs documented commands: without network, on that Hub cache."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PATH": path, **more}
