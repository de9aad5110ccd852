"""Milliseconds per image of every corruption, beside others that do the same in the same run.

    python benchmarks/corruptions.py                                     # both modes, 224 and 32 px, severity 3
    python benchmarks/corruptions.py --peer --encoder resnet50 --out corruptions.json
    python benchmarks/corruptions.py --device cuda --variants imagenet224 --severities 1 2 3 4 5 --modes fast
    python benchmarks/corruptions.py --small                             # two images, for a test

Beside Holdfast's two modes: `numpy`, the independent NumPy/SciPy/Pillow/Matplotlib reference of the tests; and with
`--peer` `imagecorruptions` 1.1.2, at 224 pixels, the only size it has severities for (its snow, frost and elastic
transformation are others than ImageNet-C's). All start from the same uint8 images, give uint8, and draw their own
random numbers in the timed part: Holdfast from keys that are new in every round. Both others work image by image, so
that a few images are enough.

On the CPU all times are CPU times, on one thread; on a GPU Holdfast's are wall times between two synchronisations, the
images lying there before and after. The least of several rounds is reported, since other programs can only add; all
contenders take turns in every round. The first call of Holdfast, which makes tables that are kept, is reported apart.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from holdfast import draws
from holdfast.corruptions import table
from holdfast.records import Corruption

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "corruptions"))
from corruption_references import photos, reference
from imagecorruptions_peer import OTHERS, PeerMissingError, peer, repaired
from independent_draws import by_numpy

ROOT = Path(__file__).resolve().parents[1]
Pictures = npt.NDArray[np.uint8]

SIDES = {"imagenet224": 224, "cifar32": 32, "tiny64": 64, "inception299": 299}
FEW = 4  # images for those that work image by image
DATA = Path(os.environ.get("HOLDFAST_DATA", ROOT.parent / "shared" / "data"))
HEAD = (
    f"{'':18} sev first call      fast reference     numpy imagecor.   "
    "largest difference, share of values, in each mode; share of corruption + forward"
)
TIMED = ("holdfast fast", "holdfast reference", "numpy", "imagecorruptions")
PACKAGES = ("torch", "numpy", "scipy", "pillow", "opencv-python-headless", "scikit-image", "imagecorruptions", "timm")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run, print a table, write JSON where asked; returns what is written."""
    options = _options(arguments)
    torch.set_num_threads(1)
    _one_thread_for_opencv()
    found: dict[str, Any] = {"machine": machine(options.device), "options": _said(options), "photos": {}}
    found |= {"encoder": encoder(options) if options.encoder else None, "rows": [], "sums": []}
    for variant in options.variants:
        images, found["photos"][variant] = pictures(options, SIDES[variant])
        print(f"\n{variant}: {found['photos'][variant]}\n{HEAD}")
        for severity in options.severities:
            rows = []
            for name in table.names():
                row = measured(images, Corruption(name=name, severity=severity, variant=variant), options)
                rows.append(row | _share(row, found["encoder"]))
                _print(rows[-1])
            found["rows"] += rows
            found["sums"].append(summed(rows))
            _print(found["sums"][-1])
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return found


class Contender(NamedTuple):
    """Something that corrupts a batch.

    Attributes:
        work: what is timed; takes the number of the round.
        images: how many images it corrupts then.
        device: where, and so by which clock.
    """

    work: Callable[[int], object]
    images: int
    device: str


def measured(images: Pictures, corruption: Corruption, options: argparse.Namespace) -> dict[str, Any]:
    """One corruption: milliseconds per image of each contender, and how far Holdfast is from the reference."""
    them = contenders(images, corruption, options)
    first = {who: seconds(it, 0) for who, it in them.items()}
    taken: dict[str, list[float]] = {who: [] for who in them}
    for turn in range(1, options.rounds + 1):
        for who, it in them.items():
            taken[who].append(seconds(it, turn) / it.images)
    return {
        "corruption": corruption.name,
        "variant": corruption.variant,
        "severity": corruption.severity,
        "ms": {who: round(1000 * min(times), 5) for who, times in taken.items()},
        "first_call_ms": {who: round(1000 * first[who], 2) for who in them if who.startswith("holdfast")},
        "parity": {m: parity(images[:FEW], in_mode(corruption, m), options.device) for m in options.modes},
        "same_as_peer": corruption.name not in OTHERS,
    }


