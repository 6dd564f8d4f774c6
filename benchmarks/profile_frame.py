"""Where the time of one frame goes, operation by operation, against what this processor could do at best.

    python benchmarks/profile_frame.py

ResNet-50, 480 x 480, p = 5, random weights, the segmenter of the streaming pair by OpenVINO in bfloat16; times are
OpenVINO's own, medians over the rounds. The floor is the network's arithmetic at the rate of a large matrix product.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from pdnet.devices import device_name
from pdnet.export.onnx import SEGMENTER, Form, export_streaming
from pdnet.files import write_json
from pdnet.model import ModelConfig, PDNet
from pdnet.model.streaming import ReferenceEncoder, Segmenter

SIZE, THREADS = 480, 2


def main() -> int:
    import openvino

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/profile-cpu.json"))
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    network = PDNet(ModelConfig()).eval()
    image = torch.randn(1, 3, SIZE, SIZE)
    with torch.inference_mode(), FlopCounterMode(display=False) as counted:
        key, value = ReferenceEncoder(network)(image)
        before = counted.get_total_flops()
        Segmenter(network)(image, key, value)
        flops = counted.get_total_flops() - before
    rate = best_rate()
    with tempfile.TemporaryDirectory() as folder:
        export_streaming(network, Path(folder), Form(SIZE, 18))
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": THREADS, "PERF_COUNT": True}
        hints["INFERENCE_PRECISION_HINT"] = "bf16"
        request = openvino.Core().compile_model(Path(folder) / SEGMENTER, "CPU", hints).create_infer_request()
    feeds = {"image": image.numpy(), "key": key.numpy(), "value": value.numpy()}
    frames, times = [], defaultdict(list)
    for turn in range(options.rounds + 3):
        started = time.perf_counter()
        request.infer(feeds)
        if turn >= 3:
            frames.append(1e3 * (time.perf_counter() - started))
            found: Counter[str] = Counter()
            for each in request.get_profiling_info():
                found[each.node_type] += each.real_time.total_seconds() * 1e3
            for kind, milliseconds in found.items():
                times[kind].append(milliseconds)
    rows = sorted(((kind, statistics.median(each)) for kind, each in times.items()), key=lambda row: -row[1])
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(torch.device("cpu")),
        "versions": {"torch": torch.__version__, "openvino": openvino.__version__},
        "model": {"backbone": "resnet50", "size": SIZE, "parts": 5, "references": 1},
        "frame_ms": {"median": statistics.median(frames), "least": min(frames)},
        "gflop": flops / 1e9,
        "best_bf16_tflops": rate / 1e12,
        "floor_ms": 1e3 * flops / rate,
        "operations_ms": {kind: round(ms, 3) for kind, ms in rows if ms >= 0.005},
    }
    write_json(options.out, facts)
    for name, value_ in facts["operations_ms"].items():
        print(f"{name:20} {value_:7.2f} ms")
    print(f"one frame {facts['frame_ms']['median']:.1f} ms, floor {facts['floor_ms']:.1f} ms", end=" ")
    print(f"({facts['gflop']:.1f} GFLOP at {facts['best_bf16_tflops']:.2f} TFLOP/s)")
    return 0


def best_rate(side: int = 2048, turns: int = 20) -> float:
    """Operations per second of a product of matrices in bfloat16, of the fastest of the turns."""
    a, b = (torch.randn(side, side, dtype=torch.bfloat16) for _ in range(2))
    least = float("inf")
    for _ in range(turns):
        started = time.perf_counter()
        a @ b
        least = min(least, time.perf_counter() - started)
    return float(2 * np.float64(side) ** 3 / least)


if __name__ == "__main__":
    sys.exit(main())
