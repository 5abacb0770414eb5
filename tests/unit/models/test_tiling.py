"""Chunks are exact; tiles come near and leave no seam; frames come in order, each once."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from video_vae_sizes import SECTIONS, apart, clip, fill, latent_clip, section_23, tiny_vae

from ltx2_train.errors import ConfigError, DataError
from ltx2_train.models.tiling import TileSettings, decode_frames, decode_pieces, encode_tiled, spans, to_bytes
from ltx2_train.models.video_vae import VideoVAE, VideoVAEConfig
from ltx2_train.settings import parse

OFF = TileSettings()


@torch.no_grad()
def decode_tiled(*arguments, **more):
    """Pixels [B,3,F,H,W] of all pieces."""
    return torch.cat(list(decode_pieces(*arguments, **more)), dim=2)


@pytest.mark.parametrize("name", ["2.0", "2.3"])
@pytest.mark.parametrize("chunk", [8, 16, 21, 40])
@pytest.mark.parametrize("frames", [1, 9, 33])
def test_encoding_in_chunks_equals_the_whole_clip(name, chunk, frames):
    vae = tiny_vae(name)
    pixels = clip(frames)
    assert apart(encode_tiled(vae, pixels, TileSettings(chunk_size=chunk)), vae.encode(pixels)) < 1e-5


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("chunk", [8, 16, 80])
@pytest.mark.parametrize("latents", [1, 2, 9])
def test_decoding_in_chunks_equals_the_whole_clip(name, chunk, latents):
    vae = tiny_vae(name)
    z = latent_clip(latents, 2, 2)
    whole = vae.decode(z, torch.Generator().manual_seed(3))
    chunked = decode_tiled(vae, z, TileSettings(chunk_size=chunk), generator=torch.Generator().manual_seed(3))
    assert apart(chunked, whole) < 1e-5


def test_encoding_in_chunks_works_with_strided_convolutions():
    blocks = [["res_x", 1], ["compress_all", {}], ["compress_time", {}], ["compress_space", {}], ["compress_all", {}]]
    vae = fill(VideoVAE(VideoVAEConfig.from_checkpoint(section_23() | {"encoder_blocks": blocks}), decoder=False))
    pixels = clip(25)
    assert apart(encode_tiled(vae, pixels, TileSettings(chunk_size=8)), vae.encode(pixels)) < 1e-5


def test_decoding_in_chunks_works_with_a_causal_decoder():
    config = VideoVAEConfig.from_checkpoint(section_23() | {"causal_decoder": True})
    vae = fill(VideoVAE(config))
    z = latent_clip(4)
    assert apart(decode_tiled(vae, z, TileSettings(chunk_size=8)), vae.decode(z)) < 1e-5


def test_an_encoder_with_statistics_over_the_clip_is_not_chunked(caplog):
    blocks = [["res_x_y", {}], *[["compress_all", {}]] * 2, ["compress_time", {}], ["compress_space", {}]]
    vae = fill(VideoVAE(VideoVAEConfig.from_checkpoint(section_23() | {"encoder_blocks": blocks}), decoder=False))
    pixels = clip(17)
    assert torch.equal(encode_tiled(vae, pixels, TileSettings(chunk_size=8)), vae.encode(pixels))
    assert "chunk_size is ignored" in caplog.text


def test_chunks_bound_the_frames_that_any_layer_sees():
    # enough layers that the decoder looks further ahead than one chunk
    section = section_23()
    section["decoder_blocks"] = [
        [kind, {"num_layers": 3} if kind == "res_x" else options] for kind, options in section["decoder_blocks"]
    ]
    vae = fill(VideoVAE(VideoVAEConfig.from_checkpoint(section), encoder=False))
    seen = []
    vae.decoder.conv_out.conv.register_forward_hook(lambda layer, args, output: seen.append(output.shape[2]))
    decode_tiled(vae, latent_clip(12, 2, 2), TileSettings(chunk_size=16))
    assert sum(seen) == 89
    # a chunk's frames and those that conv_out itself had to hold back
    assert max(seen) <= 16 + 1


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside it that are alive at the same time."""

    def __init__(self):
        super().__init__()
        self.sizes, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.sizes:
                storage = tensor.untyped_storage()
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata)
                self.peak = max(self.peak, sum(self.sizes.values()))
        return out


