"""The README's example of the exported graphs, word for word, where there is neither pdnet nor torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_profile import SIZE

from pdnet.data.io import read_image
from pdnet.inference.session import PortraitSession
from pdnet.inference.torch_backend import TorchBackend
from pdnet.weights import load_model

README = Path(__file__).parents[2] / "README.md"
BARE = "import sys\nsys.modules.update(dict.fromkeys(['pdnet', 'torch', 'torchvision']))\n"


def test_the_example_gives_the_mask_of_the_network(finished: dict[str, Path], tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.+?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    clip = sorted((finished["videos"] / "Keyframes" / "480p" / "talk" / "c").glob("*.jpg"))
    for name, path in (("first.jpg", clip[0]), ("frame.jpg", clip[3])):
        (tmp_path / name).write_bytes(path.read_bytes())
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "export").symlink_to(finished["export"])
    done = subprocess.run(
        [sys.executable, "-c", BARE + example], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    network = load_model(finished["train"] / "model.safetensors")
    session = PortraitSession(TorchBackend(network, size=SIZE), reference=read_image(clip[0]))
    wanted = session.step(read_image(clip[3])).probability >= 0.5
    found = np.asarray(Image.open(tmp_path / "mask.png"))
    assert found.shape == wanted.shape
    assert 0.02 < wanted.mean() < 0.98
    assert (found == wanted).mean() > 0.97, "but for the outline: a mask is enlarged here, a probability there"
