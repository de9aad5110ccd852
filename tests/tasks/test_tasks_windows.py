"""Windows that slide: as a plain loop has them, as the whole image where one covers it, kept or recomputed."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from holdfast.errors import ConfigError, PixelError
from holdfast.models.checkpoint import load
from holdfast.models.dense_heads import DenseHead, build_head, spec_for
from holdfast.models.encoder import Encoder, frozen
from holdfast.tasks.sliding import planned, slid, slid_again, starts
from holdfast.tasks.windows import AT_ONCE, WHOLE, Windows, dense_see, plan_for, window_tokens

ODD = torch.rand(2, 3, 33, 47, generator=torch.Generator().manual_seed(1))
OPTIONS = ("depth=2", "embed_dim=24", "num_heads=3", "img_size=32")


def vit() -> Encoder:
    return load("random:vit_tiny_patch16_224", options=OPTIONS)


def cnn() -> Encoder:
    return load("random:cifar_resnet8", options=("width=4",))


def head_for(encoder: Encoder, task: str = "segmentation", kind: str = "") -> DenseHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build_head(spec_for(encoder, task, kind, outputs=5)).eval()


def looked(encoder: Encoder, head: DenseHead, windows: Windows, pixels: Tensor = ODD) -> tuple[Tensor, Tensor]:
    """Answers, and the gradient of the sum of their squares."""
    with frozen(encoder), frozen(head):
        x = pixels.clone().requires_grad_()
        (out,) = dense_see(encoder, head, windows)(x).values()
        (grad,) = torch.autograd.grad(out.square().sum(), x)
    return out.detach(), grad


def plain_loop(encoder: Encoder, head: DenseHead, windows: Windows) -> tuple[Tensor, Tensor]:
    """As mmsegmentation has it: one image, one window at a time, added up and divided by the counts."""
    whole = dense_see(encoder, head)
    with frozen(encoder), frozen(head):
        x = ODD.clone().requires_grad_()
        images = []
        for image in x.split(1):
            height, width = image.shape[-2:]
            total: Tensor | float = 0.0
            counts = torch.zeros(height, width)
            for i in range(max(height - windows.window + windows.stride - 1, 0) // windows.stride + 1):
                for j in range(max(width - windows.window + windows.stride - 1, 0) // windows.stride + 1):
                    bottom = min(i * windows.stride + windows.window, height)
                    right = min(j * windows.stride + windows.window, width)
                    top, left = max(bottom - windows.window, 0), max(right - windows.window, 0)
                    (out,) = whole(image[..., top:bottom, left:right]).values()
                    soft = windows.average == "softmax" and head.spec.task == "segmentation"
                    out = out.softmax(1) if soft else out
                    total = total + nn.functional.pad(out, (left, width - right, top, height - bottom))
                    counts[top:bottom, left:right] += 1
            assert isinstance(total, Tensor)
            images.append((total / counts).log() if soft else total / counts)
        out = torch.cat(images)
        (grad,) = torch.autograd.grad(out.square().sum(), x)
    return out.detach(), grad


@pytest.mark.parametrize(
    ("side", "window", "stride"), [(47, 32, 20), (33, 32, 1), (64, 32, 32), (100, 7, 3), (5, 9, 4)]
)
def test_windows_start_where_mmsegmentation_has_them(side: int, window: int, stride: int) -> None:
    steps = range(max(side - window + stride - 1, 0) // stride + 1)
    expected = [max(min(i * stride + window, side) - window, 0) for i in steps]
    found = starts(side, window, stride)
    assert found == expected
    assert found[0] == 0
    assert found[-1] == max(side - window, 0)
    assert all(0 < b - a <= stride for a, b in pairwise(found))


@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("average", ["softmax", "logits"])
@pytest.mark.parametrize("make", [vit, cnn])
def test_windows_are_a_plain_loop(make: type, average: str, memory: str) -> None:
    encoder = make()
    head = head_for(encoder)
    for batch in (0, 1, 3):
        windows = Windows(32, 14, average, batch, memory)
        assert plan_for(ODD, windows).windows == 2 * 3
        for found, expected in zip(looked(encoder, head, windows), plain_loop(encoder, head, windows)):
            assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_depth_is_averaged_in_metres() -> None:
    encoder = cnn()
    head = head_for(encoder, "depth")
    windows = Windows(24, 16)
    for found, expected in zip(looked(encoder, head, windows), plain_loop(encoder, head, windows)):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["linear", "upernet", "dpt"])
@pytest.mark.parametrize("window", [47, 48, 500])
def test_a_window_that_covers_the_image_is_the_whole_image(kind: str, window: int) -> None:
    for encoder in (vit(), cnn()):
        head = head_for(encoder, kind=kind)
        for found, expected in zip(looked(encoder, head, Windows(window)), looked(encoder, head, WHOLE)):
            assert torch.equal(found, expected)


@pytest.mark.parametrize(("task", "kind"), [("segmentation", "linear"), ("segmentation", "dpt"), ("depth", "bins")])
@pytest.mark.parametrize("window", [0, 32])
@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_recomputed_is_kept_to_the_bit(task: str, kind: str, window: int, average: str) -> None:
    for encoder in (vit(), cnn()):
        head = head_for(encoder, task, kind)
        kept, again = (
            looked(encoder, head, Windows(window, 0, average, 8, memory)) for memory in ("keep", "recompute")
        )
        assert torch.equal(kept[0], again[0])
        assert torch.equal(kept[1], again[1])


def test_averaged_probabilities_stay_a_distribution_however_sharp() -> None:
    """Where a class has no probability left in float32, its logarithm and its gradient are still there."""
    encoder = cnn()
    head = head_for(encoder)
    with torch.no_grad():
        for conv in head.convs:
            conv.weight.mul_(1000)
    out, grad = looked(encoder, head, Windows(24, 16))
    assert torch.allclose(out.logsumexp(1), torch.zeros(()), atol=1e-4)
    assert float(out.min()) < -200, "exp(-200) is zero in float32"
    assert bool(out.isfinite().all())
    assert bool(grad.isfinite().all())
    x = ODD.clone().requires_grad_()
    with frozen(encoder), frozen(head):
        seen = dense_see(encoder, head, Windows(24, 16))(x)["logits"]
    (last,) = torch.autograd.grad(seen.flatten()[seen.argmin()], x)
    assert bool((last != 0).any())


def test_two_images_of_a_batch_do_not_meet() -> None:
    encoder = cnn()
    head = head_for(encoder, kind="upernet")
    other = torch.stack([ODD[0], 1 - ODD[1]])
    for memory in ("keep", "recompute"):
        windows = Windows(24, 16, batch=5, memory=memory)
        (one, g_one), (two, g_two) = looked(encoder, head, windows), looked(encoder, head, windows, other)
        assert torch.equal(one[0], two[0])
        assert torch.equal(g_one[0], g_two[0])
        assert not torch.equal(one[1], two[1])
        x = ODD.clone().requires_grad_()
        with frozen(encoder), frozen(head):
            (grad,) = torch.autograd.grad(dense_see(encoder, head, windows)(x)["logits"][0].sum(), x)
        assert grad[0].any()
        assert not grad[1].any()


def test_a_gradient_inside_a_caller_that_wants_none() -> None:
    encoder = vit()
    head = head_for(encoder)
    for memory in ("keep", "recompute"):
        windows = Windows(32, 14, memory=memory)
        with torch.no_grad():
            assert not dense_see(encoder, head, windows)(ODD)["logits"].requires_grad
            with torch.enable_grad():
                _, grad = looked(encoder, head, windows)
        assert bool((grad != 0).any())


def test_cut_and_join_by_hand() -> None:
    """Every window answers its own number: a pixel has the mean of the windows that see it."""
    pixels = torch.zeros(1, 3, 1, 5)
    plan = planned(1, (1, 5), (1, 3), (1, 2), most=2)
    assert plan.counts.tolist() == [[1, 1, 2, 1, 1]]
    numbers = torch.tensor([2.0, 4.0])

    def run(crops: Tensor) -> Tensor:
        return numbers.view(-1, 1, 1, 1).expand(-1, 1, 1, 3)

    assert slid(run, pixels, plan, "values").flatten().tolist() == [2, 2, 3, 4, 4]
    middle = slid(run, pixels, plan, "probabilities").flatten()[2]
    assert torch.allclose(middle, ((numbers.exp().sum()) / 2).log())


@pytest.mark.parametrize("mean", ["probabilities", "values"])
def test_the_way_back_is_the_derivative(mean: str) -> None:
    """Against differences of the function itself, in double precision; the weights' gradient also where recomputed."""
    torch.manual_seed(0)
    plan = planned(2, (5, 7), (3, 4), (2, 3), most=3)
    conv = nn.Conv2d(3, 2, 3, padding=1).double()
    x = torch.rand(2, 3, 5, 7, dtype=torch.float64).requires_grad_()

    def run(crops: Tensor) -> Tensor:
        return torch.tanh(conv(crops))

    def kept(pixels: Tensor) -> Tensor:
        return slid(run, pixels, plan, mean)

    def again(pixels: Tensor) -> Tensor:
        return slid_again(run, pixels, plan, mean, (conv,))

    assert torch.autograd.gradcheck(kept, (x,))
    assert torch.autograd.gradcheck(again, (x,))
    inputs = (x, *conv.parameters())
    found = [torch.autograd.grad(f(x).square().sum(), inputs) for f in (kept, again)]
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*found, strict=True))


