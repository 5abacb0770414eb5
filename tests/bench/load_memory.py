"""How much RAM loading takes beyond the model itself. Prints one line of JSON.

    python tests/bench/load_memory.py [--gigabytes 2] [--folder DIR] [--dtype bf16] [--mode av]

Writes a bf16 LTX-2.3 checkpoint of about that size (real shapes of a block, as many blocks as fit), loads it in a fresh
process, and compares the growth of the peak resident memory to the size of what was loaded. The file is removed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def write_checkpoint(path: Path, gigabytes: float) -> int:
    """A sparse file would not be read from the disk, so the data are written, one tensor at a time."""
    from ltx2_train.models.transformer import LTXTransformer, TransformerConfig
    from ltx2_train.weights import keys
    from ltx2_train.weights.published import published_config

    config = published_config("2.3")
    for layers in range(1, 49):
        config["transformer"]["num_layers"] = layers
        with torch.device("meta"):
            model = LTXTransformer(TransformerConfig.from_checkpoint(config["transformer"]), "av")
        size = sum(parameter.numel() for parameter in model.parameters()) * 2
        if size >= gigabytes * 1e9:
            break
    header, end = {"__metadata__": {"config": json.dumps(config), "model_version": "2.3.0"}}, 0
    shapes = {keys.TRANSFORMER + name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + shape.numel() * 2]}
        end += shape.numel() * 2
    text = json.dumps(header).encode()
    chunk = torch.randn(1 << 22).bfloat16().view(torch.uint8).numpy().tobytes()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        left = end
        while left:
            file.write(chunk[: min(left, len(chunk))])
            left -= min(left, len(chunk))
    return layers


def resident(key: str) -> int:
    """Bytes; `key` is VmRSS (now) or VmHWM (peak)."""
    if sys.platform.startswith("linux"):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
    if sys.platform == "win32":
        import psutil

        memory = psutil.Process().memory_info()
        return memory.peak_wset if key == "VmHWM" else memory.rss
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def load(path: Path, dtype: str, mode: str) -> dict[str, float]:
    """In the fresh process: peak above the start, in bytes."""
    from ltx2_train.weights.load import load_transformer

    before, started = resident("VmRSS"), time.perf_counter()
    model = load_transformer(path, mode, DTYPES[dtype])
    seconds = time.perf_counter() - started
    return {
        "peak": resident("VmHWM") - before,
        "loaded": sum(parameter.nbytes for parameter in model.parameters()),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--mode", choices=("video", "audio", "av"), default="av")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(args.load, args.dtype, args.mode)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "ltx-2.3-bench.safetensors"
        blocks = write_checkpoint(path, args.gigabytes)
        size = path.stat().st_size
        command = [sys.executable, __file__, "--load", str(path), "--dtype", args.dtype, "--mode", args.mode]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    print(
        json.dumps(
            {
                "bench": "load_memory",
                "mode": args.mode,
                "dtype": args.dtype,
                "blocks": blocks,
                "file_gb": round(size / 1e9, 3),
                "loaded_gb": round(found["loaded"] / 1e9, 3),
                "peak_gb": round(found["peak"] / 1e9, 3),
                "peak_over_loaded": round(found["peak"] / found["loaded"], 3),
                "peak_over_file": round(found["peak"] / size, 3),
                "seconds": round(found["seconds"], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