@pytest.mark.parametrize("name", ["2.0", "2.3"])
def test_chunks_need_less_memory_than_the_whole_clip(name):
    vae = tiny_vae(name)
    pixels, z = clip(97, 64, 64), latent_clip(25, 2, 2)

    def encode_peak(tiles):
        with LiveBytes() as live:
            encode_tiled(vae, pixels, tiles)
        return live.peak

    def decode_peak(tiles):
        with LiveBytes() as live:
            for _ in decode_frames(vae, z, tiles):
                pass
        return live.peak

    assert encode_peak(TileSettings(chunk_size=8)) < 0.5 * encode_peak(OFF)  # both count the pixels too
    assert decode_peak(TileSettings(chunk_size=8)) < 0.2 * decode_peak(OFF)


@pytest.mark.parametrize("name", SECTIONS)
def test_tiles_larger_than_the_clip_change_nothing(name):
    vae = tiny_vae(name)
    tiles = TileSettings(spatial_tile=256, spatial_overlap=64, temporal_tile=80, temporal_overlap=24)
    pixels, z = clip(17), latent_clip(3)
    assert torch.equal(encode_tiled(vae, pixels, tiles), vae.encode(pixels))
    assert torch.equal(
        decode_tiled(vae, z, tiles, generator=torch.Generator().manual_seed(1)),
        vae.decode(z, torch.Generator().manual_seed(1)),
    )


TILES = [
    TileSettings(spatial_tile=64, spatial_overlap=32),
    TileSettings(spatial_tile=96, spatial_overlap=64),
    TileSettings(temporal_tile=16, temporal_overlap=8),
    TileSettings(temporal_tile=40, temporal_overlap=32),
    TileSettings(temporal_tile=16, temporal_overlap=0),
    TileSettings(spatial_tile=64, spatial_overlap=0, temporal_tile=24, temporal_overlap=8),
    TileSettings(spatial_tile=64, spatial_overlap=32, chunk_size=8),
    TileSettings(spatial_tile=64, spatial_overlap=32, temporal_tile=32, temporal_overlap=8, chunk_size=16),
]


@pytest.mark.parametrize("tiles", TILES, ids=lambda tiles: str(sorted(tiles.model_dump(exclude_defaults=True).items())))
def test_tiled_results_have_the_shape_of_the_whole(tiles):
    vae = tiny_vae()
    calls = []
    z = encode_tiled(vae, clip(49, 96, 128), tiles, lambda done, total: calls.append((done, total)))
    assert z.shape == (1, 8, 7, 3, 4)
    assert torch.isfinite(z).all()
    assert [done for done, _ in calls] == list(range(1, calls[-1][1] + 1))

    calls.clear()
    pixels = decode_tiled(vae, z, tiles, lambda done, total: calls.append((done, total)))
    assert pixels.shape == (1, 3, 49, 96, 128)
    assert torch.isfinite(pixels).all()
    assert [done for done, _ in calls] == list(range(1, calls[-1][1] + 1))


@pytest.mark.parametrize("tiles", TILES, ids=lambda tiles: str(sorted(tiles.model_dump(exclude_defaults=True).items())))
def test_frames_come_in_order_and_each_once(tiles):
    vae = tiny_vae()
    z = latent_clip(7, 3, 4)
    parts = list(decode_frames(vae, z, tiles))
    assert all(part.dtype == torch.uint8 and part.shape[1:] == (96, 128, 3) and len(part) for part in parts)
    assert torch.equal(torch.cat(parts), to_bytes(decode_tiled(vae, z, tiles))[0])
    if tiles.temporal_tile or tiles.chunk_size:
        assert len(parts) > 1


class PointwiseVAE(VideoVAE):
    """A VAE that looks at nothing but its own cell, so that tiles must blend to exactly the whole."""

    def encode_piece(self, pixels, stream):
        cells = nn.functional.avg_pool3d(pixels, (1, 32, 32))
        ends = cells[:, :, (pixels.shape[2] - 1) % 8 :: 8]
        return ends.repeat(1, 3, 1, 1, 1)[:, :8]

    def decode_pieces(self, latents, stream, last=True, limit=None, generator=None):
        big = latents[:, :3].repeat_interleave(8, 2).repeat_interleave(32, 3).repeat_interleave(32, 4)
        begun = stream.get(self, "begun")
        stream.put(self, "begun", True)
        yield big if begun else big[:, :, 7:]


@pytest.mark.parametrize("tiles", TILES, ids=lambda tiles: str(sorted(tiles.model_dump(exclude_defaults=True).items())))
def test_every_tile_lands_where_it_belongs(tiles):
    vae = PointwiseVAE(VideoVAEConfig.from_checkpoint(section_23()), encoder=False, decoder=False)
    pixels, z = clip(65, 160, 128), latent_clip(9, 5, 4)
    assert apart(encode_tiled(vae, pixels, tiles), vae.encode(pixels)) < 1e-6
    assert apart(decode_tiled(vae, z, tiles), vae.decode(z)) < 1e-6


