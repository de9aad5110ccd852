"""Configs of the verbs: keyword arguments in Python, fields in YAML and flags are the same record. Needs no torch."""

from __future__ import annotations

from typing import Literal

from holdfast.codec import Record
from holdfast.records import Attack, Model, Norm


class OnImages(Record, frozen=True, kw_only=True):
    """Fields shared by every verb that reads images (see `Data`).

    Attributes:
        data: a folder, or a source: `scenes`, `cifar10:folder`, `imagenet:folder`... `holdfast ls layouts` lists them.
        split: which part; empty = the verb's own (train to learn, test to measure).
        limit: at most so many images; 0 = all.
        subset: drawn by the seed, or the first.
        classes: a file with one class per line, or a comma-separated list; empty = all.
        size: side of the image in pixels; 0 = what the encoder expects, or as stored.
        resize: shorter side before the centre crop; 0 = what the encoder expects, or none.
        interpolation: of the resize; empty = what the encoder expects, or bilinear.
        seed: of everything that is drawn.
        device: auto, cpu, cuda, cuda:1...
        threads: of the CPU; 0 = as torch chooses. Last digits depend on it; small nets are fastest with 1.
    """

    data: str = "scenes"
    split: str = ""
    limit: int = 0
    subset: Literal["random", "first"] = "random"
    classes: str = ""
    size: int = 0
    resize: int = 0
    interpolation: Literal["", "bilinear", "bicubic"] = ""
    seed: int = 0
    device: str = "auto"
    threads: int = 0


class OnEncoders(OnImages, frozen=True, kw_only=True):
    """Fields shared by every verb that reads encoders as well.

    Attributes:
        arch: see `Model`.
        options: see `Model`.
        mean: see `Model`.
        std: see `Model`.
    """

    arch: str = ""
    options: tuple[str, ...] = ()
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


class ProbeConfig(OnEncoders, frozen=True, kw_only=True):
    """Fit a head on a frozen encoder: `holdfast probe runs/a --data imgs/ --out runs/a/probe`.

    Attributes:
        encoder: as `Model.spec`.
        task: classification, segmentation or depth.
        level: features that a linear head of classification reads.
        kind: of a dense head: linear, upernet, dpt (segmentation); bins, dpt (depth); empty = linear, bins.
        levels: of the encoder that a dense head reads, from shallow to deep; empty = the last four blocks, or all
            stages but the first (for bins but the first two).
        width: channels of a decoder.
        cls: the class token stands beside every patch token: yes, no; auto = yes for depth where there is one.
        window: side of a sliding window in pixels; 0 = the whole image.
        stride: of windows; 0 = two thirds of one.
        augment: none; flip = left and right; crop = also crops of `crop_size`, of images enlarged by up to 2.
        crop_size: height and width of a crop in pixels; 0 = that of the shorter side.
        schedule: of the learning rate after a warm-up of 5 %: poly (power 0.9), or cosine.
        iterations: optimiser steps of a dense head; 0 = `epochs` passes.
        val_share: of the training images by which a dense head is chosen, where there is no val split.
        out: folder for `head.safetensors` and `probe.json`; empty = `probe` beside a run's checkpoint.
        epochs: full passes of the optimiser over the cached features.
        lr: peak learning rate of the head; 0 = 0.01 of a linear head, 0.001 of a dense one.
        weight_decay: of the head's weight.
        batch: images per forward pass of the encoder, and of a dense head per step; 0 = 256, of a dense head 16.
        test_split: split that the accuracy is measured on.
        replace: fit anew where `out` was made with another config.
    """

    encoder: str = ""
    task: Literal["classification", "segmentation", "depth"] = "classification"
    level: str = "pooled"
    kind: Literal["", "linear", "upernet", "dpt", "bins"] = ""
    levels: tuple[str, ...] = ()
    width: int = 64
    cls: Literal["auto", "yes", "no"] = "auto"
    window: int = 0
    stride: int = 0
    augment: Literal["none", "flip", "crop"] = "flip"
    crop_size: int = 0
    schedule: Literal["poly", "cosine"] = "poly"
    iterations: int = 0
    val_share: float = 0.1
    out: str = ""
    epochs: int = 100
    lr: float = 0.0
    weight_decay: float = 1e-4
    batch: int = 0
    test_split: str = "test"
    replace: bool = False


