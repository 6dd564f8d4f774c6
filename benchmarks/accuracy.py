"""J&F of a trained network through every backend and precision of this machine, and what differs from torch in fp32.

    python benchmarks/accuracy.py             # of build/, after `make demo`

The folder of `pdnet export onnx` needs fp16/ and int8/ for those: `export: {precisions: [fp16, int8]}`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import torch

from pdnet import __version__
from pdnet.config import load_config
from pdnet.data.index import index_clips
from pdnet.devices import device_name
from pdnet.errors import PDNetError
from pdnet.files import write_json
from pdnet.inference.backends import open_backend
from pdnet.steps import parity

WAYS = {
    "torch": ("fp32", "bf16"),
    "onnxruntime": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "bf16", "fp16", "int8"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--model", type=Path, default=Path("build/train/model.safetensors"))
    parser.add_argument("--export", type=Path, default=Path("build/export"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/accuracy-cpu.json"))
    options = parser.parse_args()
    config = load_config(options.params)
    frames = index_clips(Path(config.data.videos), resolution=config.data.resolution, splits=("val",))
    first: parity.Backend | None = None
    rows, left_out = [], {}
    for name, precisions in WAYS.items():
        for precision in precisions:
            try:
                place = options.model if name == "torch" else options.export
                backend = open_backend(place, name=name, device="cpu", precision=precision)
            except PDNetError as error:
                left_out[f"{name}, {precision}"] = str(error)
                continue
            first = first or backend
            way = [parity.Case(backend.size, 1, 1)]
            compared = parity.compare(first, backend, frames, count=32, cases=way, file=backend.name)
            jf = parity.score(backend, frames, config, label=backend.name)
            figures = {figure: compared[0][figure] for figure in parity.AGREEMENT}
            rows.append({"backend": backend.name, "jf_mean": jf, **figures})
    table = pd.DataFrame(rows)
    table["points"] = 100 * (table["jf_mean"] - table["jf_mean"].iloc[0])
    print(table.to_string(index=False))
    write_json(
        options.out,
        {
            "command": shlex.join(["python", *sys.argv]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "pdnet": __version__,
            "torch": torch.__version__,
            "device": device_name(torch.device("cpu")),
            "data": {"clips": int(frames["clip"].nunique()), "frames": len(frames)},
            "model": {"backbone": config.model.backbone, "size": config.data.size, "parts": config.model.parts},
            "rows": table.to_dict("records"),
            "not_measured": left_out,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
