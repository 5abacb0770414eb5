"""The transformer written down a second time: plain functions over a state dict, in float64, one token row at a time.

Nothing is shared with the package: no module, no rotary table, no grouping of timesteps, no fused norm. Attention is a
matrix product and a softmax; the timestep network runs for every single token. Only the angles of the timestep wave
and of the rotation are rounded to float32, as the network was trained (they reach 16000, so that is part of the
function). The rule for the attention between modalities is the package's: a token's own timestep scales and shifts,
the other's sigma gates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def velocities(state: dict[str, Tensor], config: dict, video: dict | None, audio: dict | None) -> list[Tensor | None]:
    """[B, T, C] per modality. A modality is latent, sigma, timesteps [B, T], positions, context and nothing else."""
    state = {name: tensor.double() if not tensor.requires_grad else tensor for name, tensor in state.items()}
    streams = []
    for prefix, given, other in (("", video, audio), ("audio_", audio, video)):
        streams.append(None if given is None else _prepare(state, config, prefix, given, other))
    for number in range(config["num_layers"]):
        _block(state, f"transformer_blocks.{number}.", config, *streams)
    out = []
    for prefix, stream in zip(("", "audio_"), streams, strict=True):
        if stream is None:
            out.append(None)
            continue
        x = stream["x"]
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        normal = (x - mean) / torch.sqrt(variance + config["norm_eps"])
        table = state[f"{prefix}scale_shift_table"]
        shift, scale = table[0] + stream["embedded"], table[1] + stream["embedded"]
        out.append(_linear(state, f"{prefix}proj_out", normal * (1 + scale) + shift))
    return out


def _prepare(state, config, prefix, given, other):
    heads = config["num_attention_heads"]
    head = config["audio_attention_head_dim" if prefix else "attention_head_dim"]
    longest = config["audio_positional_embedding_max_pos" if prefix else "positional_embedding_max_pos"]
    own = given["timesteps"] * 1000
    stream = {
        "x": _linear(state, f"{prefix}patchify_proj", given["latent"].double()),
        "context": given["context"].double(),
    }
    if "caption_projection.linear_1.weight" in state or "audio_caption_projection.linear_1.weight" in state:
        hidden = _gelu(_linear(state, f"{prefix}caption_projection.linear_1", stream["context"]))
        stream["context"] = _linear(state, f"{prefix}caption_projection.linear_2", hidden)
    stream["ada"], stream["embedded"] = _adaln(state, f"{prefix}adaln_single", own)
    stream["angles"] = _angles(given["positions"], heads * head, longest, heads)
    sigma = given["sigma"][:, None] * 1000
    if config.get("cross_attention_adaln"):
        stream["prompt"] = _adaln(state, f"{prefix}prompt_adaln_single", sigma)[0]
    if other is not None:
        name, way = ("audio", "v2a") if prefix else ("video", "a2v")
        stream["cross"] = _adaln(state, f"av_ca_{name}_scale_shift_adaln_single", own)[0]
        its_sigma = other["sigma"][:, None] * config["av_ca_timestep_scale_multiplier"]
        stream["gate"] = _adaln(state, f"av_ca_{way}_gate_adaln_single", its_sigma)[0]
        time = max(config["positional_embedding_max_pos"][0], config["audio_positional_embedding_max_pos"][0])
        width = config["audio_cross_attention_dim"]
        stream["cross_angles"] = _angles(given["positions"][:, :1], width, [time], heads)
    return stream


def _block(state, at, config, video, audio):
    eps, modulated = config["norm_eps"], config.get("cross_attention_adaln")
    for prefix, s in (("", video), ("audio_", audio)):
        if s is None:
            continue
        width = s["x"].shape[-1]
        row = _rows(s["ada"], state[f"{at}{prefix}scale_shift_table"], width)
        x = s["x"]
        inner = _rms(x, eps) * (1 + row[1]) + row[0]
        x = x + row[2] * _attention(state, f"{at}{prefix}attn1", config, inner, inner, s["angles"], s["angles"])
        if modulated:
            prompt = _rows(s["prompt"], state[f"{at}{prefix}prompt_scale_shift_table"], width)
            query = _rms(x, eps) * (1 + row[7]) + row[6]
            context = s["context"] * (1 + prompt[1]) + prompt[0]
            x = x + row[8] * _attention(state, f"{at}{prefix}attn2", config, query, context, None, None)
        else:
            x = x + _attention(state, f"{at}{prefix}attn2", config, _rms(x, eps), s["context"], None, None)
        s["x"] = x
    if video is not None and audio is not None:
        nv, na = _rms(video["x"], eps), _rms(audio["x"], eps)
        tv, ta = state[f"{at}scale_shift_table_a2v_ca_video"], state[f"{at}scale_shift_table_a2v_ca_audio"]
        rv, ra = _rows(video["cross"], tv[:4], nv.shape[-1]), _rows(audio["cross"], ta[:4], na.shape[-1])
        gv, ga = video["gate"] + tv[4], audio["gate"] + ta[4]
        pv, pa = video["cross_angles"], audio["cross_angles"]
        to_video = _attention(
            state, f"{at}audio_to_video_attn", config, nv * (1 + rv[0]) + rv[1], na * (1 + ra[0]) + ra[1], pv, pa
        )
        to_audio = _attention(
            state, f"{at}video_to_audio_attn", config, na * (1 + ra[2]) + ra[3], nv * (1 + rv[2]) + rv[3], pa, pv
        )
        video["x"] = video["x"] + gv * to_video
        audio["x"] = audio["x"] + ga * to_audio
    for prefix, s in (("", video), ("audio_", audio)):
        if s is None:
            continue
        row = _rows(s["ada"], state[f"{at}{prefix}scale_shift_table"], s["x"].shape[-1])
        inner = _rms(s["x"], eps) * (1 + row[4]) + row[3]
        hidden = _gelu(_linear(state, f"{at}{prefix}ff.net.0.proj", inner))
        s["x"] = s["x"] + row[5] * _linear(state, f"{at}{prefix}ff.net.2", hidden)


def _attention(state, at, config, x, context, query_angles, key_angles):
    heads = config["num_attention_heads"]
    q, k, v = (_linear(state, f"{at}.to_{n}", y) for n, y in (("q", x), ("k", context), ("v", context)))
    q = _rms(q, config["norm_eps"]) * state[f"{at}.q_norm.weight"]
    k = _rms(k, config["norm_eps"]) * state[f"{at}.k_norm.weight"]
    width = q.shape[-1] // heads
    out = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        qh, kh = q[..., part], k[..., part]
        if query_angles is not None:
            qh, kh = _turn(qh, query_angles[:, :, h], config), _turn(kh, key_angles[:, :, h], config)
        weights = torch.softmax(qh @ kh.transpose(1, 2) / math.sqrt(width), -1)
        result = weights @ v[..., part]
        if f"{at}.to_gate_logits.weight" in state:
            result = result * 2 / (1 + torch.exp(-_linear(state, f"{at}.to_gate_logits", x)[..., h : h + 1]))
        out.append(result)
    return _linear(state, f"{at}.to_out.0", torch.cat(out, -1))


def _turn(x, angles, config):
    cos, sin = torch.cos(angles), torch.sin(angles)
    if config["rope_type"] == "interleaved":
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def _angles(positions, width, longest, heads):
    """[B, T, heads, width / heads / 2], filled in number by number."""
    batch, axes, tokens, _ = positions.shape
    count = width // (2 * axes)
    pad = width // 2 - axes * count
    flat = torch.zeros(batch, tokens, width // 2)
    for k in range(count):
        frequency = torch.tensor(10000.0 ** (k / (count - 1)) * math.pi / 2)
        for axis in range(axes):
            middle = (positions[:, axis, :, 0] + positions[:, axis, :, 1]) / 2
            flat[:, :, pad + k * axes + axis] = (2 * middle / longest[axis] - 1) * frequency
    return flat.double().reshape(batch, tokens, heads, -1)


def _adaln(state, at, timesteps):
    """[B, T] -> [B, T, n*D] and [B, T, D]."""
    frequencies = torch.exp(torch.arange(128) * (-math.log(10000.0) / 128))
    angles = (timesteps.float()[..., None] * frequencies).double()
    wave = torch.cat((torch.cos(angles), torch.sin(angles)), -1)
    hidden = _silu(_linear(state, f"{at}.emb.timestep_embedder.linear_1", wave))
    embedded = _linear(state, f"{at}.emb.timestep_embedder.linear_2", hidden)
    return _linear(state, f"{at}.linear", _silu(embedded)), embedded


def _rows(ada, table, width):
    return [ada[..., i * width : (i + 1) * width] + table[i] for i in range(table.shape[0])]


def _rms(x, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def _linear(state, at, x):
    return x @ state[f"{at}.weight"].T + state[f"{at}.bias"]


def _silu(x):
    return x / (1 + torch.exp(-x))


def _gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
