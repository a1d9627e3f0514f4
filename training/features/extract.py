"""Image features of a frozen backbone, computed once over the pictures of any problem source into a `FeatureCache`."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"}
MAX_PENDING_BYTES = 512 * 2**20  # pixels that wait for others of their size
DTYPES = ("float16", "bfloat16", "float32")


def extract_features(
    problems,
    backbone,
    out: str | Path,
    *,
    image_processor=None,
    vision_feature: str | None = None,
    batch_size: int = 32,
    dtype: str = "float16",
    device: str | None = None,
    num_workers: int | None = None,
    process_index: int | None = None,
    num_processes: int | None = None,
    shard_bytes: int | None = None,
    show_progress: bool = True,
):
    """Run a backbone over every picture, once each, and return the `FeatureCache`.

    Pictures that the cache has already are left out, so that an interrupted run is taken up by running it again. Under
    `accelerate launch` each process takes a share of the problems and writes shards of its own. Pictures are never
    padded: those of one size make up a batch, so that each one's features are those that it gets alone.

    Args:
        problems: problem records (`load_problems`), or a folder that is searched for image files.
        backbone: "detr", "vit", "clip" or "resnet", the paper's, from the Hub; a folder that `AutoModel` loads, with
            its image processor's configuration; or a model.
        out: the cache's folder.
        image_processor: needed with a model, else in place of the backbone's own.
        vision_feature: output of the backbone to keep, `last_hidden_state` or `pooler_output`; the preset's, or the
            former.
        batch_size: pictures a step of the backbone.
        dtype: features are stored as this; the backbone computes in its own.
        device: where to compute; a GPU if there is one.
        num_workers: processes that read and decode while the backbone computes.
        process_index, num_processes: this process's share, where accelerate isn't to say.
        shard_bytes: size of a shard; what an interruption can lose.

    Raises:
        ValueError: a picture can't be read (the message names it); there are none; the folder holds other features.
    """
    import torch
    from accelerate import PartialState
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from mmcot.training.features.cache import FeatureCache
    from mmcot.training.features.shards import SHARD_BYTES, FeatureWriter, shard_paths, write_index

    state = None
    if process_index is None:
        state = PartialState(cpu=device == "cpu")
        process_index, num_processes = state.process_index, state.num_processes
        device = device or state.device
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if isinstance(problems, str | Path):
        problems = image_files(problems)
    vision, image_processor, info = _load_backbone(backbone, image_processor, vision_feature)
    vision = vision.to(device).eval()
    out = Path(out)
    with FeatureWriter(out, info, getattr(torch, dtype), process_index, shard_bytes or SHARD_BYTES) as writer:
        done = FeatureCache.open(out) if shard_paths(out) else ()
        if num_workers is None:
            num_workers = _default_workers(device)
        loader = DataLoader(
            _Pictures(problems, range(process_index, len(problems), num_processes), image_processor, done),
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=_group_by_size,
            pin_memory=device.type == "cuda",
        )
        loader = tqdm(loader, "features", disable=not show_progress or process_index > 0, unit="batch")
        batches = _full_batches(loader, batch_size, pinned=device.type == "cuda")
        for keys, features in _computed(batches, vision, device, info, writer.dtype):
            writer.add(keys, features)
    if state is not None:
        state.wait_for_everyone()
    if not shard_paths(out):
        raise ValueError("there are no pictures to extract features from")
    if state is None or state.is_main_process:
        write_index(out)
    if state is not None:
        state.wait_for_everyone()
    return FeatureCache.open(out)


def image_files(folder: str | Path) -> list[Path]:
    """Image files in `folder` and below, sorted.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _default_workers(device) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 16) if device.type == "cuda" else 1  # on a CPU the backbone needs the cores itself


def _load_backbone(backbone, image_processor, vision_feature: str | None):
    """(model, image processor, what cache.json shall say of them)."""
    import torch
    from transformers import AutoImageProcessor, AutoModel

    from mmcot.processing.image_processing_mmcot import MMCoTImageProcessor, image_processor_for
    from mmcot.vision_mmcot import VISION_PRESETS

    feature = vision_feature or "last_hidden_state"
    if isinstance(backbone, str) and backbone in VISION_PRESETS:
        preset = VISION_PRESETS[backbone]
        name, feature = backbone, vision_feature or preset.vision_feature
        image_processor = image_processor or image_processor_for(backbone)
        try:
            vision = AutoModel.from_pretrained(preset.identifier)
        except OSError as error:  # no network, or no such file: transformers' message has several lines
            reason = str(error).strip().partition("\n")[0]
            raise FileNotFoundError(f"{preset.identifier}: can't get the weights of {backbone}: {reason}") from error
    elif isinstance(backbone, str | Path):
        folder = Path(backbone)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{backbone}: neither a preset ({', '.join(VISION_PRESETS)}) nor a model's folder")
        name, vision = folder.resolve().name, AutoModel.from_pretrained(folder)
        if image_processor is None:
            file = folder / "preprocessor_config.json"
            own = file.is_file() and "MMCoTImageProcessor" in file.read_text(encoding="utf-8")
            image_processor = (MMCoTImageProcessor if own else AutoImageProcessor).from_pretrained(folder)
    else:
        name, vision = type(backbone).__name__, backbone
        if image_processor is None:
            raise ValueError("a backbone that is given as a model needs its image_processor")
    # weights and preprocessing decide the features, whatever they are called: those of another pair are never mixed in
    settings = {key: value for key, value in image_processor.to_dict().items() if key != "auto_map"}
    fingerprint = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=16)
    for parameter, value in vision.state_dict().items():
        fingerprint.update(parameter.encode())
        fingerprint.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    info = {
        "backbone": name,
        "vision_feature": feature,
        "keys": "image content",
        "fingerprint": fingerprint.hexdigest(),
    }
    return vision, image_processor, info


