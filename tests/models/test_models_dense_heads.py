"""Heads that answer for every pixel: by hand, on both kinds of encoder, from files, and refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from holdfast.errors import CheckpointError, ConfigError, PixelError
from holdfast.models.checkpoint import load
from holdfast.models.dense_files import FILE, digest_of, read_dense_head, read_dinov2_depth, save_head
from holdfast.models.dense_heads import (
    KINDS,
    Bins,
    DenseHead,
    Linear,
    build_head,
    check_fits,
    default_levels,
    spec_for,
)
from holdfast.models.encoder import Encoder, frozen
from holdfast.models.features import Features
from holdfast.models.padding import framed, look, patch
from holdfast.records import DenseSpec

ALL = [(task, kind) for task, kinds in KINDS.items() for kind in kinds]
ODD = torch.rand(2, 3, 33, 47, generator=torch.Generator().manual_seed(1))


def vit(patch_size: int = 16, depth: int = 4) -> Encoder:
    options = (f"depth={depth}", "embed_dim=24", "num_heads=3", "img_size=32", f"patch_size={patch_size}")
    return load("random:vit_tiny_patch16_224", options=options)


def cnn() -> Encoder:
    return load("random:cifar_resnet8", options=("width=4",))


def head_of(spec: DenseSpec) -> DenseHead:
    """With weights drawn, batch norms' among them, so that nothing is by chance the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        head = build_head(spec)
        for part in head.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
    return head.eval()


def answered(encoder: Encoder, head: DenseHead, pixels: Tensor) -> Tensor:
    with frozen(encoder), frozen(head):
        features, frame = look(encoder, head.spec, pixels)
        return frame.undone(head(features, frame.size))


@pytest.mark.parametrize(("task", "kind"), ALL)
@pytest.mark.parametrize("make", [vit, cnn])
def test_any_size_is_answered_and_its_gradient_reaches_the_pixels(make: type, task: str, kind: str) -> None:
    encoder = make()
    head = head_of(spec_for(encoder, task, kind, outputs=5, near=0.5, far=4.0))
    pixels = ODD.clone().requires_grad_()
    out = answered(encoder, head, pixels)
    assert out.shape == ((2, 5, 33, 47) if task == "segmentation" else (2, 33, 47))
    if task == "depth":
        assert bool(((out >= 0.5) & (out <= 4.0)).all())
    (grad,) = torch.autograd.grad(out[0].square().sum(), pixels)
    assert bool(grad.isfinite().all())
    assert (grad[0] != 0).float().mean() > 0.9
    assert not grad[1].any(), "an image's answer depends on that image alone"
    assert all(p.grad is None for p in (*encoder.parameters(), *head.parameters()))


@pytest.mark.parametrize("sides", [(32, 32), (33, 47), (14, 15), (1, 1)])
def test_the_frame_is_the_mean_colour_and_cut_off_again(sides: tuple[int, int]) -> None:
    encoder = vit(14)
    pixels = torch.rand(1, 3, *sides, generator=torch.Generator().manual_seed(0))
    whole, frame = framed(encoder, pixels)
    assert frame.size == tuple(whole.shape[-2:])
    assert all(side % 14 == 0 and side - own < 14 for side, own in zip(frame.size, sides))
    assert frame.top == (frame.size[0] - sides[0]) // 2, "on all sides alike, as DINOv2 pads"
    assert torch.equal(frame.undone(whole), pixels)
    normal = (whole - encoder.mean) / encoder.std
    frame.undone(normal).zero_()
    assert not normal.any(), "behind the normalisation the frame is zero"


def test_padding_is_undone_to_the_pixel() -> None:
    """A head that passes the pixels on, whatever is put around them: nothing moves, nothing is stretched."""
    encoder = vit(14)
    _, frame = framed(encoder, ODD)
    ramp = torch.arange(frame.size[0] * frame.size[1]).view(1, *frame.size)
    cut = frame.undone(ramp)
    assert cut.shape == (1, 33, 47)
    assert int(cut[0, 0, 0]) == frame.top * frame.size[1] + frame.left
    assert bool((cut.diff(dim=2) == 1).all())
    assert bool((cut.diff(dim=1) == frame.size[1]).all())


def test_a_patch_is_the_trunks_own() -> None:
    assert patch(vit(16)) == (16, 16)
    assert patch(vit(14)) == (14, 14)
    assert patch(cnn()) == (1, 1)
    assert framed(cnn(), ODD)[0] is ODD


