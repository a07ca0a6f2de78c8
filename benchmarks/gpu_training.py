"""What a training step of `dover` and `vjepa2` costs at full size on this machine's GPU, with random weights.

Needs torch, transformers and timm; no data, no download. Each row is a process of its own, so that one row's memory is
not another's and a row that runs out of memory says so and leaves the others alone.

    python benchmarks/gpu_training.py                 # both models, all variants
    python benchmarks/gpu_training.py --only dover --steps 20
    python benchmarks/gpu_training.py --small         # tiny sizes, on a CPU: does it run?
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from qualivision.models.dover import DoverEncoder
from qualivision.models.fusion import ConcatenationFusion, Match, QualityAwareFusion
from qualivision.models.quality import Judge, MosHead, QualityModel
from qualivision.models.vjepa2 import Vjepa2Encoder
from qualivision.models.vjepa2_stem import Vjepa2Stem
from qualivision.training.losses import correlation_loss, ranking_loss, regression_loss

TEXT_WIDTH = 1024
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "4090": 165, "A10": 125, "V100": 125}
"""Dense bf16 (V100: fp16) tensor throughput as the makers give it, by a part of the card's name."""
VIT_GIANT = {
    "patch_size": 16,
    "crop_size": 384,
    "tubelet_size": 2,
    "in_chans": 3,
    "hidden_size": 1408,
    "num_attention_heads": 22,
    "num_hidden_layers": 40,
    "mlp_ratio": 4.363636363636363,
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
VARIANTS = {
    "dover": ("plain", "checkpointing", "checkpointing+compile"),
    "vjepa2": ("plain", "checkpointing", "stem cache", "stem cache+checkpointing", "stem cache+checkpointing+compile"),
}


def main() -> int:
    """Run the table, or one row of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(VARIANTS), help="one model")
    parser.add_argument("--steps", type=int, default=8, help="measured steps a row, after two that are not")
    parser.add_argument("--batch", type=int, help="clips a step; by default 4 for dover and 2 for vjepa2")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--row", nargs=2, metavar=("MODEL", "VARIANT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(*args.row, args)))
        return 0
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{device}, torch {torch.__version__}, bf16, random weights\n")
    head = {"batch": 6, "s/step": 9, "clips/s": 9, "peak GB": 9, "TFLOP/clip": 12, "of peak": 9}
    print(f"{'model':8}{'variant':36}" + "".join(f"{name:>{width}}" for name, width in head.items()))
    rows = []
    for model in [args.only] if args.only else VARIANTS:
        for variant in VARIANTS[model]:
            row = in_a_process(model, variant, sys.argv[1:])
            rows.append(row)
            print(line(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"device": device, "torch": torch.__version__, "rows": rows}, indent=1))
    return int(all("error" in row for row in rows))


def in_a_process(model: str, variant: str, arguments: list[str]) -> dict[str, Any]:
    """One row, measured in a fresh process."""
    command = [sys.executable, __file__, *arguments, "--row", model, variant]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode == 0:
        row: dict[str, Any] = json.loads(found.stdout.strip().splitlines()[-1])
        return row
    last = (found.stderr.strip() or f"exit code {found.returncode}").splitlines()[-1]
    return {"model": model, "variant": variant, "error": last}


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    start = f"{row['model']:8}{row['variant']:36}"
    if "error" in row:
        return f"{start}{row['error'][:110]}"
    share = "" if row["share_of_peak"] is None else f"{row['share_of_peak']:.0%}"
    return (
        f"{start}{row['batch']:6}{row['seconds_per_step']:9.3f}{row['clips_per_second']:9.2f}{row['peak_gb']:9.2f}"
        f"{row['tflop_per_clip']:12.1f}{share:>9}"
    )


def measure(model: str, variant: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train for some steps on made-up clips."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = args.batch or {"dover": 4, "vjepa2": 2}[model]
    options = variant.split("+")
    network, activations = (dover if model == "dover" else vjepa2)(options, batch, small=args.small, device=device)
    network.to(device).train()
    step = training_step(network, activations, batch, device)
    flops = count(step)
    if "compile" in options:
        network.encoder.see = torch.compile(network.encoder.see)
    for _ in range(2):
        step()
    wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    for _ in range(args.steps):
        step()
    wait(device)
    seconds = (time.perf_counter() - started) / args.steps
    return {
        "model": model,
        "variant": variant,
        "batch": batch,
        "seconds_per_step": seconds,
        "clips_per_second": batch / seconds,
        "peak_gb": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0,
        "tflop_per_clip": flops / batch / 1e12,
        "share_of_peak": share_of_peak(flops / seconds),
    }


def dover(options: list[str], batch: int, *, small: bool, device: torch.device) -> tuple[QualityModel, dict[str, Any]]:
    """The model with random weights, and a batch of frames."""
    depths, dims = ((1, 1, 2, 1), (8, 16, 32, 64)) if small else ((3, 3, 9, 3), (96, 192, 384, 768))
    frames, side = (8, 64) if small else (64, 640)
    encoder = DoverEncoder(depths, dims, width=256, checkpointing="checkpointing" in options)
    fusion = QualityAwareFusion(256, TEXT_WIDTH, 0.1)
    return whole(encoder, fusion), made_up_frames(batch, frames, side, device)


def vjepa2(options: list[str], batch: int, *, small: bool, device: torch.device) -> tuple[QualityModel, dict[str, Any]]:
    """The model with random weights, and a batch of frames, or of what the frozen layers make of them."""
    tiny = {"hidden_size": 48, "num_attention_heads": 2, "num_hidden_layers": 4, "crop_size": 64}
    config = VIT_GIANT | (tiny if small else {})
    frames, side = (8, 64) if small else (64, 384)
    cached = "stem cache" in options
    stem = None
    if not cached:
        stem = random_values(Vjepa2Stem(config, 0.85).to_empty(device=device))
        for parameter in stem.parameters():
            if parameter.ndim > 1:  # as `load_stem` has them
                parameter.data = parameter.data.to(torch.bfloat16)
    encoder = Vjepa2Encoder(
        config, 256, dropout=0.1, cache_stem=cached, checkpointing="checkpointing" in options, stem=stem
    )
    random_values(encoder.backbone)
    model = whole(encoder, ConcatenationFusion(256, TEXT_WIDTH, 0.1))
    if not cached:
        return model, made_up_frames(batch, frames, side, device)
    grid = frames // config["tubelet_size"], side // config["patch_size"], side // config["patch_size"]
    tokens = grid[0] * grid[1] * grid[2]
    hidden = torch.randn(batch, tokens, config["hidden_size"], device=device, dtype=torch.bfloat16)
    return model, {"hidden": hidden, "grid": torch.tensor(grid).expand(batch, 3)}


def whole(encoder: Any, fusion: Any) -> QualityModel:
    """A model around an encoder."""
    match = Match(encoder.content_width, TEXT_WIDTH, 0.1)
    return QualityModel([Judge(encoder, fusion, match, MosHead(256, 0.1))], TEXT_WIDTH)


def made_up_frames(batch: int, frames: int, side: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Noise, as the frame cache holds clips."""
    return {"frames": torch.randint(0, 256, (batch, frames, side, side, 3), dtype=torch.uint8, device=device)}


def random_values(module: torch.nn.Module) -> Any:
    """Small random weights: what a step costs does not depend on them."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.02)
    return module


def training_step(network: QualityModel, activations: dict[str, torch.Tensor], batch: int, device: torch.device) -> Any:
    """Forward, backward and AdamW, in bf16."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    text = torch.nn.functional.normalize(torch.randn(batch, TEXT_WIDTH, device=device), dim=1)
    rated = 1 + 4 * torch.rand(batch, 5, device=device)
    judge = network.judges[0]

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            seen = judge.see(activations)
            aspects, fused = judge.judge(seen, text)
            found = torch.cat((aspects, judge.head.overall(aspects, fused.weights).unsqueeze(1)), 1).float()
            pairs = judge.alignment_of_all_pairs(seen, text).float()
        loss = regression_loss(found, rated) + ranking_loss(found, rated) + correlation_loss(found, rated)
        loss = loss + (pairs - rated[:, 1:2]).square().mean()
        loss = loss + judge.head.fault_losses(fused).float().square().mean()
        for score in seen.auxiliary.values():
            loss = loss + (score.float() - rated[:, 0]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def count(step: Any) -> int:
    """Floating point operations of a step, forward and backward; what checkpointing computes again counts too."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def share_of_peak(flops_per_second: float) -> float | None:
    """Of the card's bf16 throughput; None for a card that is not in the table, or a CPU."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    peak = next((value for part, value in PEAK_TFLOPS.items() if part in name), None)
    return None if peak is None else flops_per_second / (peak * 1e12)


def wait(device: torch.device) -> None:
    """Until the GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    raise SystemExit(main())