class _Pictures:
    """Item i: (key, pixel values) of each picture of problem i, without those that are done; or an error's text."""

    def __init__(self, problems, indices: range, image_processor, done):
        self.problems, self.indices, self.image_processor, self.done = problems, indices, image_processor, done

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> list[tuple] | str:
        from mmcot.processing.image_processing_mmcot import image_references, load_image
        from mmcot.training.features.cache import read_picture

        problem = self.problems[self.indices[number]]
        references = [problem] if isinstance(problem, Path) else image_references(problem)
        pictures = []
        for reference in references:
            try:
                key, content = read_picture(reference)
                if key in self.done:
                    continue
                pixels = self.image_processor(load_image(content), return_tensors="pt")["pixel_values"][0]
            except Exception as error:  # handed on as text: a worker's exception would arrive as a long traceback
                name = f"{problem}" if isinstance(problem, Path) else f"problem {problem.get('id')}"
                return f"{name}: its picture can't be read ({str(error).partition(chr(10))[0]:.200})"
            pictures.append((key, pixels))
        return pictures


def _group_by_size(items: list[list[tuple] | str]) -> list[tuple]:
    """(keys, pixel values (pictures, 3, height, width)) for each size that occurs; (None, text) for an error."""
    import torch

    groups = {}
    for item in items:
        if isinstance(item, str):
            return [(None, item)]
        for key, pixels in item:
            groups.setdefault(pixels.shape, {})[key] = pixels  # a picture that occurs twice counts once
    return [(list(group), torch.stack(list(group.values()))) for group in groups.values()]


def _full_batches(loader: Iterable[list[tuple]], batch_size: int, pinned: bool = False) -> Iterator[tuple]:
    """Batches of one size, full but for the last of each; the fullest goes early when too many pixels wait.

    `pinned` pixels reach a GPU while it works. A batch that is full as it comes isn't copied.
    """
    import torch

    seen = set()
    waiting: dict[tuple, list[tuple]] = {}  # size -> [(key, pixels)]

    def batch(size):
        group = waiting[size]
        waiting[size] = group[batch_size:]
        keys, pixels = zip(*group[:batch_size], strict=True)
        stacked = torch.empty(len(pixels), *size, dtype=pixels[0].dtype, pin_memory=pinned)
        return list(keys), torch.stack(pixels, out=stacked)

    pending = 0
    for groups in loader:
        for keys, pixels in groups:
            if keys is None:
                raise ValueError(pixels)
            size = tuple(pixels.shape[1:])
            group = waiting.setdefault(size, [])
            shorts = [
                int(key[:16], 16) for key in keys
            ]  # 64 bits tell the pictures of one run apart, in little memory
            if len(keys) == batch_size and not group and seen.isdisjoint(shorts):
                seen.update(shorts)
                yield keys, pixels
                continue
            for key, short, one in zip(keys, shorts, pixels, strict=True):
                if short not in seen:
                    seen.add(short)
                    group.append((key, one))
                    pending += one.nbytes
            while len(waiting[size]) >= batch_size:
                ready = batch(size)
                pending -= ready[1].nbytes
                yield ready
        while pending > MAX_PENDING_BYTES:
            ready = batch(max(waiting, key=lambda size: len(waiting[size])))
            pending -= ready[1].nbytes
            yield ready
    for size in waiting:
        while waiting[size]:
            yield batch(size)


def _computed(batches: Iterable[tuple], vision, device, info: dict, dtype) -> Iterator[tuple]:
    """(keys, features in `dtype` on the CPU); on a GPU one batch is copied back while the next is computed."""
    import torch

    from mmcot.vision_mmcot import extract_features as features_of

    before = None
    for keys, pixels in batches:
        with torch.inference_mode():
            pixels = pixels.to(device, non_blocking=True)
            features = features_of(vision, pixels, vision_feature=info["vision_feature"]).to(dtype)
            features = features.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event() if device.type == "cuda" else None
            if arrived is not None:
                arrived.record(torch.cuda.current_stream(device))
        if before is not None:
            yield _arrived(*before)
        before = keys, features, arrived
    if before is not None:
        yield _arrived(*before)


def _arrived(keys: list[str], features, event) -> tuple:
    if event is not None:
        event.synchronize()
    return keys, features