def contenders(images: Pictures, corruption: Corruption, options: argparse.Namespace) -> dict[str, Contender]:
    """Who corrupts these images, by name: Holdfast in each mode, the reference and, where it can, the peer."""
    batch, few = torch.from_numpy(images).to(options.device), images[:FEW]
    rng = np.random.Generator(np.random.PCG64(corruption.severity))
    name, severity = corruption.name, corruption.severity
    parameters = parameters_of(corruption)

    def ours(asked: Corruption, turn: int) -> object:
        return table.corrupt(batch, asked, new_keys(turn, len(images)))

    found = {
        f"holdfast {mode}": Contender(partial(ours, in_mode(corruption, mode)), len(images), options.device)
        for mode in options.modes
    }
    found["numpy"] = Contender(lambda _: [by_numpy(name, image, parameters, rng) for image in few], len(few), "cpu")
    if options.peer and SIDES[corruption.variant] == 224:
        theirs = Contender(lambda _: [peer(name, image, severity) for image in few], len(few), "cpu")
        found["imagecorruptions"] = theirs
    return found


def seconds(contender: Contender, turn: int) -> float:
    """CPU time of this process; on a GPU wall time, all work before and after it done."""
    if contender.device == "cpu":
        began = time.process_time()
        contender.work(turn)
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    contender.work(turn)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def parity(images: Pictures, corruption: Corruption, device: str) -> dict[str, float]:
    """The largest difference from the reference given the same field, in levels; the share of values that differ."""
    keys, parameters = new_keys(0, len(images)), parameters_of(corruption)
    field = table.fields(corruption, keys, *images.shape[1:3])
    found = table.corrupt(torch.from_numpy(images).to(device), corruption, keys, field=field).cpu().numpy()
    rows = [None] * len(images) if field is None else (field.double() if field.is_floating_point() else field).numpy()
    expected = [reference(corruption.name, i, parameters, row) for i, row in zip(images, rows, strict=True)]
    difference = np.abs(found.astype(int) - np.stack(expected))
    return {"largest": int(difference.max()), "share": float((difference > 0).mean())}


def in_mode(corruption: Corruption, mode: str) -> Corruption:
    """The same in another arithmetic."""
    return msgspec.structs.replace(corruption, mode=mode)


def parameters_of(corruption: Corruption) -> tuple[float, ...]:
    """Those of its severity."""
    return table.entry(corruption.name).severities[corruption.variant][corruption.severity - 1]


def new_keys(turn: int, count: int) -> torch.Tensor:
    """Keys that no other round has."""
    return draws.keys([f"photo{i} round{turn}" for i in range(count)])


