"""Tiny transformers of ours and of the two independent implementations, filled with the same numbers.

It is long: two programs in whose words our tensors are named.

The sizes exercise every branch: the rotary table of width 16 over three axes needs a pad, batch, frames, rows, columns,
audio steps and text length are all different. The oracles hold no LoRA: their weights are W + scale * B A with A and B
as leaves, so their gradients come from nothing but their own forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ltx2_train.lora.layer import LoRALinear
from ltx2_train.models.positions import audio_positions, video_positions
from ltx2_train.models.transformer import Levels, LTXTransformer, Modality, Output, SkipLayers, TransformerConfig
from ltx2_train.shapes import AudioLatentShape, LatentShape

GRID = LatentShape(3, 2, 3, 4)
AUDIO_STEPS = 7
FPS = 24.0
RANK, ALPHA = 3, 6.0


def section(version: str, **changes) -> dict:
    """A checkpoint's `config.transformer`, tiny."""
    v23 = {
        "cross_attention_adaln": True,
        "apply_gated_attention": True,
        "caption_proj_before_connector": True,
    }
    return {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 4,
        "in_channels": 4,
        "out_channels": 4,
        "cross_attention_dim": 16,
        "audio_cross_attention_dim": 8,
        "caption_channels": 12,
        "positional_embedding_max_pos": [20, 2048, 2048],
        "audio_positional_embedding_max_pos": [20],
        **({} if version == "ltxv" else {"rope_type": "split", "frequencies_precision": "float64"}),
        "av_ca_timestep_scale_multiplier": 1000.0,
        "timestep_scale_multiplier": 1000,
        "norm_eps": 1e-6,
        **({} if version in ("2.0", "ltxv") else v23),
        **({"ff_bias": False, "use_keyframes_abs_pos_embedding": True} if version == "2.5" else {}),
        **({"_class_name": "Transformer3DModel"} if version == "ltxv" else {}),
        **changes,
    }


def build(version: str, mode: str = "av", seed: int = 0, **changes) -> LTXTransformer:
    """Our model with random weights, frozen."""
    model = LTXTransformer(TransformerConfig.from_checkpoint(section(version, **changes)), mode)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = name.endswith(("q_norm.weight", "k_norm.weight"))
            # real values of this one are tiny: large ones show whether it reaches the right tokens
            size = 1.0 if name == "keyframes_abs_pos_embedding" else 0.2
            parameter.copy_(1 + 0.2 * noise if norm else size * noise)
    return model.requires_grad_(False)


