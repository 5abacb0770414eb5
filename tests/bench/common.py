# ruff: noqa
"""Shared pieces of the LTX-2 LoRA trainer benchmark (own code; no peer's code in here).

A peer script does:  args = parse_args("X"); bench = Bench(args); build its model; call
bench.fill(...) / bench.fill_lora(...); bench.run(forward_fn, params) -> prints ONE json line.

Everything random (base weights, LoRA A, data, noise, sigma) is a pure function of (canonical
name or step index, seed), so two peers that do the same arithmetic report the same losses.
Canonical parameter names are those of the original Lightricks checkpoint.
"""

import argparse, contextlib, json, os, re, statistics, sys, time, zlib

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

RANK, ALPHA, LR = 32, 32, 1e-4
FPS = 24.0
TEXT_TOKENS = 256

# heads of the audio and the video stream must be equal (the cross-modal rope reshapes the video
# side's angles with the video head count, and the cross attention uses the audio head count)
SIZES = {
    "tiny": dict(layers=2, heads=4, head_dim=64, audio_head_dim=32),  # 256 / 128, ~7M
    "small": dict(layers=4, heads=16, head_dim=64, audio_head_dim=32),  # 1024 / 512, ~124M
    "mid": dict(layers=8, heads=16, head_dim=128, audio_head_dim=64),  # 2048 / 1024, ~0.9B (by hand only)
}
VIDEO_FHW, AUDIO_T = (8, 16, 16), 64


def dims(size):
    s = SIZES[size]
    d, da = s["heads"] * s["head_dim"], s["heads"] * s["audio_head_dim"]
    return dict(s, dim=d, audio_dim=da)


# ------------------------------------------------------------------ process memory
def _status(field):
    with open("/proc/self/status") as f:
        for line in f:
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024.0
    return 0.0


def rss_now():
    return _status("VmRSS")


def rss_peak():
    return _status("VmHWM")


def rss_peak_reset():
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as f:
        f.write("5")


def cpu_busy_s():
    """busy seconds of the whole machine since boot (all cores), to notice neighbours and steal"""
    with open("/proc/stat") as f:
        v = [int(x) for x in f.readline().split()[1:9]]
    hz = os.sysconf("SC_CLK_TCK")
    return (sum(v) - v[3] - v[4]) / hz


# ------------------------------------------------------------------ command line
def parse_args(peer, extra=None, argv=None):
    p = argparse.ArgumentParser(prog=peer)
    p.add_argument("--size", choices=list(SIZES), default="tiny")
    p.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    p.add_argument("--mode", choices=["video", "av"], default="video")
    p.add_argument("--steps", type=int, default=5, help="total steps, the first 2 are warm-up")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--no-ckpt", action="store_true", help="switch gradient checkpointing off")
    p.add_argument("--no-mask", action="store_true", help="pass no text mask instead of an all-ones one")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument(
        "--no-memprof", action="store_true", help="skip the extra profiled step that measures live tensor bytes"
    )
    p.add_argument(
        "--in-turns", action="store_true", help="wait for a line of input before each step; says so by a line `waiting`"
    )
    if extra:
        extra(p)
    a = p.parse_args(argv)
    a.peer = peer
    return a


# ------------------------------------------------------------------ deterministic values
def _gen(torch, key, seed):
    return torch.Generator().manual_seed((zlib.crc32(key.encode()) + 0x9E3779B1 * (seed + 1)) & 0x7FFFFFFFFFFF)


def value_for(torch, name, shape, seed):
    g = _gen(torch, name, seed)
    r = torch.randn(shape, generator=g, dtype=torch.float32)
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return 1.0 + 0.1 * r
    if "scale_shift_table" in name:
        return 0.1 * r
    if name.endswith(".bias"):
        return 0.02 * r
    return r / (shape[-1] ** 0.5)


