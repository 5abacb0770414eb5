# ruff: noqa
"""Peer A: diffusers LTX2VideoTransformer3DModel + peft adapter (2.3-style configuration)."""

import time, warnings

T0 = time.perf_counter()
warnings.filterwarnings("ignore")
from common import *  # noqa


def config(c, version="2.3", **kw):
    v23 = version == "2.3"
    cfg = dict(
        in_channels=128,
        out_channels=128,
        num_layers=c["layers"],
        num_attention_heads=c["heads"],
        attention_head_dim=c["head_dim"],
        cross_attention_dim=c["dim"],
        audio_in_channels=128,
        audio_out_channels=128,
        audio_num_attention_heads=c["heads"],
        audio_attention_head_dim=c["audio_head_dim"],
        audio_cross_attention_dim=c["audio_dim"],
        gated_attn=v23,
        audio_gated_attn=v23,
        cross_attn_mod=v23,
        audio_cross_attn_mod=v23,
        use_prompt_embeddings=not v23,
        caption_channels=c.get("caption_channels", 3840),
        perturbed_attn=v23,
        rope_type="split",
        rope_double_precision=True,
        timestep_scale_multiplier=1000,
        cross_attn_timestep_scale_multiplier=1000,
    )
    cfg.update(kw)
    return cfg


def main():
    def extra(p):
        p.add_argument("--dummy-audio", type=int, default=1, help="video mode: audio tokens the class needs anyway")
        p.add_argument("--no-isolate", action="store_true", help="video mode: leave a2v/v2a on (ai-toolkit does)")
        p.add_argument("--token-timesteps", action="store_true", help="timestep per token instead of per sample")

    args = parse_args("A-diffusers", extra)
    bench = Bench(args)
    import torch
    from diffusers import LTX2VideoTransformer3DModel
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    bench.rss_imports = rss_now()

    model = LTX2VideoTransformer3DModel(**config(bench.cfg))
    bench.fill(model, from_diffusers_name)
    model.to(bench.dtype)
    model.requires_grad_(False)
    n_base = sum(p.numel() for p in model.parameters())
    model.add_adapter(
        LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            init_lora_weights=True,
            target_modules=TARGETS_ALL if bench.av else TARGETS_VIDEO_RE,
        )
    )
    cast_training_params(model, dtype=torch.float32)  # fp32 LoRA over the (maybe bf16) base
    lora = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    bench.fill_lora(lora)
    if not args.no_ckpt:
        model.enable_gradient_checkpointing()
    model.train()

    F, H, W = VIDEO_FHW
    cdt = bench.dtype

    def forward(s, data):
        b = 1
        ts = s["sigma"] * 1000.0  # this class wants it already scaled
        if bench.av:
            aud, ctx_a = bench.tokens_a(s["noisy_a"]), data["ctx_a"]
        else:
            aud = torch.zeros(b, args.dummy_audio, 128)
            ctx_a = torch.zeros(b, 1, bench.cfg["audio_dim"])
        n_a = aud.shape[1]
        m = None if args.no_mask else data["mask"]
        m_a = m if bench.av else None
        vts = ts.view(b, 1).expand(b, F * H * W) if args.token_timesteps else ts
        vp, ap = model(
            hidden_states=bench.tokens_v(s["noisy_v"]).to(cdt),
            audio_hidden_states=aud.to(cdt),
            encoder_hidden_states=data["ctx_v"].to(cdt),
            audio_encoder_hidden_states=ctx_a.to(cdt),
            timestep=vts,
            audio_timestep=ts,
            sigma=ts,
            audio_sigma=ts,
            encoder_attention_mask=m,
            audio_encoder_attention_mask=m_a,
            num_frames=F,
            height=H,
            width=W,
            fps=FPS,
            audio_num_frames=n_a,
            isolate_modalities=(not bench.av) and not args.no_isolate,
            use_cross_timestep=True,
            return_dict=False,
        )
        return vp, ap

    bench.startup_s = time.perf_counter() - T0
    bench.run(
        forward,
        model.parameters(),
        total_params=n_base,
        lora_named=lora,
        extra=dict(variant=f"dummy_audio={args.dummy_audio},isolate={not args.no_isolate}" if not bench.av else ""),
    )


if __name__ == "__main__":
    main()