def adapt(model: LTXTransformer, where: str = "", seed: int = 1) -> dict[str, LoRALinear]:
    """Put LoRA with a B that is not zero on every linear whose path contains `where`."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and where in path:
            layer = LoRALinear(module, RANK, ALPHA, generator=generator)
            with torch.no_grad():
                layer.lora_B.normal_(0.0, 0.2, generator=generator)
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layer)
            layers[path] = layer
    return layers


@dataclass
class Inputs:
    """One batch of both modalities."""

    video: Modality
    audio: Modality

    def pick(self, mode: str) -> tuple[Modality | None, Modality | None]:
        return (None if mode == "audio" else self.video), (None if mode == "video" else self.audio)


def inputs(version: str, batch: int = 2, text: int = 5, per_token: bool = False, seed: int = 3, **changes) -> Inputs:
    """Random inputs; video and audio differ in sigma. `per_token` gives the first frame of each clip clean."""
    g = torch.Generator().manual_seed(seed)
    sizes = section(version)
    widths = (12, 12) if version in ("2.0", "ltxv") else (16, 8)
    made = []
    for width, tokens, channels, positions, name in (
        (widths[0], GRID.tokens, sizes["in_channels"], video_positions(GRID, FPS), "video"),
        (widths[1], AUDIO_STEPS, 128, audio_positions(AudioLatentShape(AUDIO_STEPS)), "audio"),
    ):
        sigma = torch.rand(batch, generator=g)
        timesteps = sigma[:, None].repeat(1, tokens)
        if per_token:
            timesteps[:, : tokens // 3] = 0.0
        made.append(
            Modality(
                latent=torch.randn(batch, tokens, channels, generator=g),
                sigma=sigma,
                timesteps=timesteps,
                positions=positions.expand(batch, -1, -1, -1),
                context=torch.randn(batch, text, width, generator=g),
                single=slice(0, GRID.frame_tokens) if name == "video" else None,
                **changes.get(name, {}),
            )
        )
    return Inputs(*made)


def loss_of(output: Output | tuple, seed: int = 5) -> Tensor:
    """A fixed random linear functional of whatever modalities came out."""
    g = torch.Generator().manual_seed(seed)
    video, audio = (output.video, output.audio) if isinstance(output, Output) else output
    total = 0.0
    for out, channels in ((video, (GRID.tokens, 4)), (audio, (AUDIO_STEPS, 128))):
        weights = torch.randn(channels, generator=g)
        if out is not None:
            total = total + (out * weights.to(out.dtype)).sum() / weights.numel() ** 0.5
    return total


class Oracle:
    """An independent implementation with the weights of ours; call it like ours."""

    def __init__(self, model: LTXTransformer, layers: dict[str, LoRALinear] | None = None) -> None:
        self.ours = model
        self.leaves: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        for name, tensor in model.state_dict().items():
            if not name.endswith((".lora_A", ".lora_B")):
                self.weights[name.replace(".base.", ".")] = tensor.detach().clone()
        for path, layer in (layers or {}).items():
            a = layer.lora_A.detach().clone().requires_grad_()
            b = layer.lora_B.detach().clone().requires_grad_()
            self.leaves[f"{path}.lora_A"], self.leaves[f"{path}.lora_B"] = a, b
            self.weights[f"{path}.weight"] = self.weights[f"{path}.weight"] + ALPHA / RANK * b @ a
        self.net = self.make(model.config, model.mode)
        named = {self.name_of(name): tensor for name, tensor in self.weights.items()}
        wanted = set(self.net.state_dict())
        assert set(named) <= wanted, sorted(set(named) - wanted)
        missing = wanted - set(named)
        assert all(self.may_lack(name) for name in missing), sorted(missing)
        self.net.to_empty(device="cpu")
        with torch.no_grad():
            for tensor in self.net.state_dict().values():
                tensor.zero_()
        self.weights = named
        self.net.requires_grad_(False)

    def make(self, config: TransformerConfig, mode: str) -> nn.Module:
        raise AssertionError("a subclass says what it is")

    def name_of(self, name: str) -> str:
        return name

    def may_lack(self, name: str) -> bool:
        """Whether the other implementation may have a tensor that ours has not."""
        return False

    def gradients(self) -> dict[str, Tensor]:
        return {name: leaf.grad for name, leaf in self.leaves.items()}


class LtxCore(Oracle):
    """PyPI ltx-core."""

    def make(self, config, mode):
        from ltx_core.model.transformer.model import LTXModel, LTXModelType
        from ltx_core.model.transformer.rope import LTXRopeType
        from ltx_core.model.transformer.text_projection import PixArtAlphaTextProjection

        kinds = {"av": LTXModelType.AudioVideo, "video": LTXModelType.VideoOnly, "audio": LTXModelType.AudioOnly}
        v, a = config.video, config.audio
        projects = config.projects_captions
        return LTXModel(
            model_type=kinds[mode],
            num_layers=config.num_layers,
            num_attention_heads=v.heads,
            attention_head_dim=v.head_width,
            in_channels=v.in_channels,
            out_channels=v.out_channels,
            cross_attention_dim=v.context_width,
            audio_num_attention_heads=a.heads,
            audio_attention_head_dim=a.head_width,
            audio_cross_attention_dim=a.context_width,
            apply_gated_attention=config.gated,
            cross_attention_adaln=config.cross_attention_adaln,
            rope_type=LTXRopeType(config.rope_type),
            double_precision_rope=config.frequencies_precision == "float64",
            timestep_scale_multiplier=1000,
            av_ca_timestep_scale_multiplier=config.av_ca_timestep_scale_multiplier,
            caption_projection=PixArtAlphaTextProjection(12, v.width) if projects and mode != "audio" else None,
            audio_caption_projection=PixArtAlphaTextProjection(12, a.width) if projects and mode != "video" else None,
        )

    def __call__(self, video: Modality | None, audio: Modality | None, skip: SkipLayers | None = None):
        from ltx_core.guidance.perturbations import (
            BatchedPerturbationConfig,
            Perturbation,
            PerturbationConfig,
            PerturbationType,
        )

        kinds = {
            "video_self": PerturbationType.SKIP_VIDEO_SELF_ATTN,
            "audio_self": PerturbationType.SKIP_AUDIO_SELF_ATTN,
            "a2v": PerturbationType.SKIP_A2V_CROSS_ATTN,
            "v2a": PerturbationType.SKIP_V2A_CROSS_ATTN,
        }
        batch = (video or audio).latent.shape[0]
        perturbations = None
        if skip is not None:
            chosen = [
                Perturbation(kind, None if getattr(skip, name) == "all" else sorted(getattr(skip, name)))
                for name, kind in kinds.items()
                if getattr(skip, name) is not None
            ]
            perturbations = BatchedPerturbationConfig([PerturbationConfig(chosen)] * batch)
        return functional_call(
            self.net, self.weights, (self._modality(video), self._modality(audio), perturbations), strict=False
        )

    @staticmethod
    def _modality(x: Modality | None):
        from ltx_core.model.transformer.modality import Modality as Theirs

        if x is None:
            return None
        return Theirs(
            latent=x.latent,
            sigma=x.sigma,
            timesteps=x.token_timesteps,
            positions=x.positions,
            context=x.context,
            enabled=x.enabled,
            context_mask=None if x.context_mask is None else x.context_mask.to(torch.int64),
            attention_mask=x.attention_mask,
        )


SEGMENTS = {
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
    "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}


class Diffusers(Oracle):
    """diffusers' LTX2VideoTransformer3DModel. It always has both modalities; a mode of one isolates the other."""

    def make(self, config, mode):
        from diffusers import LTX2VideoTransformer3DModel

        v, a, v23 = config.video, config.audio, config.is_v23
        return LTX2VideoTransformer3DModel(
            in_channels=v.in_channels,
            out_channels=v.out_channels,
            num_layers=config.num_layers,
            num_attention_heads=v.heads,
            attention_head_dim=v.head_width,
            cross_attention_dim=v.context_width,
            audio_in_channels=a.in_channels,
            audio_out_channels=a.out_channels,
            audio_num_attention_heads=a.heads,
            audio_attention_head_dim=a.head_width,
            audio_cross_attention_dim=a.context_width,
            gated_attn=v23,
            audio_gated_attn=v23,
            cross_attn_mod=v23,
            audio_cross_attn_mod=v23,
            use_prompt_embeddings=not v23,
            caption_channels=12,
            perturbed_attn=v23,
            rope_type=config.rope_type,
            rope_double_precision=True,
            timestep_scale_multiplier=1000,
            cross_attn_timestep_scale_multiplier=1000,
            ff_bias=config.ff_bias,
            audio_ff_bias=config.audio_ff_bias,
            use_prompt_adaln_single=config.use_prompt_adaln_single,
            use_keyframes_abs_pos_embedding=config.use_keyframes_abs_pos_embedding,
        )

    def name_of(self, name):
        return ".".join(SEGMENTS.get(part, part) for part in name.split("."))

    def may_lack(self, name):
        return self.ours.mode != "av"

    def __call__(self, video: Modality | None, audio: Modality | None):
        mode = self.ours.mode
        given = video if audio is None else audio
        batch = given.latent.shape[0]
        captions = 12 if self.ours.config.projects_captions else None
        if video is None:
            video = dummy(GRID.tokens, 4, captions or 16, video_positions(GRID, FPS), batch, given.sigma)
        if audio is None:
            shape = AudioLatentShape(AUDIO_STEPS)
            audio = dummy(AUDIO_STEPS, 128, captions or 8, audio_positions(shape), batch, given.sigma)
        arguments = {
            "hidden_states": video.latent,
            "audio_hidden_states": audio.latent,
            "encoder_hidden_states": video.context,
            "audio_encoder_hidden_states": audio.context,
            "timestep": video.token_timesteps * 1000,
            "audio_timestep": audio.token_timesteps * 1000,
            "sigma": video.sigma * 1000,
            "audio_sigma": audio.sigma * 1000,
            "encoder_attention_mask": video.context_mask,
            "audio_encoder_attention_mask": audio.context_mask,
            "num_frames": GRID.frames,
            "height": GRID.height,
            "width": GRID.width,
            "fps": FPS,
            "video_coords": video.positions if video.slots else None,  # else its own
            "audio_num_frames": AUDIO_STEPS,
            "isolate_modalities": mode != "av",
            "use_cross_timestep": True,
            "video_self_attention_mask": video.attention_mask,
            "video_keyframes_mask": keyframes(video),
            "return_dict": False,
        }
        out = functional_call(self.net, self.weights, (), arguments, strict=False)
        return (None if mode == "audio" else out[0]), (None if mode == "video" else out[1])


def keyframes(video: Modality) -> Tensor | None:
    """The mask [B, T, 1] of the tokens that stand for a single picture frame."""
    if video.single is None:
        return None
    mask = torch.zeros(*video.latent.shape[:2], 1)
    mask[:, video.single] = 1.0
    mask[:, mask.shape[1] - video.slots :] = 1.0
    return mask


def dummy(tokens: int, channels: int, width: int, positions: Tensor, batch: int, sigma: Tensor) -> Modality:
    """A modality of zeros."""
    return Modality(
        latent=torch.zeros(batch, tokens, channels),
        sigma=sigma,
        timesteps=sigma[:, None].expand(batch, tokens),
        positions=positions.expand(batch, -1, -1, -1),
        context=torch.zeros(batch, 3, width),
    )


def older_rule(self: LTXTransformer, own: Modality, other: Modality, levels: Levels) -> tuple[Levels, Levels]:
    """The rule of the oracles' releases: everything between the modalities follows the other one's sigma."""
    return (other.sigma, None), (other.sigma, None)


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Relative L2 distance."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))


def assert_close(ours: Tensor | None, theirs: Tensor | None, limit: float = 1e-5, what: str = "") -> None:
    assert (ours is None) == (theirs is None), what
    if ours is not None:
        found = distance(ours, theirs)
        assert found <= limit, f"{what}: relative distance {found:.3g} > {limit:g}"


def assert_same_gradients(layers: dict[str, LoRALinear], oracle: Oracle, limit: float = 1e-5) -> None:
    """Every A and B has the oracle's gradient; one that the oracle does not reach has none or zero."""
    assert oracle.leaves
    reached = 0
    for name, theirs in oracle.gradients().items():
        path, _, letter = name.rpartition(".")
        ours = getattr(layers[path], letter).grad
        if theirs is None or theirs.abs().max() == 0:
            assert ours is None or ours.abs().max() == 0, name
            continue
        reached += 1
        assert ours is not None, f"{name} has no gradient"
        assert_close(ours, theirs, limit, name)
    assert reached > len(oracle.leaves) // 2
