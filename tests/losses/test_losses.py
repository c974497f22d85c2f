"""Properties of all losses: special cases of each other, masks, precision, finiteness, the fused pass."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from ral.losses import LOSSES, RAL, ClassCounts, build_loss
from ral.losses.fused import _blocked, _dense

THRESHOLD_METRICS = ClassCounts(
    torch.tensor([40.0, 8, 3, 1], dtype=torch.float64), torch.tensor([60.0, 92, 97, 99], dtype=torch.float64)
)
FAMILY = ["ral", "bce", "focal", "cb", "asl", "cw_asl", "apl"]
ROW_SEPARABLE = [name for name in LOSSES if LOSSES[name].separable]
BY_LABEL = [name for name in LOSSES if LOSSES[name].by_label]


def build(name: str, reduction: Any = "mean", **options: Any) -> torch.nn.Module:
    loss = build_loss(name, options, THRESHOLD_METRICS, reduction)
    loss.set_epoch(1)
    return loss


def draw(rows: int = 24, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    return x.to(dtype), (torch.rand(rows, 4, generator=generator) < 0.3).to(torch.float32)


def gradient(loss: torch.nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().clone().requires_grad_()
    out = loss(x, y)
    out.sum().backward()
    assert x.grad is not None
    return out.detach(), x.grad


def same(first: torch.nn.Module, second: torch.nn.Module) -> None:
    x, y = draw()
    for a, b in zip(gradient(first, x, y), gradient(second, x, y), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_ladder() -> None:
    asl = {"detach_focus": False, "clip": 0.0}
    same(build("asl", gamma_pos=0.0, gamma_neg=0.0, **asl), build("bce"))
    same(build("asl", gamma_pos=2.0, gamma_neg=2.0, **asl), build("focal"))
    positives = torch.ones(24, 4)
    x, _ = draw()
    plain = {"epsilon_pos": 0.0, "epsilon_pos_pow": 0.0, "gamma_pos": 1.0}
    for first, second in [
        (build("ral", **plain), build("asl", detach_focus=False)),
        (build("ral"), build("apl")),
    ]:
        torch.testing.assert_close(gradient(first, x, positives), gradient(second, x, positives))


def test_paper_form_keeps_only_one_factor() -> None:
    x = torch.tensor([[0.3]], dtype=torch.float64)
    y = torch.zeros_like(x)
    p = torch.sigmoid(x)
    extra = p**2 * (1.5 - (1 - p + 0.05))
    paper, code = (RAL(reduction="sum", form=form)(x, y) for form in ("paper", "code"))
    assert code.item() == pytest.approx((paper * extra).item(), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_unknown_labels_are_as_if_absent(name: str) -> None:
    x, y = draw()
    y[:, 0] = 0
    unknown = torch.rand(24, 4, generator=torch.Generator().manual_seed(1)) < 0.2
    masked = y.masked_fill(unknown, torch.nan)
    _, slope = gradient(build(name, "sum"), x, masked)
    assert (slope[unknown] == 0).all()
    assert torch.isfinite(slope).all()
    moved = x.masked_fill(unknown, 7.0)  # logits at unknown labels have no effect
    torch.testing.assert_close(build(name)(moved, masked), build(name)(x, masked))
    if name in BY_LABEL:
        parts = [build(name, "none")(x, masked)[~unknown]]
        torch.testing.assert_close(build(name)(x, masked), torch.cat(parts).mean())


@pytest.mark.parametrize("name", LOSSES)
def test_reductions(name: str) -> None:
    x, y = draw()
    none = build(name, "none")(x, y)
    torch.testing.assert_close(build(name, "sum")(x, y), none.sum())
    if name in ROW_SEPARABLE:
        torch.testing.assert_close(build(name)(x, y), none.mean())


@pytest.mark.parametrize("name", ROW_SEPARABLE)
def test_rows_do_not_act_on_each_other(name: str) -> None:
    x, y = draw()
    halves = build(name, "sum")(x[:10], y[:10]) + build(name, "sum")(x[10:], y[10:])
    torch.testing.assert_close(build(name, "sum")(x, y), halves)


@pytest.mark.parametrize(
    "name", [name for name in LOSSES if name not in ("asl", "apl", "mfm", "splc", "dice", "rlc")]
)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_derivative(name: str, reduction: str) -> None:
    x, y = draw(6)
    assert torch.autograd.gradcheck(lambda z: build(name, reduction)(z, y), x.requires_grad_())


@pytest.mark.parametrize("changes", [{"gamma_neg": 0.5, "clip": 0.0}, {"gamma_pos": 0.5}, {"gamma_neg": 1.0, "epsilon_neg": 0.4},
                                     {"gamma_neg": 0.0, "epsilon_neg": 0.4}, {"gamma_neg": 2.5, "form": "paper"}])  # fmt: skip
def test_derivative_for_other_exponents(changes: dict[str, Any]) -> None:
    x, y = draw(6)
    assert torch.autograd.gradcheck(lambda z: build("ral", **changes)(z, y), x.requires_grad_())
    far = torch.tensor([[-1e4, -120.0, 120.0, 1e4]]).requires_grad_()
    for target in (0.0, 1.0):
        assert torch.isfinite(gradient(build("ral", **changes), far, torch.full_like(far, target))[1]).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_everywhere_with_the_right_sign(name: str, dtype: torch.dtype) -> None:
    points = torch.tensor([-1e4, -300, -40, -18, -1, 0, 1, 18, 40, 300, 1e4, 0.5], dtype=dtype).reshape(3, 4)
    for target in (0.0, 1.0):
        out, slope = gradient(build(name, "sum"), points, torch.full((3, 4), target))
        assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert slope.dtype == dtype
        assert torch.isfinite(out)
        assert torch.isfinite(slope).all()
        if name == "z_loss":  # all labels are equal here: nothing to learn
            assert (slope == 0).all()
            continue
        if name not in ("splc", "rlc"):  # they treat confident negatives as positives
            assert ((slope <= 0) if target else (slope >= -1e-6)).all()
        if (
            target and name in BY_LABEL
        ):  # in the others the hardest positives get the gradient, or those near 0
            assert slope[0, 2] < -0.1  # a positive at -40 still has a gradient
    mixed = torch.tensor([[0.0, 1, 0, 1]]).expand(3, 4)
    assert torch.isfinite(gradient(build(name, "sum"), points, mixed)[1]).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_float32_of_the_same_numbers(name: str, dtype: torch.dtype) -> None:
    x, y = draw(dtype=dtype)
    out, slope = gradient(build(name, "sum"), x, y)
    full, full_slope = gradient(build(name, "sum"), x.float(), y)
    torch.testing.assert_close(out, full)
    torch.testing.assert_close(slope, full_slope.to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(build(name, "sum")(x.float(), y), full)


@pytest.mark.parametrize("name", FAMILY)
def test_strides_shapes_and_empty_batches(name: str) -> None:
    x, y = draw()
    wide = torch.stack([x, -x], -1)[..., 0]
    assert not wide.is_contiguous()
    torch.testing.assert_close(gradient(build(name), wide, y), gradient(build(name), x, y))
    torch.testing.assert_close(build(name)(x.T.contiguous().T, y), build(name)(x, y))
    out, slope = gradient(build(name), x[:0], y[:0])
    assert out.item() == 0
    assert slope.shape == (0, 4)
    with pytest.raises(ValueError, match="differ in shape"):
        build(name)(x, y[:3])


def test_integer_and_boolean_targets_and_class_weights() -> None:
    x, y = draw()
    for kind in (torch.int64, torch.bool, torch.float16):
        torch.testing.assert_close(RAL()(x, y.to(kind)), RAL()(x, y))
    weight = torch.tensor([1.0, 2, 3, 4])
    torch.testing.assert_close(
        RAL(reduction="sum", class_weight=weight)(x, y), (RAL(reduction="none")(x, y) * weight).sum()
    )
    with pytest.raises(ValueError, match="class_weight has shape"):
        RAL(class_weight=torch.ones(3))(x, y)


@pytest.mark.parametrize("name", FAMILY)
def test_blocks_are_the_dense_formula(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ral.losses.fused as fused

    monkeypatch.setattr(fused, "BLOCK", 20)
    x, y = draw()
    y[3, 1] = torch.nan
    formula = build(name).compiled_formula
    weight = torch.rand(2, 4, dtype=torch.float64)
    for first, second in zip(
        _blocked(x, y, formula, weight, x.dtype, True),
        _dense(x, y, formula, weight, x.dtype, True),
        strict=True,
    ):
        torch.testing.assert_close(first, second)


def test_kept_graph_and_second_derivative() -> None:
    x, y = draw()
    x.requires_grad_()
    out = RAL()(2 * x, y)
    (first,) = torch.autograd.grad(out, x, retain_graph=True)
    (second,) = torch.autograd.grad(out, x)
    torch.testing.assert_close(first, second)
    with pytest.raises(RuntimeError, match="does not support double backward"):
        torch.autograd.grad(RAL()(x, y), x, create_graph=True)


def test_one_tensor_is_kept() -> None:
    sizes: list[int] = []
    x, y = draw(64)

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        RAL()(x.requires_grad_(), y)
    assert sizes == [x.numel()]


def test_wrong_names_list_the_right_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown loss `foal`.*Did you mean `focal`.*zlpr"):
        build_loss("foal")
    with pytest.raises(ValueError, match=r"RAL: gama_neg: .*Options: form, gamma_pos"):
        build_loss("ral", {"gama_neg": 3.0})
    with pytest.raises(ValueError, match="DB needs the training images per finding"):
        build_loss("db")
    with pytest.raises(ValueError, match="reduction is 'avg'"):
        build_loss("bce", reduction="avg")  # type: ignore[arg-type]


def test_compiled_gives_the_same_numbers() -> None:
    x, y = draw(64, dtype=torch.float32)
    torch.testing.assert_close(
        gradient(torch.compile(RAL()), x, y), gradient(RAL(), x, y), rtol=1e-5, atol=1e-7
    )


KERNEL = """
import itertools, sys
import torch
from ral.losses import LOSSES, build_loss
from ral.losses.fused import Formula, _blocked
from ral.losses import kernel
from ral.losses.kernel import run_kernel
kernel.PROGRAMS = 4  # so that a program handles more than one block
torch.manual_seed(0)
formulas = (build_loss("ral").compiled_formula, build_loss("apl").compiled_formula, Formula(),
            Formula(2.0, 2.0), Formula(0.0, 3.5, 0.05, 1.0, -2.5, 0.3, 1.7, 1), Formula(0.5, 0.5, 0.05, 1.0, -2.5, 0.3, 1.7, 2))
types = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
x, y, w = 6 * torch.randn(457, 13), (torch.rand(457, 13) < 0.2).float(), torch.rand(2, 13)
y[3, 4] = torch.nan
cases = itertools.product(enumerate(formulas), enumerate(types), enumerate((None, w)), enumerate(("mean", "sum", "none")))
for (i, formula), (j, dtype), (k, weight), (l, reduction) in cases:
    if (i + j + k + l) % int(sys.argv[1]):
        continue
    wide = torch.promote_types(dtype, torch.float32)
    weights = None if weight is None else weight.to(wide)
    found = run_kernel(x.to(dtype), y, formula, weights, wide, reduction)
    wanted = _blocked(x.to(dtype), y, formula, weights, wide, reduction)
    assert (found[2] is None) == (wanted[2] is None) == (reduction != "mean")
    for a, b in list(zip(found, wanted))[:3 if reduction == "mean" else 2]:
        torch.testing.assert_close(a, b, rtol=1.6e-2 if dtype == torch.bfloat16 else 1e-3 if dtype == torch.float16 else 1e-5, atol=1e-6)
print("same")
"""


@pytest.mark.parametrize("every", ["4", pytest.param("1", marks=pytest.mark.long)])
def test_kernel_in_triton_s_interpreter(every: str) -> None:
    """Every fourth of all combinations of formula, type, weight and reduction, which has all pairs of these."""
    pytest.importorskip("triton", reason="Triton is not installed (Linux on x86-64 only)")
    import os

    done = subprocess.run(
        [sys.executable, "-c", KERNEL, every],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "same\n", done.stderr


def test_kernel_compiles_for_a_gpu_that_is_not_here() -> None:
    pytest.importorskip("triton", reason="Triton is not installed (Linux on x86-64 only)")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ral.losses.fused import Formula
    from ral.losses.kernel import BLOCK, PROGRAMS, _loss_kernel, _sum_kernel

    for logits, sums, wide in (
        ("*fp32", "*fp32", False),
        ("*bf16", "*fp32", False),
        ("*fp64", "*fp64", True),
    ):
        signature = {
            "x_ptr": logits,
            "y_ptr": "*fp32",
            "weight_ptr": sums,
            "value_ptr": sums,
            "slope_ptr": logits,
            "sum_ptr": sums,
        }
        signature |= {"known_ptr": "*i32", "count": "i64", "width": "i32"}
        constants = dict(zip(Formula._fields, build("ral").compiled_formula, strict=True))
        constants |= {"weighted": True, "elementwise": True, "wide": wide, "block": BLOCK}
        signature |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=_loss_kernel, signature=signature, constexprs=constants)
        assert "cubin" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm
        signature = {
            "sum_ptr": sums,
            "known_ptr": "*i32",
            "value_ptr": sums,
            "scale_ptr": sums,
            "programs": "i32",
        }
        constants = {"mean": True, "block": PROGRAMS}
        signature |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=_sum_kernel, signature=signature, constexprs=constants)
        assert "cubin" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm
