"""What people write is read by its byte order mark."""

import pytest

from ltx2_train.errors import ConfigError
from ltx2_train.text_files import read_text
from ltx2_train.toml import read_toml


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_what_people_write_is_read_by_its_byte_order_mark(tmp_path, encoding):
    path, mark = tmp_path / "a.toml", "\ufeff" if encoding.endswith("e") else ""
    path.write_bytes((mark + 'name = "caf\u00e9 \u72d0"\r\n').encode(encoding))
    assert read_text(path) == 'name = "caf\u00e9 \u72d0"\n'
    assert read_toml(path) == {"name": "caf\u00e9 \u72d0"}
    if mark:
        path.write_bytes('name = "x"'.encode(encoding))
        with pytest.raises(ConfigError, match=r"a\.toml begins as UTF-16 without a byte order mark.* Save it as UTF-8"):
            read_toml(path)
