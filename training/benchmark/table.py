"""What the benchmark measured, in words and as README's table."""

from pathlib import Path

from mmcot.training.common import write_between_markers


def describe(result: dict) -> str:
    """The figures of a benchmark as lines of text."""
    lines = []
    for one in _by_shape([result]):
        place = one["environment"]
        lines.append(f"{one['shape']} on {place['device_name']} ({place['threads']} threads, torch {place['torch']})")
        lines += [f"  {what}: {value}" for what, value, _ in _figures(one)]
    return "\n".join(lines)


def _by_shape(results: list[dict]) -> list[dict]:
    return [one for result in results for one in (result, *result.get("more_shapes", ()))]


def speed_table(results: list[dict]) -> str:
    """A Markdown table of one or several benchmarks."""
    lines = ["| shape, device | figure | measured |", "|---|---|---|"]
    for result in _by_shape(results):
        place = result["environment"]
        where = f"{result['shape']}, {place['device_name']}"
        if place["device"] == "cpu":
            where += f", {place['threads']} threads"
        for what, value, in_table in _figures(result):
            if in_table:
                lines.append(f"| {where} | {what} | {value} |")
                where = ""
    versions = sorted({f"torch {r['environment']['torch']}" for r in results})
    lines += ["", f"Median (smallest–largest) of interleaved pairs, warm-up left out; {', '.join(versions)}."]
    return "\n".join(lines)


def write_table(path: str | Path, results: list[dict]) -> None:
    """Puts the table between the markers of a file.

    Raises:
        ValueError: the file has no such markers.
    """
    write_between_markers(path, "speed", speed_table(results))


def _figures(result: dict) -> list[tuple[str, str, bool]]:
    """(what, measured, whether it goes into the table) of all that was measured."""
    figures = []

    def add(what: str, value: str, in_table: bool = True) -> None:
        figures.append((what, value, in_table))

    train = result.get("train")
    if train:
        for name, arm in train["arms"].items():
            rate = _spread(arm["samples_per_second"], ".3g")
            best = name in ("original", "ours, same batch", train["best"])
            gain = f", **{_spread(arm['ratio'], '.1f')}×**" if "ratio" in arm else ""
            add(f"training, {name}", f"{rate} samples/s{gain}", best)
            use = f"{100 * arm['flops_utilisation_of_real_tokens']['median']:.0f} % of the peak on real tokens"
            memory = arm["peak_memory_bytes"]
            use += "" if memory is None else f", {memory / 1e9:.1f} GB"
            use += f", {arm['seconds_per_epoch']['median']:.0f} s an epoch"
            if "stalled_share" in arm:
                use += f", {100 * arm['stalled_share']['median']:.1f} % of the time waiting for batches"
            add(f"training, {name}", use, False)
        add(
            "both stages × 20 epochs, computed from the best rate",
            f"{train['both_stages_20_epochs_minutes']:.1f} min",
        )
        for name, error in train.get("failed", {}).items():
            add(f"training, {name}", f"failed: {error}", False)
        if "loss_curves" in train:
            apart = train["loss_curves"]["largest_relative_difference"]
            add("losses of both ways on the same samples differ by at most", f"{apart:.1e}", False)
    generate = result.get("generate")
    if generate:
        limit = f"rationales ≤ {generate['max_new_tokens']} tokens"
        for name, arm in generate["arms"].items():
            gain = f", **{_spread(arm['ratio'], '.1f')}×**" if "ratio" in arm else ""
            rate = _spread(arm["questions_per_second"], ".3g")
            add(f"both stages, {name}, {limit}", f"{rate} questions/s{gain}", name != "ours, plain T5")
        add("test set of 4,241 questions, at that rate", f"{generate['test_set_seconds']:.0f} s")
        add("time with fusion over plain T5", _spread(generate["time_over_plain_t5"], ".2f"), False)
        single = generate["single_question"]
        share = f"{100 * single['share_of_bandwidth_limit']:.0f} % of the memory's limit"
        add("one question alone, both stages", f"{_spread(single['seconds'], '.3g')} s ({share})")
    features = result.get("features")
    if features:
        add("image features, of the backbone's own rate", f"{100 * features['ratio']['median']:.0f} %")
    data = result.get("data")
    if data:
        cache = data["cache"]
        memory = cache["open_resident_bytes"]
        memory = "" if memory is None else f", {memory / 1e6:.1f} MB resident"
        add(f"opening a cache of {cache['pictures']:,} pictures", f"{1000 * cache['open_seconds']:.1f} ms{memory}")
        read = f"{cache['read_bytes_per_second'] / 1e9:.1f} GB/s"
        if cache["reading_peak_resident_bytes"] is not None:
            read += f", {cache['reading_peak_resident_bytes'] / 1e6:.0f} MB more resident at most"
        add(f"reading batches of {cache['batch']} from it ({cache['batch_bytes'] / 1e6:.0f} MB each)", read)
        start = data["start_up"]
        if "seconds" in start:
            took = f"{start['seconds']:.1f} s (the first time {start['first_seconds']:.1f})"
            add(f"start of a run on {start['problems']:,} problems", took)
        costs = ", ".join(f"{c['microseconds_per_sample']:.2f} µs at {c['samples']:,}" for c in data["sampler"])
        add("batches of an epoch, a sample", costs, False)
    growth = result.get("growth")
    if growth:
        _add_growth(growth, add)
    return figures


def _add_growth(growth: dict, add) -> None:
    records, processes = growth["records"], growth["processes"]
    measured = [cost for cost in records if "left_out" not in cost] if isinstance(records, list) else []
    if measured:
        sizes = ", ".join(f"{cost['samples']:,}" for cost in measured)
        drawn = ", ".join(f"{cost['epoch_microseconds_per_sample']:.1f}" for cost in measured)
        add(f"an epoch's batches of {sizes} samples", f"{drawn} µs a sample")
        fetched = ", ".join(f"{cost['fetch_microseconds_per_sample']['median']:.0f}" for cost in measured)
        add(f"reading and padding {sizes} samples", f"{fetched} µs a sample")
        if measured[0]["anonymous_bytes"] is not None:
            memory = ", ".join(f"{cost['anonymous_bytes'] / 1e6:.0f}" for cost in measured)
            add(f"memory for {sizes} samples", f"{memory} MB")
    if "ratio" in processes:
        add("two processes of one thread, training", f"{_spread(processes['ratio'], '.2f')}× one")
        share = f"{100 * processes['all_reduce_share']['median']:.0f} %"
        add("share of their steps in exchanging gradients", share, False)
        if processes["without_exchange_ratio"] is not None:
            alone = f"{processes['without_exchange_ratio']:.2f}× one"
            add("two processes that know nothing of each other", alone, False)


def _spread(values: dict[str, float], form: str) -> str:
    return f"{values['median']:{form}} ({values['min']:{form}}–{values['max']:{form}})"
