"""Milliseconds per image of every corruption, beside an independent NumPy/SciPy/Pillow reference, in the same run.

    python benchmarks/corruptions.py                           # 32 images, both variants, severity 3
    python benchmarks/corruptions.py --small                   # a few images, for a test
    python benchmarks/corruptions.py --severities 1 2 3 4 5 --out corruptions.json

Both sides start from the same uint8 images and give uint8; both draw their own random field in the timed part. The
reference works image by image, as the published code does. CPU time of one thread, the least of several rounds, since
other programs can only add. The page also says how far the two lie apart when they are given the same field.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from holdfast import draws
from holdfast.corruptions import table
from holdfast.records import Corruption

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "corruptions"))
from corruption_references import photos, reference

SIDES = {"imagenet224": 224, "cifar32": 32}
TIMED = {"defocus_blur": "defocus_blur_by_fft"}  # where the plainest reference would be an unfairly slow one


def main(arguments: list[str] | None = None) -> list[dict[str, object]]:
    """Run, print a table, write JSON where asked; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="two images, one round")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--severities", type=int, nargs="+", default=[3])
    parser.add_argument("--out", type=Path, help="write the rows here as JSON")
    options = parser.parse_args(arguments)
    if options.small:
        options.images, options.rounds = 2, 1
    torch.set_num_threads(1)
    rows = []
    print(f"{'corruption':18} {'variant':12} sev   ours ms  reference ms   ratio   largest difference, share of values")
    for variant, side in SIDES.items():
        images = photos(options.images, side, side)
        for name in table.names():
            for severity in options.severities:
                row = _row(images, Corruption(name=name, severity=severity, variant=variant), options.rounds)
                rows.append(row)
                print(
                    f"{name:18} {variant:12} {severity:3} {row['ours_ms']:9.3f} {row['reference_ms']:13.3f} "
                    f"{row['reference_ms'] / row['ours_ms']:7.1f}   {row['largest']:3} {row['differing']:.5f}"
                )
    if options.out:
        options.out.write_text(json.dumps({"machine": _machine(), "images": options.images, "rows": rows}, indent=1))
    return rows


def _row(images: np.ndarray, corruption: Corruption, rounds: int) -> dict:
    batch, keys = torch.from_numpy(images), draws.keys([f"photo{i}" for i in range(len(images))])
    parameters = table.entry(corruption.name).severities[corruption.variant][corruption.severity - 1]
    field = table.fields(corruption, keys, *images.shape[1:3])
    rng = np.random.Generator(np.random.PCG64(1))

    def ours() -> torch.Tensor:
        return table.corrupt(batch, corruption, keys)

    def theirs() -> list[np.ndarray]:
        name = TIMED.get(corruption.name, corruption.name)
        return [reference(name, i, parameters, _drawn(name, rng, field)) for i in images]

    given = [None] * len(images) if field is None else field.numpy()
    expected = np.stack([reference(corruption.name, i, parameters, f) for i, f in zip(images, given, strict=True)])
    difference = np.abs(table.corrupt(batch, corruption, keys, field=field).numpy().astype(int) - expected)
    return {
        "corruption": corruption.name,
        "variant": corruption.variant,
        "severity": corruption.severity,
        "ours_ms": _milliseconds(ours, rounds) / len(images),
        "reference_ms": _milliseconds(theirs, rounds) / len(images),
        "largest": int(difference.max()),
        "differing": float((difference > 0).mean()),
    }


def _drawn(name: str, rng: np.random.Generator, field: torch.Tensor | None) -> np.ndarray | None:
    if field is None:
        return None
    return rng.standard_normal(field.shape[1:]) if name == "gaussian_noise" else rng.random(field.shape[1:])


def _milliseconds(work: Callable[[], object], rounds: int) -> float:
    work()
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return 1000 * min(taken)


def _machine() -> dict[str, str]:
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {"processor": platform.processor() or platform.machine(), **versions, "threads": "1"}


if __name__ == "__main__":
    main()