def encoder(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per image of a forward pass at 224 pixels, random weights, float32."""
    import timm

    net = timm.create_model(options.encoder, pretrained=False).eval().to(options.device)
    pixels = torch.rand(options.images, 3, 224, 224, device=options.device)
    forward = Contender(lambda _: net(pixels), options.images, options.device)
    with torch.inference_mode():
        least = min([seconds(forward, turn) for turn in range(options.rounds + 1)][1:])
    print(f"{options.encoder}: forward {1000 * least / options.images:.3f} ms per image at 224 px")
    return {"name": options.encoder, "ms": 1000 * least / options.images}


def pictures(options: argparse.Namespace, side: int) -> tuple[Pictures, str]:
    """uint8 [n, side, side, 3], and where they are from: the folder named, that of the real data, else drawn."""
    folder = options.photos or DATA / "imagenet_1000"
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        if options.photos:
            raise SystemExit(f"There are no images (.jpg, .jpeg, .png) in {folder}. Next: name another folder.")
        return photos(options.images, side, side), f"{options.images} drawn images"
    files = files[:: max(1, len(files) // options.images)][: options.images]
    return np.stack([_cropped(f, side) for f in files]), f"{len(files)} photos of {folder.name}, {side} px"


def _cropped(file: Path, side: int) -> Pictures:
    """The shorter side to 8 / 7 of the crop (256 for 224), then the middle."""
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    shrink = round(side * 8 / 7) / min(picture.size)
    width, height = (max(side, round(n * shrink)) for n in picture.size)
    left, top = (width - side) // 2, (height - side) // 2
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def machine(device: str) -> dict[str, Any]:
    """Processor, versions, date, commit: without them a time says nothing."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 2),
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "threads": 1,
        "clock": "CPU time" if device == "cpu" else "wall time",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "date": time.strftime("%Y-%m-%d"),
        "commit": _git("rev-parse", "--short=12", "HEAD") + (", with changes" if _git("status", "--porcelain") else ""),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _git(*words: str) -> str:
    try:
        asked = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return asked.stdout.strip()


def _one_thread_for_opencv() -> None:
    try:
        import cv2
    except ImportError:
        return
    cv2.setNumThreads(1)


def summed(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums of the times, the worst parity, the mean of the shares of a pass."""
    first, modes = rows[0], rows[0]["parity"]
    shares = [row["share_of_pass"] for row in rows if "share_of_pass" in row]
    return {
        "corruption": f"sum of {len(rows)}",
        **{key: first[key] for key in ("variant", "severity")},
        **{key: {who: sum(row[key][who] for row in rows) for who in first[key]} for key in ("ms", "first_call_ms")},
        "parity": {m: {of: max(row["parity"][m][of] for row in rows) for of in first["parity"][m]} for m in modes},
        **({"share_of_pass": sum(shares) / len(shares)} if shares else {}),
    }


def _share(row: dict[str, Any], forward: dict[str, Any] | None) -> dict[str, float]:
    """Of corruption and forward pass together, the corruption, in the first of the modes asked for."""
    if forward is None or SIDES[row["variant"]] != 224:
        return {}
    ours = next(iter(row["ms"].values()))
    return {"share_of_pass": ours / (ours + forward["ms"])}


def _print(row: dict[str, Any]) -> None:
    times = " ".join(f"{row['ms'][who]:9.3f}" if who in row["ms"] else f"{'-':>9}" for who in TIMED)
    first = next(iter(row["first_call_ms"].values()))
    apart = ", ".join(f"{p['largest']} {p['share']:.5f}" for p in row["parity"].values())
    share = f"   {row['share_of_pass']:.2%}" if "share_of_pass" in row else ""
    print(f"{row['corruption']:18} {row['severity']:3} {first:10.1f} {times}   {apart}{share}", flush=True)


def _said(options: argparse.Namespace) -> dict[str, Any]:
    """The options, without the folders of one machine."""
    return {key: value.name if isinstance(value, Path) else value for key, value in vars(options).items()}


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["imagenet224", "cifar32"], choices=table.variants())
    parser.add_argument("--severities", type=int, nargs="+", default=[3], choices=range(1, 6))
    parser.add_argument("--images", type=int, default=32, help="in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--photos", type=Path, help="folder of images; else imagenet_1000 of $HOLDFAST_DATA, else drawn"
    )
    parser.add_argument("--modes", nargs="+", default=list(table.MODES), choices=table.MODES)
    parser.add_argument("--peer", action="store_true", help="imagecorruptions too, at 224 px")
    parser.add_argument("--encoder", default="", help="a timm name: its forward pass at 224 px, for comparison")
    parser.add_argument("--small", action="store_true", help="two images, one round")
    parser.add_argument("--out", type=Path, help="write everything here as JSON")
    options = parser.parse_args(arguments)
    if options.small:
        options.images, options.rounds = 2, 1
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here. Next: --device cpu")
    if options.peer:
        try:
            repaired()
        except PeerMissingError as error:
            parser.error(str(error))
    return options


if __name__ == "__main__":
    main()
