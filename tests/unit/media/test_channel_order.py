"""Orders of channels on which decoding ends the process are refused by name before a sample is decoded."""

import av
import numpy as np
import pytest
from media import moving_square

from ltx2_train.errors import DataError
from ltx2_train.media.sound_media import probe_sound, read_sound
from ltx2_train.media.video import probe_media


def written(path, layout, codec, pictures):
    """A file of half a second with a tone in its first channel."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25) if pictures else None
        sound = container.add_stream(codec, rate=48000, layout=layout)
        if video is not None:
            video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
            for frame in moving_square(12, 64, 64):
                container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[..., :3]), "rgb24")))
            container.mux(video.encode(None))
        samples = np.zeros((1, 24000 * av.AudioLayout(layout).nb_channels), np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
        frame.sample_rate = 48000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


@pytest.mark.parametrize(("name", "pictures"), [("a.mov", True), ("a.mov", False), ("a.caf", False)])
def test_channels_in_an_order_of_their_own_are_refused_by_name(tmp_path, name, pictures):
    path = written(tmp_path / name, "5.1", "pcm_s16le", pictures)
    data = bytearray(path.read_bytes())
    tag = data.index(b"chan") + (8 if name.endswith(".mov") else 12)
    data[tag : tag + 4] = (123 << 16 | 6).to_bytes(4, "big")  # left, centre, right, surrounds, LFE, as films have it
    path.write_bytes(data)
    reads = [probe_sound, read_sound, *([probe_media] if pictures else [])]
    for read in reads:
        with pytest.raises(DataError, match=f"{name}: the channels of its sound are in an order that PyAV cannot read"):
            read(path)


@pytest.mark.parametrize(("name", "layout"), [("a.mov", "5.1"), ("a.mov", "stereo"), ("a.wav", "7.1")])
def test_the_usual_orders_are_read(tmp_path, name, layout):
    path = written(tmp_path / name, layout, "pcm_s16le", False)
    assert read_sound(path).samples.shape[0] == av.AudioLayout(layout).nb_channels
