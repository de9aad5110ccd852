"""Config of `holdfast train`: what is trained, by which method, against which adversary. Needs no torch."""

from __future__ import annotations

from typing import Literal

from holdfast.configs import OnEncoders
from holdfast.records import Norm


class TrainConfig(OnEncoders, frozen=True, kw_only=True):
    """Pre-train an encoder: `holdfast train simclr --data imgs/ --model resnet18 --out runs/a`.

    A field of the method that is 0 has the value of its paper. Under `torchrun` the processes share one run: a batch is
    divided among them, and no number depends on how many there are but in its last digits.

    Attributes:
        method: simclr, supcon (needs labels), simsiam, byol, barlow, swav, dino or empssl; or, through a head of the
            encoder's own and with labels, supervised (against PGD: Madry's training) or trades; or, from a
            checkpoint and without labels, deacl, fare, or harden (DeACL's loss at several levels).
        model: architecture: a timm name, or one of `holdfast ls models`; or a checkpoint to start from.
        out: folder for the checkpoint, `metrics.jsonl` and the model card; the same command continues it.
        epochs: passes over the images.
        batch: images per step, of all processes together.
        optimizer: adamw; sgd (Nesterov momentum 0.9); sgd_plain (without momentum); or lars, the steps of sgd scaled
            layer by layer (trust 0.005, clipped).
        lr: peak learning rate, reached after `warmup` epochs, cosine to zero; counted in optimizer steps.
        schedule: cosine; stepped (a tenth after 60 %, a hundredth after 80 %); or rewarmed, the published one of
            CF-AMC-SSL, whose cosine ends after as many optimizer steps as there are batches, and rises again.
        weight_decay: of weights with more than one dimension.
        warmup: epochs.
        temperature: of the method's softmax.
        dim: of the projection; of dino its prototypes.
        hidden: width of the hidden layers of projector and predictor; of empssl also that of the pre-feature.
        momentum: of the teacher of byol and dino at the start; it rises to 1.
        prototypes: of swav.
        queue: of swav: earlier projections that help to balance its codes.
        crops: of empssl, per image.
        small_crops: of swav and dino, per image; None = as published from 96 pixels on, below it none.
        small_size: their side in pixels; 0 = three sevenths of the image's.
        beta: of trades: weight of the divergence.
        trained: of supervised and trades: all, or the head alone, on an encoder that stays as it is.
        levels: of deacl, fare and harden: features that student and teacher are compared at; empty = pooled (of harden
            pooled and patch).
        mix: of several levels, what the attack raises: their mean, the max of each image, or one drawn for each.
        policy: crops = of any size, as the method's paper has it; patches = of one size, a quarter of the area.
        crop: smallest share of the image's area in a view (of patches: the share); None = the method's.
        colours: brightness, contrast and saturation of a view change by up to this; None as above.
        hue: the hue turns by up to this, 1 being the full circle; None as above.
        grey: probability of a grey view; None as above.
        adversary: empty = none (of deacl, fare and harden pgd); none; pgd; free (each batch `replays` times, the
            perturbation learns from the same backward pass); or pgd_summed, the published variant whose attack also
            adds its gradients to the weights'.
        eps: radius of the adversary in pixel units.
        alpha: its step; 0 = 2.5 * eps / steps, of free eps, of deacl, fare and harden eps / 4.
        steps: gradient steps of pgd; 0 = 5, of fare 10.
        ramp: of pgd: epochs over which radius and step grow to what they are; 0 = none.
        start: of pgd, in the ball: random, zero, or normal (0.001 times a normal draw, as TRADES has it).
        replays: of free: optimizer steps per batch.
        norm: of its ball.
        batchnorm: empty = train (of deacl, fare, harden and a head alone frozen); train = the attack sees statistics of
            the batch, as training does, and leaves the running ones alone; frozen = it sees the running ones; fixed =
            the weights learn from the running ones too, which never change (for nets whose BatchNorm is folded into
            their convolutions); dual = perturbed views have BatchNorms of their own, which are exported.
        precision: of the encoder's pass: fp32, or bf16 behind the layer that sees the pixels.
        engine: of the encoder's pass: eager, or compiled by torch, which takes minutes at first. Last digits differ.
        knn_every: epochs between checks on a held-out part (kNN, effective rank, accuracy of a head); 0 = first and
            last alone.
        tensorboard: also write the metrics as event files of TensorBoard, into `tensorboard` within the run's folder.
        save_every: steps between checkpoints; 0 = every epoch.
        replace: start anew where `out` was made with another config.
    """

    method: str = "simclr"
    model: str = "cifar_resnet18"
    out: str = ""
    epochs: int = 100
    batch: int = 256
    optimizer: Literal["adamw", "sgd", "sgd_plain", "lars"] = "adamw"
    lr: float = 1e-3
    schedule: Literal["cosine", "stepped", "rewarmed"] = "cosine"
    weight_decay: float = 1e-4
    warmup: float = 1.0
    temperature: float = 0.0
    dim: int = 0
    hidden: int = 0
    momentum: float = 0.0
    prototypes: int = 0
    queue: int = 0
    crops: int = 0
    small_crops: int | None = None
    small_size: int = 0
    beta: float = 0.0
    trained: Literal["all", "head"] = "all"
    levels: tuple[str, ...] = ()
    mix: Literal["mean", "max", "drawn"] = "mean"
    policy: Literal["crops", "patches"] = "crops"
    crop: float | None = None
    colours: float | None = None
    hue: float | None = None
    grey: float | None = None
    adversary: Literal["", "none", "pgd", "free", "pgd_summed"] = ""
    eps: float = 8 / 255
    alpha: float = 0.0
    steps: int = 0
    ramp: float = 0.0
    start: Literal["random", "zero", "normal"] = "random"
    replays: int = 3
    norm: Norm = "linf"
    batchnorm: Literal["", "train", "frozen", "fixed", "dual"] = ""
    precision: Literal["fp32", "bf16"] = "fp32"
    engine: Literal["eager", "compiled"] = "eager"
    knn_every: int = 0
    tensorboard: bool = False
    save_every: int = 0
    replace: bool = False