class AttackConfig(OnEncoders, frozen=True, kw_only=True):
    """Look, do not measure: attack a few images and write a gallery.

    Attributes:
        encoder: as `Model.spec`.
        images: image files; empty = the first of `data`.
        out: folder for `adversarial.npz` (lossless), PNG files and `gallery.html`.
        method: `holdfast ls attacks` lists them.
        through: embedding (no labels needed), classification (the checkpoint's own head), segmentation or depth (a head
            from a file); empty = that of the head that is named, else embedding.
        segmentation_heads: a probe's folder, or a head's file; one, as there is one encoder.
        depth_heads: the same for depth.
        window: side in pixels of the windows that a dense head slides over an image; 0 = the whole image.
        stride: of the windows; 0 = two thirds of one.
        depth_crop: of the pixels that depth is measured on: none, eigen (NYU Depth v2), eigen_kitti, or garg (KITTI).
        push: harm that is raised; empty = the task's first.
        norm: of the ball.
        eps: radius in pixel units; 0 = the nearest adversarial image (fab); left out = 4/255, in a Linf ball alone.
        alpha: step; 0 = the method's own.
        steps: gradient steps, or queries; 0 = the method's own.
        restarts: independent starts.
        targets: so many wrong classes are aimed at, one after the other; 0 = none.
        target: class to aim at, its name or number; empty = none.
        aim: away from what the image is, or towards another class or another image's embedding.
        level: of the features that an embedding attack moves; empty = pooled.
        samples: passes averaged in every look, for a randomised encoder.
        precision: of the encoder under attack; verdicts are float32.
        surrogate: encoder that the attack is made on, where it is another one (transfer).
    """

    encoder: str = ""
    images: tuple[str, ...] = ()
    out: str = "runs/attack"
    method: str = "pgd"
    through: Literal["", "embedding", "classification", "segmentation", "depth"] = ""
    segmentation_heads: tuple[str, ...] = ()
    depth_heads: tuple[str, ...] = ()
    window: int = 0
    stride: int = 0
    depth_crop: Literal["none", "eigen", "eigen_kitti", "garg"] = "none"
    push: str = ""
    norm: Norm = "linf"
    eps: float | None = None
    alpha: float = 0.0
    steps: int = 0
    restarts: int = 1
    targets: int = 0
    target: str = ""
    aim: Literal["away", "towards"] = "away"
    level: str = ""
    samples: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    surrogate: str = ""


class VerifyConfig(Record, frozen=True, kw_only=True):
    """Judge the adversarial images on disk anew, apart from the attack: `holdfast verify runs/b`.

    Attributes:
        runs: folders of `bench` or of `attack`.
        device: auto, cpu, cuda, cuda:1...
        threads: of the CPU; 0 = as torch chooses.
    """

    runs: tuple[str, ...] = ()
    device: str = "auto"
    threads: int = 0


