"""This project's LTXTransformer + LoRALinear (2.3-style configuration)."""

import re
import sys
import time
import warnings
from pathlib import Path

T0 = time.perf_counter()
warnings.filterwarnings("ignore")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

from common import ALPHA, AUDIO_T, FPS, RANK, TARGETS_VIDEO_RE, VIDEO_FHW, Bench, parse_args, rss_now  # noqa: E402


def main():
    args = parse_args("ours")
    bench = Bench(args)
    import torch

    from ltx2_train.lora.layer import LoRALinear
    from ltx2_train.models.positions import audio_positions, video_positions
    from ltx2_train.models.transformer import LTXTransformer, Modality, TransformerConfig
    from ltx2_train.shapes import AudioLatentShape, LatentShape

    bench.rss_imports = rss_now()
    c = bench.cfg
    config = TransformerConfig(
        num_layers=c["layers"],
        num_attention_heads=c["heads"],
        attention_head_dim=c["head_dim"],
        cross_attention_dim=c["dim"],
        audio_num_attention_heads=c["heads"],
        audio_attention_head_dim=c["audio_head_dim"],
        audio_cross_attention_dim=c["audio_dim"],
    )
    model = LTXTransformer(config, "av" if bench.av else "video")
    bench.fill(model)
    model.to(bench.dtype).requires_grad_(False)
    n_base = sum(p.numel() for p in model.parameters())
    pattern = re.compile(TARGETS_VIDEO_RE if not bench.av else r".*transformer_blocks\..*\.(to_q|to_k|to_v|to_out\.0)")
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and pattern.fullmatch(name):
            parent, leaf = name.rsplit(".", 1)
            setattr(model.get_submodule(parent), leaf, LoRALinear(module, RANK, ALPHA))
    lora = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    bench.fill_lora(lora)
    model.set_recompute(0 if args.no_ckpt else None)

    grid = LatentShape(*VIDEO_FHW)
    pv, pa = video_positions(grid, FPS), audio_positions(AudioLatentShape(AUDIO_T))

    def forward(s, data):
        mask = None if args.no_mask else data["mask"]
        video = Modality(bench.tokens_v(s["noisy_v"]), s["sigma"], None, pv, data["ctx_v"], mask)
        audio = None
        if bench.av:
            audio = Modality(bench.tokens_a(s["noisy_a"]), s["sigma"], None, pa, data["ctx_a"], mask)
        # precision is the model's own affair: no autocast, here as in training
        with torch.autocast("cpu", enabled=False):
            out = model(video, audio)
        return out.video, out.audio

    bench.startup_s = time.perf_counter() - T0
    bench.run(forward, model.parameters(), total_params=n_base, lora_named=lora)


if __name__ == "__main__":
    main()