_SEG = {  # diffusers name segment -> original name segment
    "proj_in": "patchify_proj",
    "audio_proj_in": "audio_patchify_proj",
    "time_embed": "adaln_single",
    "audio_time_embed": "audio_adaln_single",
    "prompt_adaln": "prompt_adaln_single",
    "audio_prompt_adaln": "audio_prompt_adaln_single",
    "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
    "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
    "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
    "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
    "video_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_video",
    "audio_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_audio",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
}


def from_diffusers_name(n):
    return ".".join(_SEG.get(s, s) for s in n.split("."))


def lora_canon(n):
    """peft or kohya-style LoRA parameter name -> ('transformer_blocks.0.attn1.to_q', 'A'|'B')"""
    m = re.search(
        r"transformer_blocks[._](\d+)[._](.+?)[._](to_q|to_k|to_v|to_out[._]0)\.(lora_A|lora_B|lora_down|lora_up)", n
    )
    if not m:
        return None
    path = f"transformer_blocks.{m[1]}.{m[2].replace('.', '_')}.{m[3].replace('_0', '.0')}"
    return path, "A" if m[4] in ("lora_A", "lora_down") else "B"


TARGETS_ALL = ["to_q", "to_k", "to_v", "to_out.0"]
TARGETS_VIDEO_RE = r".*transformer_blocks\.\d+\.(attn1|attn2)\.(to_q|to_k|to_v|to_out\.0)"


