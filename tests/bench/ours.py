"""This project's LTXTransformer + LoRALinear (2.3-style configuration)."""

import re
import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path

T0 = time.perf_counter()
warnings.filterwarnings("ignore")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

from common import ALPHA, AUDIO_T, FPS, RANK, TARGETS_VIDEO_RE, VIDEO_FHW, Bench, parse_args, rss_now  # noqa: E402


def main():
    def more(parser):
        parser.add_argument("--format", default="none", help="storage of the blocks' linears: fp8, int8, nf4 ...")
        parser.add_argument("--swap", type=int, default=0, help="blocks that come from RAM when their turn comes")
        parser.add_argument("--keep", type=int, default=0, help="blocks, the last ones, that are not recomputed")
        parser.add_argument("--act", action="store_true", help="inputs of recomputed blocks wait in RAM")
        parser.add_argument("--keep-text", action="store_true", help="keep keys and values of the text")
        parser.add_argument("--compile", action="store_true", help="torch.compile for norms, rotations, gates")
        parser.add_argument("--ff-chunk", type=int, default=0, help="tokens a time through a recomputed feed-forward")
        parser.add_argument("--matmul", action="store_true", help="multiply in 8 bits where the format can")

    args = parse_args("ours", more)
    bench = Bench(args)
    import torch

    from ltx2_train.lora.held import Held
    from ltx2_train.lora.layer import LoRALinear
    from ltx2_train.models.positions import audio_positions, video_positions
    from ltx2_train.models.transformer import LTXTransformer, Modality, TransformerConfig
    from ltx2_train.offload.activations import ActivationStore
    from ltx2_train.offload.blocks import BlockStreamer, spread
    from ltx2_train.quant.faster import set_matmul
    from ltx2_train.quant.formats import quantize_linear
    from ltx2_train.quant.settings import QuantSettings
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
    if args.format != "none":
        settings = QuantSettings(format=args.format)
        for name, module in list(model.named_modules()):
            if isinstance(module, torch.nn.Linear) and "transformer_blocks." in name and "to_gate" not in name:
                parent, leaf = name.rsplit(".", 1)
                stored = quantize_linear(module, args.format, settings)
                stored.compute_dtype = bench.dtype
                setattr(model.get_submodule(parent), leaf, stored)
        set_matmul(model, args.matmul)
    pattern = re.compile(TARGETS_VIDEO_RE if not bench.av else r".*transformer_blocks\..*\.(to_q|to_k|to_v|to_out\.0)")
    for name, module in list(model.named_modules()):
        if hasattr(module, "in_features") and pattern.fullmatch(name):
            parent, leaf = name.rsplit(".", 1)
            setattr(model.get_submodule(parent), leaf, LoRALinear(module, RANK, ALPHA))
    lora = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    bench.fill_lora(lora)
    model.set_recompute(0 if args.no_ckpt else c["layers"] - args.keep)
    streamer = None
    if args.swap:
        blocks = model.transformer_blocks
        streamer = model.residence = BlockStreamer(blocks, spread(len(blocks), args.swap), "cpu")
    if args.act:
        model.activations = ActivationStore("cpu")
    model.keep_text_kv = args.keep_text
    model.set_ff_chunk(args.ff_chunk)
    note = model.set_compile(True) if args.compile else None

    layers = [module for module in model.modules() if isinstance(module, LoRALinear)]
    held = None if bench.dtype == torch.float32 else Held(layers, bench.dtype)
    of_this_step = ExitStack()  # as the loop does: copies of the factors, fresh for each step

    grid = LatentShape(*VIDEO_FHW)
    pv, pa = video_positions(grid, FPS), audio_positions(AudioLatentShape(AUDIO_T))

    def forward(s, data):
        of_this_step.close()
        if held is not None:
            of_this_step.enter_context(held.fresh())
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
    counts = {} if streamer is None else {"streamed_mb": round(streamer.slot_bytes / 2**20, 1)}
    before = 0 if streamer is None else streamer.copies
    row = bench.run(forward, model.parameters(), total_params=n_base, lora_named=lora, extra={**counts, "note": note})
    if streamer is not None:
        steps = args.steps + (0 if args.no_memprof else 1)
        print(f"copies a step: {(streamer.copies - before) / steps:g} for {args.swap} blocks", file=sys.stderr)
    return row


if __name__ == "__main__":
    main()
