"""Several captions of one medium: each is cached, one is drawn a step, and a resumed run draws the same."""

from __future__ import annotations

import pytest

from ltx2_train import CacheError, Events, Stopped, build_caches, load_run, train
from ltx2_train.training.metrics import read_rows

# steps too small to be seen, so that a loss tells which caption it was measured with
STILL = [
    "train.steps=8",
    "train.learning_rate=1e-12",
    "sample.at_start=false",
    "train.caption_dropout=0",
    "lora.rank=1",
]


class StopAt(Events):
    done = 0

    def step(self, metrics):
        self.done = metrics["step"]

    def should_stop(self):
        return self.done >= 3


def losses(run_file, name, *settings):
    result = train(load_run(run_file, [*STILL, f"run.name={name}", *settings]))
    return [row["loss"] for row in read_rows(result.folder / "metrics.jsonl")]


def test_one_of_the_captions_is_drawn_a_step(run_file):
    folder = run_file.parent
    first = losses(run_file, "first")
    (folder / "clips" / "clip.txt").write_text("a red ball bounces\na sphere, seen from far away\n")
    dataset = folder / "dataset.toml"
    dataset.write_text(dataset.read_text().replace("[general]", "[general]\ncaption_lines = true"))
    with pytest.raises(CacheError, match="clip~caption2_ltx2_te_compact.safetensors: missing"):
        losses(run_file, "both")
    build_caches(load_run(run_file))
    both = losses(run_file, "both")
    same = [abs(a - b) < 1e-6 * b for a, b in zip(both, first, strict=True)]
    assert any(same)
    assert not all(same)

    with pytest.raises(Stopped):
        train(load_run(run_file, [*STILL, "run.name=broken"]), StopAt())
    assert losses(run_file, "broken") == both
    manifest = next((folder / "cache").glob("*manifest*.json"), None)
    alone = f"data.manifest={manifest}" if manifest else "data.config=alone.toml"
    (folder / "alone.toml").write_text(dataset.read_text() + "cache_only = true\n")
    assert losses(run_file, "alone", alone) == both
    assert losses(run_file, "dop", "regularizers.blank.weight=0") == both