def test_blending_leaves_no_seam():
    """A wrong overlap shows as a jump between neighbouring columns where a tile begins or ends."""
    vae = tiny_vae()
    z = latent_clip(1, 2, 9)
    z = z[..., :1, :1].expand_as(z).contiguous()  # a flat picture: only borders differ from it

    def jumps(pixels):
        # one latent further, since the columns within a latent differ on their own
        return (pixels[..., 32:] - pixels[..., :-32]).abs().mean(dim=(0, 1, 2, 3))[64:-64].max()

    blended = decode_tiled(vae, z, TileSettings(spatial_tile=128, spatial_overlap=96))
    cut = decode_tiled(vae, z, TileSettings(spatial_tile=96, spatial_overlap=0))
    assert jumps(blended) < 0.5 * jumps(cut)


def test_spans_cover_the_axis_and_share_at_least_the_overlap():
    for length in range(1, 40):
        for tile in range(2, 12):
            for overlap in range(tile):
                cover = spans(length, tile, overlap)
                assert cover[0].start == 0
                assert cover[-1].stop == length
                assert cover[0].rise == cover[-1].fall == 0
                assert {span.stop - span.start for span in cover} == {min(tile, length)}
                for before, after in zip(cover, cover[1:], strict=False):
                    assert before.start < after.start
                    assert before.stop - after.start == before.fall == after.rise >= overlap
                assert all((span.weights(3) > 0).all() for span in cover)


def test_two_overlapping_spans_sum_to_one():
    first, second = spans(6, 4, 2)
    assert torch.allclose(first.weights(8)[16:] + second.weights(8)[:16], torch.ones(16))
    assert torch.equal(first.weights(8)[:16], torch.ones(16))


def test_pixels_become_the_nearest_bytes():
    pixels = torch.tensor([-1.5, -1.0, 0.0, 1.0, 1.5]).view(1, 1, 1, 1, 5).expand(1, 3, 1, 1, 5)
    assert to_bytes(pixels)[0, 0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
    every = torch.arange(256).view(1, 1, 1, 1, -1).expand(1, 3, 1, 1, 256)
    assert torch.equal(to_bytes(every / 127.5 - 1).permute(0, 4, 1, 2, 3), every.to(torch.uint8))


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"chunk_size": 7}, "chunk_size.*7"),
        ({"spatial_tile": 32}, "spatial_tile.*64.*32"),
        ({"spatial_tile": 100}, "spatial_tile is 100.*multiple of 32"),
        ({"spatial_tile": 128, "spatial_overlap": 16}, "spatial_overlap is 16.*multiple of 32"),
        ({"spatial_tile": 64, "spatial_overlap": 64}, "spatial_overlap is 64.*smaller"),
        ({"temporal_tile": 8, "temporal_overlap": 0}, "temporal_tile.*16.*8"),
        ({"temporal_tile": 20}, "temporal_tile is 20.*multiple of 8"),
        ({"temporal_tile": 32, "temporal_overlap": 12}, "temporal_overlap is 12.*multiple of 8"),
        ({"temporal_tile": 24, "temporal_overlap": 24}, "temporal_overlap is 24.*smaller"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_their_numbers(table, text):
    with pytest.raises(ConfigError, match=text):
        parse(TileSettings, table, "settings")


@pytest.mark.parametrize(
    ("table", "overlaps"),
    [({"spatial_tile": 64}, (32, 24)), ({"temporal_tile": 16}, (64, 8)), ({"spatial_tile": 96}, (64, 24))],
)
def test_an_overlap_that_nobody_set_fits_into_a_small_tile(table, overlaps):
    tiles = parse(TileSettings, table, "settings")
    assert (tiles.spatial_overlap, tiles.temporal_overlap) == overlaps
    assert tiles.model_fields_set == {*table}


def test_zero_turns_a_cut_off():
    assert TileSettings(chunk_size=0, spatial_tile=0, temporal_tile=0) == OFF


def test_clips_of_a_wrong_size_are_refused_before_any_work():
    with pytest.raises(DataError, match="12 frames"):
        encode_tiled(tiny_vae(), clip(12), TileSettings(chunk_size=8))
    with pytest.raises(DataError, match="one clip at a time; 2"):
        next(decode_frames(tiny_vae(), latent_clip(batch=2), OFF))


def test_tiled_work_keeps_no_graph():
    vae = tiny_vae().requires_grad_(True)
    assert not encode_tiled(vae, clip(9), OFF).requires_grad
    assert not decode_tiled(vae, latent_clip(2), OFF).requires_grad
    frames = decode_frames(vae, latent_clip(2), OFF)
    next(frames)
    assert torch.is_grad_enabled()
