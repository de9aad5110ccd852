"""A linear head on frozen features (SLF): fitted on cached vectors, while nothing of the encoder may change.

The protocol of Zhang et al., Colorful Image Colorization, ECCV 2016, as self-supervised work uses it since, with
features computed once, without augmentation, and standardised before the fit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from holdfast import disk, draws
from holdfast.configs import ProbeConfig
from holdfast.data.batches import Source, require_labels
from holdfast.data.sources import images_for, open_source
from holdfast.devices import device_of
from holdfast.errors import DataError, TrustError
from holdfast.models.checkpoint import load
from holdfast.models.encoder import Encoder
from holdfast.progress import Say, say
from holdfast.records import Model
from holdfast.tasks.features import check_unchanged, extract
from holdfast.training import dense_probe, resume
from holdfast.training.probing import HEAD, REPORT, check_fields, folder_for
from holdfast.training.schedule import learning_rate

PASS, PEAK = 256, 1e-2
"""Images per pass of the encoder and peak learning rate, where the config leaves them open."""
_BATCH = 256


def fit_linear(  # parameters: those of an optimiser, as callers have them
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    epochs: int = 100,
    lr: float = 1e-2,
    weight_decay: float = 1e-4,
    seed: int = 0,
) -> nn.Linear:
    """Multinomial logistic regression on features standardised per dimension: AdamW in batches of 256, cosine to zero.

    The standardisation is folded into the head, which therefore takes the features as they are. It starts at zero and
    its order is drawn by key: the same on every call.

    Args:
        features: float32 [n, d].
        labels: int64 [n] in 0..classes-1.
        classes: rows of the head.
        epochs: passes over the features.
        lr: peak learning rate, reached at once.
        weight_decay: of the weight, decoupled (Loshchilov and Hutter, ICLR 2019).
        seed: of the order.

    Returns:
        A head [b, d] -> [b, classes] on the device of the features, without gradient.

    Raises:
        DataError: no image, or labels outside the classes.
        TrustError: features or head are not finite.
    """
    if not len(features) or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        span = f" with labels in {int(labels.min())}..{int(labels.max())}" if len(labels) else ""
        raise DataError(
            f"There are {len(features)} features{span}.",
            asked=f"A head that tells {classes} classes apart was to be fitted.",
            next=f"Give images, each with a label from 0 to {classes - 1}.",
        )
    mean, std = features.mean(0), features.std(0, correction=0)
    std = std.where(std > 1e-6 * (1 + mean.abs()), torch.inf)  # a constant dimension says nothing: it gets no weight
    x, y = (features - mean) / std, labels.to(features.device)
    weight, bias = torch.zeros_like(x[:1]).repeat(classes, 1), x.new_zeros(classes)
    groups = [{"params": [weight], "weight_decay": weight_decay}, {"params": [bias], "weight_decay": 0.0}]
    with torch.enable_grad():
        optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
        _descend(optimizer, (weight.requires_grad_(), bias.requires_grad_()), (x, y), epochs=epochs, lr=lr, seed=seed)
    with torch.no_grad():
        folded = weight / std
        head = _linear(folded, bias - folded @ mean)
    if not all(bool(torch.isfinite(p).all()) for p in head.parameters()):
        raise TrustError("The head that was fitted is not finite.", next="Look for NaN in the encoder's features.")
    return head


def probe(config: ProbeConfig, *, say: Say = say) -> Path:
    """Fit a head on a frozen encoder and measure it; `dense_probe` does it where every pixel is answered for.

    Args:
        config: encoder, images, task.
        say: is told what happens, a line at a time.

    Returns:
        The folder: `head.safetensors` ("weight" [k, d], "bias" [k]), `probe.json`, `run.yaml`.

    Raises:
        ConfigError, DataError, CheckpointError: what was typed does not fit.
        ConflictError: the folder was made with another config.
        TrustError: a parameter or buffer of the encoder changed; nothing is written.
    """
    if config.task != "classification":
        return dense_probe.probe(config, say=say)
    check_fields(config)
    out = folder_for(config)
    resume.refuse_other(out, config, replace=config.replace)
    device = device_of(config.device)
    record = Model(spec=config.encoder, arch=config.arch, options=config.options, mean=config.mean, std=config.std)
    encoder = load(record, device=device)
    train, test = (
        open_source(images_for(config, encoder.geometry, split=split, default=default))
        for split, default in ((config.split, "train"), (config.test_split, "test"))
    )
    _check_labels(train, test)
    digest = encoder.digest()
    head, found = _measured(encoder, (train, test), config)
    check_unchanged(encoder, digest)
    resume.claim(out, config, (HEAD, REPORT))
    weights = {name: p.detach().cpu().contiguous() for name, p in head.named_parameters()}
    disk.write(out / HEAD, safetensors(weights, {"level": config.level, "digest_of_encoder": digest}))
    about = {"encoder": config.encoder, "digest_of_encoder": digest, "task": config.task, "level": config.level}
    disk.write(out / REPORT, json.dumps({**about, "classes": train.classes, **found}, indent=1) + "\n")
    say(f"accuracy {found['test']['accuracy']:.1%} of {len(test):,} images: {out / REPORT}")
    return out


def _measured(
    encoder: Encoder, sources: tuple[Source, Source], config: ProbeConfig
) -> tuple[nn.Linear, dict[str, dict[str, Any]]]:
    """The head, and its accuracy on the images that it was fitted on and on the others."""
    vectors = [extract(encoder, source, level=config.level, chunk=config.batch or PASS).vectors for source in sources]
    labels = [torch.tensor(require_labels(source)) for source in sources]
    head = fit_linear(
        vectors[0],
        labels[0],
        classes=len(sources[0].classes),
        epochs=config.epochs,
        lr=config.lr or PEAK,
        weight_decay=config.weight_decay,
        seed=config.seed,
    )
    return head, {
        name: {"images": len(source), "accuracy": _accuracy(head, x, y), "digest": source.data.digest_of_images}
        for name, source, x, y in zip(("train", "test"), sources, vectors, labels)
    }


def _descend(
    optimizer: torch.optim.Optimizer,
    head: tuple[Tensor, Tensor],
    data: tuple[Tensor, Tensor],
    *,
    epochs: int,
    lr: float,
    seed: int,
) -> None:
    (weight, bias), (x, y) = head, data
    per_epoch = -(-len(x) // _BATCH)
    for epoch in range(epochs):
        order = draws.permutation(len(x), seed, "probe", epoch).to(x.device)
        for place, chosen in enumerate(order.tensor_split(per_epoch)):
            for group in optimizer.param_groups:
                step = epoch * per_epoch + place
                group["lr"] = learning_rate(step, total=epochs * per_epoch, warmup=0, peak=lr)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(cross_entropy(x[chosen] @ weight.T + bias, y[chosen]))
            optimizer.step()


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    head = nn.Linear(weight.shape[1], weight.shape[0], device="meta").to_empty(device=weight.device)
    head.weight.copy_(weight)
    head.bias.copy_(bias)
    return head.requires_grad_(False)


def _accuracy(head: nn.Linear, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return int((head(x).argmax(1) == y).sum()) / len(y)


def _check_labels(train: Source, test: Source) -> None:
    require_labels(train)
    require_labels(test)
    if train.classes != test.classes:
        raise DataError(
            f"{train.data.split} has {len(train.classes)} classes, {test.data.split} has {len(test.classes)} other.",
            next="Name those of both: --classes a,b,c.",
        )
    if train.data.digest_of_images == test.data.digest_of_images:
        raise DataError(
            f"The split {test.data.split} is what the head is fitted on.", next="Give another --test-split."
        )
