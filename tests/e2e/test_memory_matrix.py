"""Every choice of storage and memory with every other, two at a time, on real runs of the tiny model.

A third of the rows runs always; `-m slow` runs the rest.

The rows are generated: each pair of values of two settings is in some row, or the pair is one that is refused, with a
reason that the last tests look for. What only moves weights about must not change a bit of the losses.
"""

from __future__ import annotations

import itertools
import json

import pytest

from ltx2_train import ConfigError, load_run, train

FACTORS: dict[str, tuple[str, list]] = {
    "format": ("quant.format", ["none", "fp8", "fp8_cast", "fp8uz", "int8", "int8_rotated", "nf4", "int4", "int2"]),
    "swap": ("memory.blocks_to_swap", [0, 1]),
    "from": ("memory.swap_from", ["ram", "file"]),
    "recompute": ("memory.recompute_blocks", [1, 2]),
    "act": ("memory.offload_activations", [False, True]),
    "chunk": ("memory.ff_chunk", [0, 8]),
    "split": ("memory.split_attention", ["off", "batch", "query"]),
    "matmul": ("quant.matmul", ["off", "on"]),
    "ahead": ("memory.swap_ahead", [1, 2]),
    "precision": ("model.precision", ["fp32", "bf16"]),
    "mode": ("model.mode", ["video", "av"]),
}
OF_SWAPPED = ("from", "ahead")  # refused where no block is swapped, since they would change nothing


def pairwise() -> list[dict[str, object]]:
    """Rows of values, chosen greedily until every pair of values is covered."""
    names = list(FACTORS)
    open_pairs = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(names, 2)
        for i in range(len(FACTORS[a][1]))
        for j in range(len(FACTORS[b][1]))
    }
    rows = []
    while open_pairs:
        row: dict[str, int] = {}
        for pair in sorted(open_pairs):  # begin with a pair that is still open
            row = dict(pair)
            break
        for name in names:
            if name in row:
                continue

            def gain(index: int, name: str = name, row: dict[str, int] = row, left: set = open_pairs) -> int:
                pairs = (
                    sorted([(other, row[other]), (name, index)], key=lambda one: names.index(one[0])) for other in row
                )
                return sum(tuple(pair) in left for pair in pairs)

            row[name] = max(range(len(FACTORS[name][1])), key=gain)
        open_pairs -= set(itertools.combinations([(name, row[name]) for name in names], 2))
        rows.append({name: FACTORS[name][1][row[name]] for name in names})
    return rows


ROWS = pairwise()


def losses(file, *settings: str) -> list[float]:
    run = load_run(file, [*settings, "train.steps=2", "memory.fit=custom", "sample.every=0"])
    train(run)
    lines = (run.run.folder / run.run.name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def known() -> dict[tuple, list[float]]:
    """Losses of what changes numbers, without anything that only moves them."""
    return {}


def is_quick(number: int, row: dict[str, object]) -> bool:
    """Every third row, but those that multiply in fp8, which takes a CPU minutes; the others with -m slow: a row is two
    runs."""
    return number % 3 == 0 and not (str(row["format"]).startswith("fp8") and row["matmul"] == "on")


PARAMETERS = [
    pytest.param(row, marks=() if is_quick(number, row) else pytest.mark.slow) for number, row in enumerate(ROWS)
]


@pytest.mark.parametrize("row", PARAMETERS, ids=lambda row: "-".join(str(value) for value in row.values()))
def test_every_pair_of_choices_trains(row, known, request):
    file = request.getfixturevalue("sound_run_file" if row["mode"] == "av" else "run_file")
    said = [name for name in row if name != "mode" and (row["swap"] or name not in OF_SWAPPED)]
    settings = [f"{FACTORS[name][0]}={json.dumps(row[name])}" for name in said]
    found = losses(file, *settings)
    assert len(found) == 2
    assert all(0 < loss < 100 for loss in found)
    # a feed-forward in pieces adds up in another order, and only that of a recomputed block is in pieces; which blocks
    # those are depends on the swapped ones, which come first
    names = ("format", "matmul", "precision", "mode", "split", "chunk", "recompute")
    numbers = {name: row[name] for name in (*names, *(("swap",) if row["chunk"] else ()))}
    key = tuple(numbers.items())
    if key not in known:
        plain = [f"{FACTORS[name][0]}={json.dumps(value)}" for name, value in numbers.items() if name != "mode"]
        known[key] = losses(file, *plain, "run.name=plain")
    assert found == known[key], "moving weights and activations about changed the losses"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["memory.blocks_to_swap=40"], "at most"),
        (["memory.blocks_to_swap=1", "memory.gradient_checkpointing=false"], "must be recomputed"),
        (["memory.blocks_to_swap=1", "memory.recompute_blocks=0"], "must be recomputed"),
        (["quant.format=fp8", "quant.loftq=true"], "nf4"),
        (["quant.format=nf4", "quant.loftq=true", "quant.awq=true"], "in two ways"),
        (["quant.format=nf4", "quant.loftq=true", "lora.dropout=0.1"], "must not be dropped"),
    ],
)
def test_what_cannot_be_together_is_refused_before_anything_is_loaded(settings, reason, run_file):
    with pytest.raises(ConfigError, match=reason):
        losses(run_file, *settings)