def test_a_randomised_victim_draws_the_same_both_times() -> None:
    plan = planned(1, (6, 6), (4, 4), (2, 2), most=2)
    x = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))

    def run(crops: Tensor) -> Tensor:
        return crops * torch.rand(len(crops), 1, 1, 1)

    def both(f: object) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            pixels = x.clone().requires_grad_()
            out = f(pixels)  # type: ignore[operator]
            torch.rand(3)
            (grad,) = torch.autograd.grad(out.sum(), pixels)
        return out.detach(), grad

    kept = both(lambda pixels: slid(run, pixels, plan, "values"))
    again = both(lambda pixels: slid_again(run, pixels, plan, "values", ()))
    assert torch.equal(kept[0], again[0])
    assert torch.equal(kept[1], again[1])


def test_passes_hold_what_they_may_and_every_window_once() -> None:
    plan = plan_for(torch.zeros(3, 3, 50, 60), Windows(20, 13, batch=5))
    cuts = [(cut, k) for cuts in plan.passes for cut in cuts for k in range(cut.images.start, cut.images.stop)]
    seen = [(k, cut.rows.start, cut.columns.start) for cut, k in cuts]
    assert len(seen) == len(set(seen)) == 3 * plan.windows
    sizes = [sum(cut.at.stop - cut.at.start for cut in cuts) for cuts in plan.passes]
    assert {*sizes[:-1]} == {5}
    assert sum(sizes) == len(seen)
    assert len(plan_for(torch.zeros(3, 3, 64, 64), Windows(32)).passes) == 1 <= AT_ONCE // 32**2