class BenchConfig(OnEncoders, frozen=True, kw_only=True):
    """Measure encoders on a grid: `holdfast bench runs/a dino.pth --data imgs/ --suite quick --out runs/b`.

    Attributes:
        encoders: specs as `Model.spec`; a folder of checkpoints is a series.
        models: the same as full `Model` records (YAML and Python), after `encoders`.
        heads: a linear head's file for each of `encoders`, in their order; empty = the checkpoints' own, or fitted.
        segmentation_heads: a probe's folder, or a head's file, for each of `encoders`, in their order.
        depth_heads: the same for depth.
        window: side in pixels of the windows that dense heads slide over an image; 0 = the whole image.
        stride: of the windows; 0 = two thirds of one.
        recompute: under attack, windows are computed twice and not kept: the memory of one pass, at half a step more.
        depth_crop: of the pixels that depth is measured on: none, eigen (NYU Depth v2), eigen_kitti, or garg (KITTI).
        out: folder of the records; the same command continues it.
        suite: quick, standard, full, corruptions: what None below stands for.
        tasks: judges of every condition; empty = embedding, classification where the images have labels, and
            segmentation and depth where heads are given.
        saliency: so many of the images are also looked at with Grad-CAM, SSIM and PSNR, clean and under every
            corruption; 0 = none.
        saliency_target: what Grad-CAM explains: the class predicted on the clean image, the true class, or, without a
            head, similarity to the clean embedding; auto = predicted where there is a head.
        gallery_classes: names of classes whose images the saliency gallery shows besides those chosen by rule.
        head: own = the checkpoint's own classification head, linear = fitted here; auto = own where there is one.
        level: features that the heads read.
        fit_split: split that linear heads and banks are fitted on, where the checkpoint has no head of its own.
        fit_limit: at most so many images to fit on; 0 = all.
        norm: of the balls; empty = as the attacks say. Another norm needs `eps`.
        eps: radii in pixel units that replace those of the attacks.
        methods: attacks by name, through every task that they can attack, in place of the suite's.
        attacks: attack records (YAML and Python), in place of the suite's.
        steps: gradient steps, or queries, of every attack but fgsm and autoattack; None = as in the attack records.
        samples: passes averaged in every look of every attack, for randomised encoders; None = as in the records.
        precision: of the encoder under attack; verdicts are float32; empty = as in the records.
        engine: of the passes under attack: folded = batch norms in the convolutions; eager = layer by layer; compiled
            by torch, which takes minutes at first. Verdicts are always eager; last digits differ, and the record says
            which.
        traced: so many iterates of every attack that goes in one pass (pgd, mpgd, apgd, noise) are judged as well.
        transfer: each-other = images attacked through one encoder are also shown to every other one.
        attack_limit: images that are attacked, the first so many of the subset; None = the suite's, 0 = all.
        corruptions: names, or `none`, or `all`.
        severities: 1 to 5.
        variant: severity table; empty = the one made for images of this very size, which is said; else an error.
        corruption_mode: fast, or reference: float64 in the published order; they differ by one level at most.
        storage: jpeg85 = corrupted images pass through the JPEG file that the official sets are stored in.
        textures: of frost: published (`HOLDFAST_FROST=folder`, or an installed imagecorruptions), or drawn; auto = the
            published ones where they are found, which is said.
        corrupted: folder of an official set (ImageNet-C, CIFAR-10-C...) with the corrupted versions of `data`; they are
            read from there, not made, and the clean ones are cut as those of the set were. With `data` an official set
            itself, corrupted images alone are measured.
        chunk: images per forward pass; halved when memory is short, never under 8.
        block: images per block, the unit of resume.
        shard: `1/4` = the first quarter of the jobs.
        dry_run: print cells, images and an estimate of time, and stop.
        replace: start anew where `out` was made with another config.
    """

    encoders: tuple[str, ...] = ()
    models: tuple[Model, ...] = ()
    heads: tuple[str, ...] = ()
    segmentation_heads: tuple[str, ...] = ()
    depth_heads: tuple[str, ...] = ()
    window: int = 0
    stride: int = 0
    recompute: bool = False
    depth_crop: Literal["none", "eigen", "eigen_kitti", "garg"] = "none"
    out: str = ""
    suite: str = "quick"
    tasks: tuple[Literal["classification", "embedding", "segmentation", "depth"], ...] = ()
    saliency: int = 0
    saliency_target: Literal["auto", "predicted", "true", "similarity"] = "auto"
    gallery_classes: tuple[str, ...] = ()
    head: Literal["auto", "own", "linear"] = "auto"
    level: str = "pooled"
    fit_split: str = "train"
    fit_limit: int = 0
    norm: Literal["", "linf", "l2", "l1"] = ""
    eps: tuple[float, ...] | None = None
    methods: tuple[str, ...] = ()
    attacks: tuple[Attack, ...] = ()
    steps: int | None = None
    samples: int | None = None
    precision: Literal["", "fp32", "bf16"] = ""
    engine: Literal["eager", "folded", "compiled"] = "folded"
    traced: int | None = None
    transfer: Literal["none", "each-other"] = "none"
    attack_limit: int | None = None
    corruptions: tuple[str, ...] | None = None
    severities: tuple[int, ...] | None = None
    variant: Literal["", "imagenet224", "cifar32", "tiny64", "inception299"] = ""
    corruption_mode: Literal["fast", "reference"] = "fast"
    storage: Literal["none", "jpeg85"] = "none"
    textures: Literal["auto", "drawn", "published"] = "auto"
    corrupted: str = ""
    chunk: int = 64
    block: int = 256
    shard: str = ""
    dry_run: bool = False
    replace: bool = False


