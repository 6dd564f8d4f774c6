"""Which device and number format to compute with, and what to call them in a record."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from pdnet.errors import ConfigError, UnavailableError


def pick_device(name: str) -> torch.device:
    """The device of a name (auto, cpu, cuda, cuda:<index>); `auto` is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: the name is none of these.
        UnavailableError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unknown = ConfigError(f"device: '{name}', expected auto, cpu, cuda or cuda:<index>")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown from None
    if device.type not in ("cpu", "cuda"):
        raise unknown
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnavailableError(f"device: '{name}' is not here; torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """`fp32` or `bf16` as a dtype; `auto` is bf16 where the device multiplies it in hardware."""
    if precision == "auto":
        on_gpu = device.type == "cuda"
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else _has_amx()
        precision = "bf16" if fast else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def device_name(device: torch.device) -> str:
    """What a person calls the device: `NVIDIA H200`, `Intel Xeon ..., 2 threads`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                model = " ".join(line.split(":", 1)[1].split())
                break
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' if threads != 1 else ''}"


def _has_amx() -> bool:
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe and probe())
