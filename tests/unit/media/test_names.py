"""Names of files in other encodings, and in a Python that takes good ones for something else."""

from __future__ import annotations

import os

from ltx2_train.media import names


def test_a_good_name_is_not_blamed_for_the_encoding_that_python_has(monkeypatch):
    monkeypatch.setattr(names.sys, "getfilesystemencoding", lambda: "ascii")
    good, bad = (
        name.decode("ascii", "surrogateescape") for name in ("füchs.png".encode(), "füchs.png".encode("cp1252"))
    )
    assert not names.readable(good)
    assert names.why_unreadable(good) == ("its name is UTF-8, and this Python takes names for ascii", names.UTF8_MODE)
    assert names.why_unreadable(bad) == ("its name is in another encoding than UTF-8", "rename it")


def test_a_name_that_cannot_be_asked_for_is_not_called_missing(tmp_path, monkeypatch):
    def stat(path):
        str(path).encode("ascii")
        return os.stat(path)

    monkeypatch.setattr(names.Path, "stat", stat)
    reason = names.why_no_file(tmp_path / "füchs.png")
    assert reason == f"has a name that this Python cannot ask for, as it takes names for ascii; {names.UTF8_MODE}"
    assert names.why_no_file(tmp_path / "fox.png") == "is not there"
    assert names.why_not_found(tmp_path / "fox.png") == "does not exist"