class CorruptConfig(OnImages, frozen=True, kw_only=True):
    """Write corrupted copies of images in the official layout: `holdfast corrupt --data imgs/ --out imgs-c`.

    Attributes:
        out: folder to write to; the same command continues it.
        corruptions: names, or `all`.
        severities: 1 to 5.
        variant: severity table; empty = the one made for images of this very size, which is said; else an error.
        mode: fast, or reference: float64 in the published order; they differ by one level at most.
        storage: none = lossless PNG; jpeg85 = JPEG of quality 85, as ImageNet-C and Tiny-ImageNet-C.
        textures: of frost: see `bench`.
        layout: folders = corruption/severity/class/image (ImageNet-C), without the class where images have no folder;
            arrays = corruption.npy and labels.npy (CIFAR-10-C); auto = arrays for images that come from arrays.
        block: images in memory at once.
        replace: start anew where `out` was made with another config.
    """

    out: str = ""
    corruptions: tuple[str, ...] = ("all",)
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    variant: Literal["", "imagenet224", "cifar32", "tiny64", "inception299"] = ""
    mode: Literal["fast", "reference"] = "fast"
    storage: Literal["none", "jpeg85"] = "none"
    textures: Literal["auto", "drawn", "published"] = "auto"
    layout: Literal["auto", "folders", "arrays"] = "auto"
    block: int = 64
    replace: bool = False


class ReportConfig(Record, frozen=True, kw_only=True):
    """Draw the page from records: `holdfast report runs/b`.

    Attributes:
        runs: folders of `bench`; several are compared.
        out: folder for report.html, results.csv, table.tex; empty = the first run.
        title: of the page.
    """

    runs: tuple[str, ...] = ()
    out: str = ""
    title: str = ""


class RunConfig(Record, frozen=True, kw_only=True):
    """Play a recipe: `holdfast run demo`.

    Attributes:
        recipe: a shipped recipe's name, or a YAML file.
        inputs: what the recipe asks for, `name=value` each: `data=imgs/`.
        set: options of the recipe's choices, `scale=full`, or single words of them, `epochs=3`.
        out: folder of its steps; empty = `runs/<name>`.
        device: for every step that does not say.
        dry_run: print the steps and their estimates, and stop.
    """

    recipe: str = ""
    inputs: tuple[str, ...] = ()
    set: tuple[str, ...] = ()
    out: str = ""
    device: str = "auto"
    dry_run: bool = False


class LsConfig(Record, frozen=True, kw_only=True):
    """List what exists or what a run holds.

    Attributes:
        what: models, attacks, flags, corruptions, suites, tasks, methods, recipes, layouts, a run folder, weights.
        failed: of a run, the failed cells alone, with their errors.
    """

    what: str = "suites"
    failed: bool = False