def test_a_trunk_of_one_size_says_so() -> None:
    encoder = load("random:vit_tiny_patch16_224", options=("depth=1", "img_size=32", "dynamic_img_size=False"))
    framed(encoder, ODD[..., :32, :32])
    with pytest.raises(ConfigError, match="images of 32 x 32 pixels alone, not 48 x 48"):
        framed(encoder, ODD)
    with pytest.raises(PixelError, match="shape"):
        framed(encoder, ODD[0])


def test_depth_is_read_before_the_last_layer_norm_and_classes_behind_it() -> None:
    encoder = vit()
    pixels = ODD[..., :32, :32]
    for task, normed in (("segmentation", True), ("depth", False)):
        spec = spec_for(encoder, task, levels=("block3",), outputs=5)
        with torch.no_grad():
            seen = look(encoder, spec, pixels)[0].maps["block3"]
            assert torch.equal(seen, encoder(pixels, ("block3",), normed).maps["block3"])
            assert not torch.equal(seen, encoder(pixels, ("block3",), not normed).maps["block3"])


def test_linear_is_a_batch_norm_and_a_convolution_of_all_tokens() -> None:
    """The multi-layer head, as published: concatenated, normalised, convolved, resized."""
    head = head_of(spec_for(vit(), "segmentation", outputs=5))
    assert isinstance(head, Linear)
    generator = torch.Generator().manual_seed(0)
    maps = {level: torch.randn(2, 24, 3, 4, generator=generator) for level in head.spec.levels}
    joined = torch.cat([maps[level] for level in head.spec.levels], 1)
    mean, var, scale, shift = (
        torch.cat([getattr(norm, name) for norm in head.norms])[:, None, None]
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    normed = (joined - mean) / (var + 1e-5).sqrt() * scale + shift
    weight = torch.cat([conv.weight for conv in head.convs], 1)
    expected = functional.conv2d(normed, weight, head.convs[0].bias)
    expected = functional.interpolate(expected, size=(48, 64), mode="bilinear", align_corners=False)
    found = head(Features(torch.empty(2, 0), maps, {}), (48, 64))
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_constant_map_is_a_constant_answer() -> None:
    """One value per image: whatever is resized, every pixel gets the very answer of the 1x1 convolution."""
    head = head_of(spec_for(cnn(), "segmentation", outputs=5))
    maps = {
        level: torch.full((1, c, 9 - i, 7 - i), 0.5)
        for i, (level, c) in enumerate(zip(head.spec.levels, head.spec.channels))
    }
    out = head(Features(torch.empty(1, 0), maps, {}), (33, 47))
    assert torch.allclose(out, out[..., :1, :1].expand_as(out), atol=1e-6)


def test_bins_by_hand() -> None:
    """One pixel, two bins, weights 3 + 0.1 and 0 + 0.1: the mean of 1 m and 9 m under them."""
    spec = DenseSpec(
        task="depth", kind="bins", levels=("block0",), channels=(1,), outputs=2, cls=True, near=1.0, far=9.0
    )
    head = build_head(spec)
    assert isinstance(head, Bins)
    with torch.no_grad():
        head.conv_depth.weight.copy_(torch.tensor([[1.0, 2.0], [-5.0, -1.0]])[:, :, None, None])
        assert head.conv_depth.bias is not None
        head.conv_depth.bias.copy_(torch.tensor([-2.0, 1.0]))
    features = Features(torch.empty(1, 0), {"block0": torch.ones(1, 1, 1, 1)}, {"block0": torch.full((1, 2, 1), 2.0)})
    assert torch.allclose(head(features, (3, 5)), torch.full((1, 3, 5), (3.1 * 1 + 0.1 * 9) / 3.2))


@pytest.mark.parametrize("blocks", [1, 4])
def test_bins_are_dinov2s_arithmetic(blocks: int) -> None:
    """As published: class token beside every token, levels side by side, four times finer, and only then convolved."""
    encoder = vit()
    head = head_of(spec_for(encoder, "depth", levels=default_levels(encoder)[-blocks:], outputs=7))
    features, frame = look(encoder, head.spec, ODD)
    parts = []
    for level in head.spec.levels:
        x = features.maps[level]
        parts.append(torch.cat([x, features.prefix[level][:, 0, :, None, None].expand_as(x)], 1))
    joined = torch.cat(parts, 1)
    finer = functional.interpolate(joined, scale_factor=4, mode="bilinear", align_corners=False)
    weights = functional.relu(functional.conv2d(finer, head.conv_depth.weight, head.conv_depth.bias)) + 0.1
    weights = weights / weights.sum(1, keepdim=True)
    depth = torch.einsum("bkhw,k->bhw", weights, torch.linspace(head.spec.near, head.spec.far, 7))[:, None]
    expected = functional.interpolate(depth, size=frame.size, mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(head(features, frame.size), expected, atol=1e-4)


def test_default_levels() -> None:
    deep = vit(depth=8)
    assert default_levels(deep, "linear") == default_levels(deep, "bins") == ("block4", "block5", "block6", "block7")
    assert default_levels(deep, "dpt") == default_levels(deep, "upernet") == ("block1", "block3", "block5", "block7")
    assert default_levels(vit(depth=2), "dpt") == ("block0", "block1")
    assert default_levels(cnn(), "linear") == default_levels(cnn(), "dpt") == ("stage1", "stage2", "stage3")
    assert default_levels(cnn(), "bins") == ("stage2", "stage3")
    assert default_levels(Encoder(nn.Conv2d(3, 4, 3))) == ("patch",)


def test_a_spec_takes_widths_and_class_token_from_the_encoder() -> None:
    spec = spec_for(cnn(), "depth", outputs=256)
    assert (spec.kind, spec.channels, spec.cls) == ("bins", (8, 16), False)
    assert spec_for(vit(), "depth", outputs=256).cls
    assert not spec_for(vit(), "depth", "dpt", outputs=256).cls
    with pytest.raises(ConfigError, match=r'no head "upernett" for segmentation.*"upernet"'):
        spec_for(cnn(), "segmentation", "upernett", outputs=5)
    with pytest.raises(ConfigError, match='no map at "pooled"'):
        spec_for(cnn(), "segmentation", levels=("pooled",), outputs=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "bins"}, 'no head "bins" for segmentation'),
        ({"levels": ()}, "0 levels with 3 widths"),
        ({"levels": (), "channels": ()}, "no level"),
        ({"levels": ("stage1", "stage1", "stage2")}, "a level twice"),
        ({"outputs": 1}, "outputs 1"),
        ({"width": 0}, "width 0"),
        ({"near": 2.0, "far": 1.0}, "from 2.0 to 1.0 metres"),
        ({"cls": True}, "class token, which bins alone read"),
        ({"kind": "dpt", "levels": tuple("abcde"), "channels": (1,) * 5}, "5 levels of a ViT"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    spec = msgspec.structs.replace(spec_for(cnn(), "segmentation", outputs=5), **changes)
    with pytest.raises(ConfigError, match=message):
        build_head(spec)


def test_a_head_of_another_encoder_is_refused() -> None:
    spec = spec_for(cnn(), "segmentation", outputs=5)
    check_fits(spec, cnn())
    with pytest.raises(ConfigError, match=r"4 of stage1, 8 of stage2, 16 of stage3; .* has 16, 32, 64 there"):
        check_fits(spec, load("random:cifar_resnet8"))
    with pytest.raises(ConfigError, match="has 0, 0, 0 there"):
        check_fits(spec, vit())


@pytest.mark.parametrize(("task", "kind"), ALL)
def test_saved_and_read_to_the_bit(tmp_path: Path, task: str, kind: str) -> None:
    encoder = cnn()
    head = head_of(spec_for(encoder, task, kind, outputs=3))
    parts = ("sky", "road", "car") if task == "segmentation" else ()
    state = torch.get_rng_state()
    sizes = tuple(range(5, 5 + len(parts)))
    file = save_head(head, tmp_path, parts=parts, sizes=sizes, extra={"data": "scenes"})
    read = read_dense_head(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert file == tmp_path / FILE
    assert (read.head.spec, read.parts, read.digest) == (head.spec, parts, digest_of(head, sizes))
    assert read.sizes == sizes
    assert read.metadata["data"] == "scenes"
    assert torch.equal(answered(encoder, read.head, ODD), answered(encoder, head, ODD))
    assert not read.head.training
    assert not any(p.requires_grad for p in read.head.parameters())


def test_the_digest_covers_what_an_answer_depends_on() -> None:
    head = head_of(spec_for(cnn(), "depth", outputs=3))
    before = digest_of(head)
    head.spec = msgspec.structs.replace(head.spec, far=20.0)
    other = digest_of(head)
    with torch.no_grad():
        next(head.parameters())[0] += 1e-3
    sized = (digest_of(head, (1, 2)), digest_of(head, (2, 1)))
    assert len({before, other, digest_of(head), *sized}) == 5


def test_a_file_that_does_not_fit_itself_is_refused(tmp_path: Path) -> None:
    head = head_of(spec_for(cnn(), "segmentation", outputs=3))
    file = save_head(head, tmp_path / "h.safetensors", parts=("a", "b", "c"))
    said = read_dense_head(file).metadata
    tensors = load_file(file)

    def refused(message: str, tensors: dict[str, Tensor], said: dict[str, str]) -> None:
        save_file(tensors, tmp_path / "other.safetensors", metadata=said)
        with pytest.raises(CheckpointError, match=message):
            read_dense_head(tmp_path / "other.safetensors")

    less = {name: t for name, t in tensors.items() if name != "convs.0.weight"}
    refused(r"\d+ of \d+ weights matched.*convs.0.weight, not in the file", less, said)
    refused("1 left over", {**tensors, "more": torch.ones(1)}, said)
    refused("NaN", {**tensors, "convs.0.bias": torch.full((3,), torch.nan)}, said)
    refused("changed after it was saved", {**tensors, "convs.0.bias": torch.ones(3)}, said)
    spec = json.loads(said["dense_head"])
    refused("cannot be: outputs 0", tensors, {**said, "dense_head": json.dumps({**spec, "outputs": 0})})
    refused("does not say what head", tensors, {**said, "dense_head": json.dumps({**spec, "colour": 1})})
    refused("does not name its 3 classes", tensors, {**said, "parts": '["a"]'})
    refused("does not say what head they are", tensors, {"format": "pt"})
    with pytest.raises(ConfigError, match="2 names of classes"):
        save_head(head, tmp_path, parts=("a", "b"))
    with pytest.raises(ConfigError, match="2 sizes for 3 classes"):
        save_head(head, tmp_path, parts=("a", "b", "c"), sizes=(1, 2))
    sized = save_head(head, tmp_path / "sized.safetensors", parts=("a", "b", "c"), sizes=(1, 2, 3))
    said = read_dense_head(sized).metadata
    refused("changed after it was saved", tensors, {**said, "sizes": "[1, 2, 4]"})
    refused("its classes have", tensors, {**said, "sizes": "many"})


def published(width: int, blocks: int, bins: int = 256) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(bins, 2 * width * blocks, 1, 1, generator=generator)
    return {"decode_head.conv_depth.weight": weight, "decode_head.conv_depth.bias": torch.zeros(bins)}


@pytest.mark.parametrize(("blocks", "levels"), [(1, ("block11",)), (4, ("block2", "block5", "block8", "block11"))])
def test_dinov2s_depth_head_is_read(tmp_path: Path, blocks: int, levels: tuple[str, ...]) -> None:
    encoder = vit(14, depth=12)
    torch.save({"meta": {"epoch": 1}, "state_dict": published(24, blocks)}, tmp_path / "nyu_linear_head.pth")
    read = read_dense_head(tmp_path / "nyu_linear_head.pth", encoder=encoder)
    spec = read.head.spec
    assert (spec.levels, spec.outputs, spec.cls, spec.near, spec.far) == (levels, 256, True, 0.001, 10.0)
    out = answered(encoder, read.head, ODD)
    assert out.shape == (2, 33, 47)
    kitti = read_dinov2_depth(tmp_path / "nyu_linear_head.pth", encoder=encoder, far=80.0)
    # Bins from 0.001 to 80 in place of 10 are a straight line of each other.
    stretched = 0.001 + (out - 0.001) * (80 - 0.001) / (10 - 0.001)
    assert torch.allclose(answered(encoder, kitti, ODD), stretched, rtol=1e-4)
    save_head(read.head, tmp_path / "ours")
    assert read_dense_head(tmp_path / "ours").digest == read.digest


def test_a_wrong_dinov2_head_is_refused_with_counts(tmp_path: Path) -> None:
    encoder, file = vit(14), tmp_path / "head.pth"
    torch.save(published(32, 1), file)
    with pytest.raises(CheckpointError, match=re.escape("[256, 64, 1, 1]") + ".* 48 channels of one block or 192"):
        read_dinov2_depth(file, encoder=encoder)
    with pytest.raises(CheckpointError, match="does not say which encoder"):
        read_dense_head(file)
    with pytest.raises(ConfigError, match="no blocks with a class token"):
        read_dinov2_depth(file, encoder=cnn())
    torch.save({**published(24, 1), "decode_head.project.weight": torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match=r"3 tensors .* it holds 2"):
        read_dinov2_depth(file, encoder=encoder)
    torch.save({**published(24, 1), "decode_head.conv_depth.bias": torch.zeros(100)}, file)
    with pytest.raises(CheckpointError, match=r"1 of 2 weights matched .*\[100\] in the file, \[256\]"):
        read_dinov2_depth(file, encoder=encoder)
