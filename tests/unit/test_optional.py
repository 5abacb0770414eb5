"""Libraries that lie there and do not work."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from ltx2_train.errors import ConfigError, DataError
from ltx2_train.media import scenes
from ltx2_train.models.mel import resample_waveform
from ltx2_train.optim import OptimizerSettings, choose_optimizer, why_not
from ltx2_train.optional import why_missing
from ltx2_train.quant.formats import quantize_linear
from ltx2_train.quant.report import error_table
from ltx2_train.quant.settings import QuantSettings
from ltx2_train.weights.gemma_bnb import require_bitsandbytes
from ltx2_train.weights.gemma_settings import GemmaSettings
from ltx2_train.weights.quantize import check_quant

BROKEN = r"cannot be loaded \(RuntimeError: built for another card\)"


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Puts a package where the real one is found, whose import raises."""

    def put(name):
        for known in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, known)
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('built for another card\\nsecond line')")
        monkeypatch.syspath_prepend(tmp_path)

    return put


def test_what_is_there_what_is_not_and_what_does_not_work(broken):
    broken("ltx2_broken_library")
    assert why_missing("json.decoder") == ""
    assert why_missing("ltx2_no_such_library.part") == "is not installed"
    reason = "cannot be loaded (RuntimeError: built for another card)"
    assert why_missing("ltx2_broken_library") == why_missing("ltx2_broken_library.part") == reason


def test_a_broken_bitsandbytes_leaves_the_default_optimizer(broken):
    broken("bitsandbytes")
    assert choose_optimizer(OptimizerSettings(), "cuda")[0] == "adamw"
    assert "built for another card" in why_not("adamw8bit", OptimizerSettings(), "cuda")
    with pytest.raises(ConfigError, match=f"adamw8bit.*{BROKEN}"):
        choose_optimizer(OptimizerSettings(name="adamw8bit"), "cuda")
    with pytest.raises(ConfigError, match=f"gemma.precision = nf4.*{BROKEN}"):
        require_bitsandbytes(GemmaSettings(precision="nf4"))


def test_a_broken_quanto_is_named_before_anything_is_loaded(broken, tiny):
    broken("optimum")
    settings = QuantSettings(format="int4")
    with pytest.raises(ConfigError, match=f'quant.format = "int4" needs optimum-quanto, which {BROKEN}'):
        check_quant(tiny.checkpoint, settings)
    with pytest.raises(ConfigError, match="pip install optimum-quanto"):
        quantize_linear(nn.Linear(64, 4), "int4", settings)
    assert "int4" not in [row["name"] for row in error_table(64)]


def test_a_broken_scenedetect_is_named(broken):
    broken("scenedetect")
    with pytest.raises(ConfigError, match=f"PySceneDetect, which {BROKEN}.*--seconds"):
        scenes._detector(5)


def test_a_broken_torchaudio_is_named_with_the_one_that_belongs_to_this_torch(broken):
    broken("torchaudio")
    own = torch.__version__.partition("+")[0]
    with pytest.raises(DataError, match=f"{BROKEN}.*pip install torchaudio=={own} --no-deps"):
        resample_waveform(torch.zeros(1, 2, 4800), 48000, 16000)
