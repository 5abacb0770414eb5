"""The demo says what it promises, and promises nothing of a few steps."""

from __future__ import annotations

import json

import pytest

from ltx2_train.cli import main
from ltx2_train.cli.demo import DEFAULT_STEPS, _losses
from ltx2_train.errors import TrainerError


@pytest.mark.parametrize("steps", [-1, 0, 1])
def test_steps_that_make_no_demo_are_refused_before_anything_is_made(tmp_path, capsys, steps):
    assert main(["demo", "--out", str(tmp_path / "demo"), "--steps", str(steps)]) == 2
    assert f"--steps is {steps}; use 2 or more" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(("steps", "fails"), [(20, False), (DEFAULT_STEPS, True)])
def test_a_loss_that_does_not_fall_fails_the_whole_demo_only(tmp_path, steps, fails):
    rows = [{"step": step, "loss_video": 1.0} for step in range(1, steps + 1)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if fails:
        with pytest.raises(TrainerError, match="did not clearly fall"):
            _losses(tmp_path / "m.jsonl", steps, "video")
    else:
        assert _losses(tmp_path / "m.jsonl", steps, "video") == {"video": (1.0, 1.0)}