def test_recomputation_holds_one_pass_at_a_time() -> None:
    """The activations that are alive at once, counted: those of one pass, where keeping holds all of them."""
    encoder = cnn()
    head = head_for(encoder)
    alive: list[int] = []

    def held(windows: Windows) -> int:
        alive.clear()
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        x = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with frozen(encoder), frozen(head), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            dense_see(encoder, head, windows)(x)
        return total

    kept = held(Windows(32, 32, batch=1))
    again = held(Windows(32, 32, batch=1, memory="recompute"))
    assert again <= 96 * 96 * (3 + 5), "pixels and answers"
    assert kept > 5 * again


def test_tokens_of_all_windows_lie_image_by_image() -> None:
    encoder = vit()
    windows = Windows(32, 14, batch=4)
    with frozen(encoder), torch.no_grad():
        found = window_tokens(encoder, "block1", windows)(ODD)["embedding"]
        expected = [
            torch.cat(
                [
                    encoder.tokens(image[..., y : y + 32, x : x + 32], "block1").flatten()
                    for y in (0, 1)
                    for x in (0, 14, 15)
                ]
            )
            for image in ODD.split(1)
        ]
        whole = window_tokens(encoder, "block1")(ODD)["embedding"]
    assert torch.allclose(found, torch.stack(expected), atol=1e-5)
    assert whole.shape == (2, 3 * 3 * 24)
    grads = []
    for memory in ("keep", "recompute"):
        with frozen(encoder):
            x = ODD.clone().requires_grad_()
            seen = window_tokens(encoder, "block1", windows._replace(memory=memory))(x)["embedding"]
            grads.append(torch.autograd.grad(seen.square().sum(), x)[0])
    assert torch.equal(*grads)
    assert (grads[0] != 0).float().mean() > 0.9


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (Windows(32, 33), "a stride of 33 pixels leaves some unseen between windows of 32"),
        (Windows(0, 8), "a stride of 8 pixels, and no window"),
        (Windows(-1), "window is -1"),
        (Windows(8, batch=-2), "batch is -2"),
        (Windows(8, average="softmx"), 'average "softmx"'),
        (Windows(8, memory="kept"), 'memory "kept"'),
    ],
)
def test_windows_that_cannot_be_are_refused(windows: Windows, message: str) -> None:
    encoder = cnn()
    for make in (
        lambda: dense_see(encoder, head_for(encoder), windows),
        lambda: window_tokens(encoder, "patch", windows),
    ):
        with pytest.raises(ConfigError, match=message):
            make()


def test_what_does_not_belong_is_refused() -> None:
    encoder = cnn()
    with pytest.raises(ConfigError, match="there"):
        dense_see(load("random:cifar_resnet8"), head_for(encoder))
    with pytest.raises(ConfigError, match='no map at "pooled"'):
        window_tokens(encoder, "pooled")
    with pytest.raises(PixelError, match="shape"):
        dense_see(encoder, head_for(encoder), Windows(16))(ODD[0])
