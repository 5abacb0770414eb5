# ruff: noqa
"""Peer B: PyPI ltx-core LTXModel + peft.get_peft_model, set up as the official ltx-trainer does."""

import os, sys, time, warnings

T0 = time.perf_counter()
warnings.filterwarnings("ignore")
if os.environ.get("LTX_CORE_SRC"):  # a git checkout's packages/ltx-core/src instead of the installed one
    sys.path.insert(0, os.environ["LTX_CORE_SRC"])
from common import *  # noqa


def build(c, version="2.3", video_only=False, **kw):
    from ltx_core.model.transformer.model import LTXModel, LTXModelType
    from ltx_core.model.transformer.rope import LTXRopeType
    from ltx_core.model.transformer.text_projection import PixArtAlphaTextProjection

    v23 = version == "2.3"
    cc = c.get("caption_channels", 3840)
    cfg = dict(
        model_type=LTXModelType.VideoOnly if video_only else LTXModelType.AudioVideo,
        num_layers=c["layers"],
        num_attention_heads=c["heads"],
        attention_head_dim=c["head_dim"],
        cross_attention_dim=c["dim"],
        audio_num_attention_heads=c["heads"],
        audio_attention_head_dim=c["audio_head_dim"],
        audio_cross_attention_dim=c["audio_dim"],
        apply_gated_attention=v23,
        cross_attention_adaln=v23,
        rope_type=LTXRopeType.SPLIT,
        double_precision_rope=True,
        timestep_scale_multiplier=1000,
        av_ca_timestep_scale_multiplier=1000,
        caption_projection=None if v23 else PixArtAlphaTextProjection(cc, c["dim"]),
        audio_caption_projection=None if (v23 or video_only) else PixArtAlphaTextProjection(cc, c["audio_dim"]),
    )
    cfg.update(kw)
    return LTXModel(**cfg)


def positions(F, H, W, T, fps=FPS):
    """(1,3,F*H*W,2) seconds/pixels/pixels and (1,1,T,2) seconds, as the official trainer computes them"""
    from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier, get_pixel_coords
    from ltx_core.types import AudioLatentShape, SpatioTemporalScaleFactors, VideoLatentShape

    vp = VideoLatentPatchifier(patch_size=1)
    lc = vp.get_patch_grid_bounds(VideoLatentShape(batch=1, channels=128, frames=F, height=H, width=W), device="cpu")
    pv = get_pixel_coords(lc, SpatioTemporalScaleFactors.default(), causal_fix=True).float()
    pv[:, 0] = pv[:, 0] / fps
    pa = AudioPatchifier(patch_size=1).get_patch_grid_bounds(
        AudioLatentShape(batch=1, channels=8, frames=T, mel_bins=16), device="cpu"
    )
    return pv, pa


def main():
    def extra(p):
        p.add_argument(
            "--video-only-model", action="store_true", help="build LTXModelType.VideoOnly (no audio weights)"
        )
        p.add_argument("--scalar-timesteps", action="store_true", help="(B,1) timesteps instead of the trainer's (B,T)")

    args = parse_args("B-head" if os.environ.get("LTX_CORE_SRC") else "B-ltxcore", extra)
    bench = Bench(args)
    import torch
    from ltx_core.model.transformer.modality import Modality
    import ltx_core.model.transformer.model  # noqa: F401
    from peft import LoraConfig, get_peft_model

    bench.rss_imports = rss_now()

    base = build(bench.cfg, video_only=args.video_only_model and not bench.av)
    bench.fill(base)
    base.to(bench.dtype)
    base.requires_grad_(False)
    n_base = sum(p.numel() for p in base.parameters())
    model = get_peft_model(
        base,
        LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=0.0,
            init_lora_weights=True,
            target_modules=TARGETS_ALL if bench.av else TARGETS_VIDEO_RE,
        ),
    )
    lora = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 for _, p in lora)  # peft's autocast_adapter_dtype did it
    bench.fill_lora(lora)
    model.get_base_model().set_gradient_checkpointing(not args.no_ckpt)
    model.train()

    F, H, W = VIDEO_FHW

    def forward(s, data):
        sg = s["sigma"]
        pv, pa = positions(F, H, W, AUDIO_T)
        lat = bench.tokens_v(s["noisy_v"])
        m = None if args.no_mask else data["mask"]
        cdt = bench.dtype
        ts = lambda n: sg.view(-1, 1).expand(-1, 1 if args.scalar_timesteps else n)
        video = Modality(
            enabled=True,
            latent=lat,
            sigma=sg,
            timesteps=ts(lat.shape[1]),
            positions=pv,
            context=data["ctx_v"].to(cdt),
            context_mask=m,
        )
        audio = None
        if bench.av:
            al = bench.tokens_a(s["noisy_a"])
            audio = Modality(
                enabled=True,
                latent=al,
                sigma=sg,
                timesteps=ts(al.shape[1]),
                positions=pa,
                context=data["ctx_a"].to(cdt),
                context_mask=m,
            )
        return model(video=video, audio=audio, perturbations=None)

    bench.startup_s = time.perf_counter() - T0
    bench.run(
        forward,
        model.parameters(),
        total_params=n_base,
        lora_named=lora,
        extra=dict(
            variant=("video_only_model" if args.video_only_model and not bench.av else "")
            + (",scalar_timesteps" if args.scalar_timesteps else "")
        ),
    )


if __name__ == "__main__":
    main()
