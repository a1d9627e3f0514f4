"""What the benchmark measured, in words and as README's table."""

from pathlib import Path

from mmcot.training.common import write_between_markers

TURNS = "Median (smallest–largest) of interleaved pairs, warm-up left out"


def describe(result: dict) -> str:
    """The figures of a benchmark as lines of text."""
    place = result["environment"]
    lines = [f"{place['device_name']} ({place['threads']} threads, torch {place['torch']})"]
    for shape, parts in result["shapes"].items():
        lines += [f"  {shape}: {what}: {value}" for what, value in figures(parts)]
    return "\n".join(lines)


def speed_table(results: list[dict]) -> str:
    """A Markdown table of one or several benchmarks."""
    lines = ["| shape, device | figure | measured |", "|---|---|---|"]
    for result in results:
        place = result["environment"]
        threads = f", {place['threads']} threads" if place["device"] == "cpu" else ""
        for shape, parts in result["shapes"].items():
            where = f"{shape}, {place['device_name']}{threads}"
            for what, value in figures(parts):
                lines.append(f"| {where} | {what} | {value} |")
                where = ""
    versions = sorted({f"torch {result['environment']['torch']}" for result in results})
    return "\n".join([*lines, "", f"{TURNS}; {', '.join(versions)}."])


def write_table(path: str | Path, results: list[dict]) -> None:
    """Puts the table between the `speed` markers of a file.

    Raises:
        ValueError: the file has no such markers.
    """
    write_between_markers(path, "speed", speed_table(results))


def figures(parts: dict[str, dict]) -> list[tuple[str, str]]:
    """(what, measured) of all that was measured with a shape."""
    functions = {
        "train": _train,
        "generate": _generate,
        "peers": _peers,
        "dtypes": _dtypes,
        "data": _data,
        "processes": _processes,
    }
    return [row for part, found in parts.items() for row in functions[part](found)]


def _arms(found: dict, what: str, unit: str, baseline: str):
    for name, arm in found["arms"].items():
        share = f", {100 * arm['share_of_peak']['median']:.0f} % of the peak" if "share_of_peak" in arm else ""
        gain = "" if name == baseline else f", **{_spread(arm['ratio'], '.1f')}×**{share}"
        memory = "" if arm["peak_memory_bytes"] is None else f", {arm['peak_memory_bytes'] / 1e9:.1f} GB"
        yield f"{what}, {name}", f"{_spread(arm['per_second'], '.3g')} {unit}/s{gain}{memory}"
    for name, error in found["failed"].items():
        yield f"{what}, {name}", f"failed: {error}"


def _train(found: dict):
    yield from _arms(found, "training", "samples", "original")
    yield "both stages × 20 epochs, computed from the best rate", f"{found['both_stages_20_epochs_minutes']:.0f} min"


def _generate(found: dict):
    yield from _arms(found, f"both stages, rationales ≤ {found['max_new_tokens']} tokens", "questions", "original")
    yield "`mmcot predict` over the engine alone", f"{_spread(found['predict_over_engine'], '.2f')}×"
    yield "time with fusion over plain T5", f"{_spread(found['time_over_plain_t5'], '.2f')}×"
    yield "test set of 4,241 questions, `mmcot predict` in the fastest dtype", f"{found['test_set_seconds']:.0f} s"
    for dtype, own in found["single_question"].items():
        yield f"one question alone, by the pipeline, {dtype}", f"{_spread(own['seconds'], '.3f')} s"
    start = found["start"]
    libraries = f"{start['seconds']:.1f} s, of which transformers, datasets and torch take {start['libraries']:.1f}"
    yield "`mmcot predict` from its start to the first answer", libraries


def _peers(found: dict):
    what = f"plain T5, text alone, rationales of {found['rationale_tokens']} tokens"
    yield from _arms(found, what, "questions", "transformers float32")
    for peer, ratio in found["over_peers"].items():
        yield f"ours over {peer}, at equal precision", f"**{_spread(ratio, '.2f')}×**"
    for name, seconds in found["single_question"].items():
        yield f"one question alone, {name}", f"{_spread(seconds, '.3f')} s"


def _dtypes(found: dict):
    whole = found["dtypes"]["float32"]["accuracy"]["Avg"]
    for dtype, own in found["dtypes"].items():
        if dtype != "float32":
            yield (
                f"{found['questions']:,} questions in {dtype}, equal to float32's",
                f"rationales {own['equal_rationales']:.2f} %, answers {own['equal_answers']:.2f} %; "
                f"accuracy {own['accuracy']['Avg']:.2f} % against {whole:.2f} %",
            )


def _data(found: dict):
    cache, start = found["cache"], found["start_up"]
    resident = _megabytes(", {} resident", cache["open_resident_bytes"])
    yield f"opening a cache of {cache['pictures']:,} pictures", f"{1000 * cache['open_seconds']:.1f} ms{resident}"
    read = f"{cache['read_bytes_per_second'] / 1e9:.1f} GB/s"
    read += _megabytes(", {} more resident at most", cache["reading_peak_resident_bytes"])
    yield f"reading batches of {cache['batch']} from it ({cache['batch_bytes'] / 1e6:.0f} MB each)", read
    yield (
        f"start of a run on {start['problems']:,} problems",
        f"{start['seconds']:.1f} s (the first time {start['first_seconds']:.1f})",
    )
    for samples in found["samples"]:
        if "left_out" not in samples:
            costs = [samples[f"{name}_microseconds_per_sample"] for name in ("epoch", "fetch")]
            memory = _megabytes(", {}", samples["anonymous_bytes"])
            value = f"{costs[0]:.1f} µs a sample to draw batches, {costs[1]:.0f} µs to read and pad{memory}"
            yield f"an epoch of {samples['samples']:,} samples", value


def _processes(found: dict):
    for name, arm in list(found.get("arms", {}).items())[1:]:
        yield f"{name} of one thread, training", f"{_spread(arm['ratio'], '.2f')}× one"


def _megabytes(text: str, size: int | None) -> str:
    return "" if size is None else text.format(f"{size / 1e6:.0f} MB")


def _spread(values: dict[str, float], form: str) -> str:
    return f"{values['median']:{form}} ({values['min']:{form}}–{values['max']:{form}})"
