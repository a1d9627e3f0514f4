"""What a checkpoint, tokenizer or feature cache holds, as a short hash: the name it has proves nothing.

The problems' own hash is `mmcot.training.data.fingerprint.content_fingerprint`.
"""

import hashlib
import json
from pathlib import Path

CONTENT = "content "  # a hash begins so, for messages
UNKNOWN = "unknown"  # what isn't there any more; a finished step doesn't need it
# of a checkpoint, what decides the network and its inputs
FILES = ("config.json", "*.safetensors", "*.bin", "tokenizer.json", "tokenizer_config.json", "spiece.model")
FILES += ("preprocessor_config.json",)


def checkpoint_fingerprint(place: str) -> str:
    """Of a checkpoint's folder its files, of another file its bytes, of a Hub id the commit in the local cache.

    Returns:
        `UNKNOWN` where there is none of them.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return CONTENT + _hash_files([path])
    if path.is_dir():
        found = sorted({file for pattern in FILES for file in path.glob(pattern) if file.is_file()})
        return CONTENT + _hash_files(found) if found else UNKNOWN
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(place, "config.json")
    except HFValidationError:
        return UNKNOWN
    return f"{CONTENT}{Path(config).parent.name}" if isinstance(config, str) else UNKNOWN


def features_fingerprint(cache) -> str:
    """Of a `FeatureCache`: backbone, weights and preprocessing that made it; where it doesn't know them, its rows.

    More images in the same cache don't change the former.
    """
    told: dict = {key: value for key, value in cache.info.items() if key != "backbone" or "weights" not in cache.info}
    if "weights" not in told:
        told["rows"] = sorted(shard.rows for shard in cache._shards)
    return CONTENT + hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def file_fingerprint(path: str | Path) -> str:
    return CONTENT + _hash_files([Path(path)])


def digest(settings: dict) -> str:
    """A hash of settings that JSON can hold."""
    return CONTENT + hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def _hash_files(paths: list[Path]) -> str:
    """Of the files' names and bytes, all of which are read: about 1 GB a second."""
    total = hashlib.blake2b(digest_size=16)
    for path in paths:
        total.update(path.name.encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                total.update(block)
    return total.hexdigest()
