"""JPEGs of a Motion JPEG video: what their bytes show of damage, and what is none."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from ltx2_train.media.jpeg import is_broken

TEXTURE = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
PLAIN = np.zeros((480, 640, 3), np.uint8)


def jpeg(picture=TEXTURE, **options):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", **{"quality": 80, **options})
    return file.getvalue()


@pytest.mark.parametrize("picture", [TEXTURE, PLAIN], ids=["texture", "plain"])
@pytest.mark.parametrize(
    "options", [{}, {"optimize": True}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str
)
def test_whole_ones_are_whole(picture, options):
    data = jpeg(picture, **options)
    assert not is_broken(data)
    assert not is_broken(data + bytes(100)), "padding, and whatever a camera puts behind"
    assert not is_broken(data + data), "two fields"
    assert not is_broken(data[:-2]), "the last marker is often left out"


def hurt(data, what, at=None):
    at = len(data) * 2 // 3 if at is None else at
    return data[:at] + what + data[at + len(what) :]


def test_a_hole_and_wrong_markers_are_seen():
    data, restarted = jpeg(), jpeg(restart_marker_rows=1)
    assert is_broken(hurt(data, bytes(64)))
    assert is_broken(hurt(data, b"\xff\xd8"))
    assert is_broken(hurt(data, b"\xff\x13"))
    assert is_broken(hurt(data, b"\xff\xe0\xff\xff"))
    lost = restarted.index(b"\xff\xd1")
    assert is_broken(restarted[:lost] + restarted[lost + 2 :]), "a restart is missing"
    drawn = random.Random(1)
    seen = sum(is_broken(hurt(data, drawn.randbytes(512), drawn.randrange(700, len(data) - 600))) for _ in range(50))
    assert seen >= 25, "other bytes are seen where a marker comes of them; the rest is for the decoder"
