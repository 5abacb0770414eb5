"""Whether a medium is what a cache was made from, where the index of the cache folder says where it lies."""

from __future__ import annotations

import pytest

from ltx2_train.dataset.media_index import MediaIndex
from ltx2_train.dataset.sources import source_record, source_stat
from ltx2_train.media.info import MediaInfo


@pytest.mark.parametrize(
    ("becomes", "said"),
    [(b"one", None), (b"other", "a.png changed (3 -> 5 bytes)"), (b"two", "same size"), (None, None)],
)
def test_a_medium_that_was_changed_since_its_cache_is_found_by_its_name(tmp_path, becomes, said):
    medium = tmp_path / "a.png"
    medium.write_bytes(b"one")
    record = source_record(medium)
    index = MediaIndex(tmp_path)
    index.put(MediaInfo(medium, "image", 1, 4, 4), *source_stat(medium))
    index.save()
    medium.unlink()
    if becomes is not None:
        medium.write_bytes(becomes)
    found = MediaIndex(tmp_path).change("a", record)
    assert found is None if said is None else said in found
    assert MediaIndex(tmp_path).change("b", record) is None
