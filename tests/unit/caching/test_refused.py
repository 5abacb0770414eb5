"""Each write of a cache build is refused in turn: the file is named, none is torn, the next build makes the rest."""

from __future__ import annotations

import pytest
from fake_encoders import CountingEncoder, PoolingVAE
from fill_caches import encode_latents, encode_text
from media import write_image
from refusing import Refusing, for_good, once

from ltx2_train import RunError, files
from ltx2_train.caching.cache_file import CacheFile, Fingerprints
from ltx2_train.caching.settings import CacheSettings
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset

WEIGHTS = Fingerprints("c", "d")
KINDS = ("make", "rename")


def build(folder):
    """Caches of two pictures; returns how many latents and captions were made."""
    table = {"general": {"resolution": 64}, "datasets": [{"image_directory": "pics", "cache_directory": "cache"}]}
    plan = plan_dataset(DatasetConfig.from_table(table, folder))
    latents = encode_latents(plan, PoolingVAE, "vae", CacheSettings())
    text = encode_text(plan, CountingEncoder, WEIGHTS, CacheSettings())
    return latents.made, text.made


def caches(folder):
    return sorted(path.name for path in (folder / "cache").glob("*.safetensors"))


@pytest.mark.parametrize("how", [once, for_good])
def test_each_refused_write_of_a_build_is_named_and_the_rest_is_made_the_next_time(tmp_path, how):
    for name in ("a", "b"):
        write_image(tmp_path / "pics" / f"{name}.png", caption=f"picture {name}")
    with pytest.MonkeyPatch.context() as patch:
        system = Refusing(patch, tmp_path, kinds=KINDS)
        assert build(tmp_path) == (2, 2)
    whole, total = caches(tmp_path), len(system.changes)
    for at in range(total):
        for path in (tmp_path / "cache").iterdir():
            path.unlink()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "WAITS", ())
            system = Refusing(patch, tmp_path, how(at), KINDS)
            error = None
            try:
                build(tmp_path)
            except RunError as caught:
                error = caught
        if error is None:
            assert "ltx2_" in system.failed[0], "only what is remembered about media may be lost without a word"
        else:
            assert str(tmp_path / "cache") in str(error), system.failed
        kept = caches(tmp_path)
        assert all(CacheFile(tmp_path / "cache" / name).keys for name in kept)
        assert sum(build(tmp_path)) == len(whole) - len(kept)
        assert caches(tmp_path) == whole