# ------------------------------------------------------------------ the bench
class Bench:
    def __init__(self, args):
        self.t_start = time.perf_counter()
        import torch

        self.torch, self.args = torch, args
        torch.set_num_threads(args.threads)
        torch.manual_seed(args.seed)
        self.cfg = dims(args.size)
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
        self.av = args.mode == "av"

    # fixed data item
    def data(self):
        t, c, s = self.torch, self.cfg, self.args.seed
        F, H, W = VIDEO_FHW
        d = dict(
            video=t.randn((1, 128, F, H, W), generator=_gen(t, "data.video", s)),
            ctx_v=t.randn((1, TEXT_TOKENS, c["dim"]), generator=_gen(t, "data.ctx_v", s)),
            mask=t.ones((1, TEXT_TOKENS), dtype=t.int64),
        )
        if self.av:
            d["audio"] = t.randn((1, 8, AUDIO_T, 16), generator=_gen(t, "data.audio", s))
            d["ctx_a"] = t.randn((1, TEXT_TOKENS, c["audio_dim"]), generator=_gen(t, "data.ctx_a", s))
        return d

    def sample_step(self, data, step):
        t = self.torch
        g = _gen(t, f"step.{step}", self.args.seed)
        sigma = t.sigmoid(t.randn((1,), generator=g))
        n = t.randn(data["video"].shape, generator=g)
        out = dict(sigma=sigma, noisy_v=(1 - sigma) * data["video"] + sigma * n, target_v=n - data["video"])
        if self.av:
            m = t.randn(data["audio"].shape, generator=g)
            out.update(noisy_a=(1 - sigma) * data["audio"] + sigma * m, target_a=m - data["audio"])
        return out

    # weights
    def fill(self, module, to_canon=lambda n: n):
        t = self.torch
        with t.no_grad():
            for n, p in module.named_parameters():
                p.copy_(value_for(t, to_canon(n), tuple(p.shape), self.args.seed))
        return module

    def fill_lora(self, named_params):
        """A ~ U(-1/sqrt(in), 1/sqrt(in)) as peft and kohya do by default, but the same numbers for every peer."""
        t, n_lora = self.torch, 0
        with t.no_grad():
            for n, p in named_params:
                c = lora_canon(n)
                if c is None:
                    continue
                n_lora += 1
                if c[1] == "A":
                    r = t.rand(tuple(p.shape), generator=_gen(t, c[0] + ".lora_A", self.args.seed))
                    p.copy_((2 * r - 1) / p.shape[1] ** 0.5)
                else:
                    p.zero_()
        assert n_lora, "no LoRA parameter recognised"
        return n_lora

    def autocast(self):
        t = self.torch
        return t.autocast("cpu", dtype=t.bfloat16, enabled=self.args.dtype == "bf16")

    @staticmethod
    def tokens_v(x):
        return x.flatten(2).transpose(1, 2)  # b c f h w -> b (f h w) c

    @staticmethod
    def tokens_a(x):
        return x.transpose(1, 2).flatten(2)  # b c t f -> b t (c f)

    def _profiled(self, one, step):
        """peak bytes of live torch CPU tensors above what was live before the step (allocator-independent)"""
        from torch.profiler import profile, ProfilerActivity

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
            loss = one(step)
        ev = sorted(
            (e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()
        )
        cum = live = 0
        for e in ev:
            cum += e.nbytes()
            live = max(live, cum)
        return loss, live

    def run(self, forward, trainable, layout="tokens", total_params=0, lora_named=(), extra=None):
        """forward(step_inputs, data) -> (video_pred, audio_pred or None), in tokens or 5-D/4-D layout"""
        t, a = self.torch, self.args
        data = self.data()
        trainable = [p for p in trainable if p.requires_grad]
        n_train = sum(p.numel() for p in trainable)
        opt = t.optim.AdamW(trainable, lr=LR)
        rss_built = rss_now()
        peak_build = rss_peak()
        rss_peak_reset()
        times, cpus, losses = [], [], []
        busy0, own0 = cpu_busy_s(), time.process_time()
        pv = self.tokens_v if layout == "tokens" else (lambda x: x)
        pa = self.tokens_a if layout == "tokens" else (lambda x: x)

        def one(step):
            s = self.sample_step(data, step)
            with self.autocast():
                vp, ap = forward(s, data)
            loss = (vp.float() - pv(s["target_v"])).pow(2).mean()
            if self.av:
                loss = loss + (ap.float() - pa(s["target_a"])).pow(2).mean()
            loss.backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
            return loss.item()

        def wait():
            if a.in_turns:
                print("waiting", flush=True)
                if not sys.stdin.readline():
                    sys.exit("there is nobody to say when to go on")

        for step in range(a.steps):
            wait()
            t0, c0 = time.perf_counter(), time.process_time()
            losses.append(one(step))
            times.append(time.perf_counter() - t0)
            cpus.append(time.process_time() - c0)
        peak_steps = rss_peak()
        own = time.process_time() - own0
        other = max(0.0, cpu_busy_s() - busy0 - own)
        b2 = sum(float(p.detach().double().pow(2).sum()) for n, p in lora_named if (lora_canon(n) or "  ")[1] == "B")
        timed = times[2:] if len(times) > 2 else times
        rss_final_peak = max(peak_build, peak_steps)
        wait()
        live = (
            None if a.no_memprof else self._profiled(one, a.steps)[1]
        )  # after everything else: the profiler itself costs RSS
        rec = dict(
            peer=a.peer,
            size=a.size,
            dtype=a.dtype,
            mode=a.mode,
            steps=a.steps,
            seed=a.seed,
            median_step_s=round(statistics.median(timed), 4),
            min_step_s=round(min(timed), 4),
            step_s=[round(x, 3) for x in times],
            cpu_s_per_step=round(statistics.median(cpus[2:] or cpus), 3),
            other_cpu_frac=round(other / max(own, 1e-9), 3),
            step_live_peak_mb=None if live is None else round(live / 2**20, 1),
            peak_rss_mb=round(rss_final_peak, 1),
            peak_rss_steps_mb=round(peak_steps, 1),
            rss_built_mb=round(rss_built, 1),
            rss_imports_mb=round(getattr(self, "rss_imports", 0.0), 1),
            trainable_params=n_train,
            total_params=total_params,
            loss_first=losses[0],
            loss_last=losses[-1],
            lora_B_norm=b2**0.5,
            startup_s=round(getattr(self, "startup_s", 0.0), 2),
            ckpt=not a.no_ckpt,
        )
        rec.update(extra or {})
        print(json.dumps(rec), flush=True)
        return rec
