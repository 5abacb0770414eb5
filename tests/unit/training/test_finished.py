"""What a finished run is told of settings that were changed since."""

from __future__ import annotations

from ltx2_train.config import make_run
from ltx2_train.training.finished import finished_record


def test_a_folder_for_copies_is_used_by_a_finished_run(tmp_path):
    model = {"model": {"mode": "video"}}
    (tmp_path / "run.toml").write_text(make_run({**model, "lora": {"rank": 4}}).to_toml())
    run = make_run({**model, "lora": {"rank": 8}, "run": {"export_folder": str(tmp_path / "loras")}})
    texts, names = finished_record(tmp_path, run, {})
    assert names == ["lora.rank"], "the LoRA is put into run.export_folder, whenever that was set"
    assert str(tmp_path / "loras") in texts["run.toml"]
    assert "rank = 4" in texts["run.toml"]
