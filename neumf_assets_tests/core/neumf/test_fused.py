"""The fused tower against float64 autograd, its determinism, and how it is built."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn.functional import softplus

from neumf_assets.core.neumf.fused import library
from neumf_assets.core.neumf.fused.tower import (
    SparseTargets,
    available,
    fused_block_forward,
    fused_block_loss,
)

TOLERANCE = {"float32": 1e-5, "bfloat16": 4e-3}
DEFAULT_TOWER = (64, 32, 16, 8)


def require(precision: str) -> None:
    usable, reason = available(precision)  # type: ignore[arg-type]
    if not usable:
        pytest.skip(reason)


@pytest.fixture(params=["float32", "bfloat16"])
def precision(request: pytest.FixtureRequest) -> str:
    require(request.param)
    return str(request.param)


@dataclass
class Case:
    """A random block and its tower."""

    cells: int
    genes: int
    tower: tuple[int, ...]
    seed: int = 0
    parameters: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        rng = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return scale * torch.randn(*shape, generator=rng)

        first, last = self.tower[0], self.tower[-1]
        self.parameters = {
            "f0": normal(self.cells, self.genes, scale=0.5),
            "a": normal(self.cells, first),
            "c": normal(self.genes, first),
            "out": normal(last, scale=last**-0.5),
            "log_dispersion": normal(self.genes),
        }
        for i, (m, n) in enumerate(zip(self.tower, self.tower[1:], strict=False)):
            self.parameters[f"w{i}"] = normal(n, m, scale=(2 / m) ** 0.5)
            self.parameters[f"b{i}"] = normal(n, scale=0.1)
        self.log_size = normal(self.cells, scale=0.3)
        self.y = torch.poisson(torch.rand(self.cells, self.genes, generator=rng), generator=rng)
        self.y[0, 0] = 30.5  # a large count that is no integer

    def leaves(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: value.to(dtype).clone().requires_grad_() for name, value in self.parameters.items()}

    def layers(self, leaves: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        numbers = range(len(self.tower) - 1)
        return [leaves[f"w{i}"] for i in numbers], [leaves[f"b{i}"] for i in numbers]


class Rounded(torch.autograd.Function):
    """To bfloat16 and back; the gradient passes as it is."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.bfloat16().to(x.dtype)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


class RoundedGradient(torch.autograd.Function):
    """As it is; the gradient is rounded to bfloat16."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad.bfloat16().to(grad.dtype)


def predictor(case: Case, leaves: dict[str, Tensor], precision: str) -> Tensor:
    """Return f; for bfloat16 with the operands of every product rounded, and nothing else.

    A rectifier near zero flips with the rounding, so unrounded references are only good for averages.
    """
    rounded = Rounded.apply if precision == "bfloat16" else torch.clone
    rounded_gradient = RoundedGradient.apply if precision == "bfloat16" else torch.clone
    hidden = (leaves["a"][:, None] + leaves["c"][None]).relu()
    for weight, bias in zip(*case.layers(leaves), strict=True):
        hidden = rounded_gradient(rounded(hidden) @ rounded(weight).T + bias).relu()
    return leaves["f0"] + hidden @ leaves["out"]


def reference_loss(
    case: Case, leaves: dict[str, Tensor], objective: str, mask: Tensor | None, precision: str
) -> Tensor:
    f, y, log_size = predictor(case, leaves, precision), case.y.double(), case.log_size.double()[:, None]
    log_mean = (f + log_size).clamp(max=14.0)
    mean = log_mean.exp()
    if objective == "poisson":
        loss = mean - y * log_mean
    elif objective == "nb":
        theta = leaves["log_dispersion"].exp()
        logits = log_mean - leaves["log_dispersion"]
        likelihood = torch.distributions.NegativeBinomial(theta, logits=logits, validate_args=False)
        loss = -likelihood.log_prob(y) - torch.lgamma(y + 1)
    elif objective == "mse":
        loss = (log_size.exp() * f - y).square()
    else:
        loss = softplus(f) - f * (y > 0)
    return loss.sum() if mask is None else (loss * mask).sum()


Gradients = dict[str, Tensor]


def reference(
    case: Case, precision: str, objective: str = "poisson", mask: Tensor | None = None
) -> Gradients:
    """Return loss and gradients by float64 autograd, with the rounding of ``precision``."""
    leaves = case.leaves(torch.float64)
    return gradients(leaves, reference_loss(case, leaves, objective, mask, precision))


def kernel(
    case: Case, precision: str, objective: str = "poisson", mask: Tensor | None = None, **options: object
) -> Gradients:
    """Return loss and gradients of the kernel."""
    leaves = case.leaves(torch.float32)
    return gradients(leaves, run(case, leaves, precision, objective, mask=mask, **options))


def gradients(leaves: dict[str, Tensor], loss: Tensor) -> Gradients:
    loss.backward()
    return {"loss": loss.detach()} | {k: leaf.grad for k, leaf in leaves.items() if leaf.grad is not None}


def run(case: Case, leaves: dict[str, Tensor], precision: str, objective: str, **options: object) -> Tensor:
    options = {"y": case.y, "threads": 2} | options
    return fused_block_loss(
        leaves["f0"],
        leaves["a"],
        leaves["c"],
        *case.layers(leaves),
        leaves["out"],
        case.log_size,
        objective=objective,  # type: ignore[arg-type]
        log_dispersion=leaves["log_dispersion"] if objective == "nb" else None,
        precision=precision,  # type: ignore[arg-type]
        **options,  # type: ignore[arg-type]
    )


def error(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-12))


def assert_same(ours: Gradients, exact: Gradients, tolerance: float = TOLERANCE["float32"]) -> None:
    assert ours.keys() == exact.keys()
    for name, value in exact.items():
        assert error(ours[name], value) <= tolerance, name


@pytest.mark.parametrize("objective", ["poisson", "nb", "mse", "bce"])
def test_loss_and_gradients_match_float64(objective: str, precision: str) -> None:
    case = Case(9, 203, DEFAULT_TOWER)
    ours = kernel(case, precision, objective)
    assert_same(ours, reference(case, precision, objective), TOLERANCE[precision])
    assert ours.keys() >= {"loss", "f0", "a", "c", "w0", "w2", "b0", "b2", "out"}
    assert ("log_dispersion" in ours) == (objective == "nb")


@pytest.mark.parametrize(
    ("cells", "genes", "tower"),
    [
        (1, 1, DEFAULT_TOWER),
        (1, 97, DEFAULT_TOWER),
        (33, 1, DEFAULT_TOWER),
        (7, 31, (64,)),
        (6, 65, (50, 20)),
        (5, 40, (128, 64, 32, 16, 8)),
        (4, 50, (7, 5, 3)),
        (3, 35, (16, 48, 24)),
        (2, 300, (256, 96)),
    ],
)
def test_any_shape(cells: int, genes: int, tower: tuple[int, ...], precision: str) -> None:
    case = Case(cells, genes, tower, seed=3)
    assert_same(kernel(case, precision), reference(case, precision), TOLERANCE[precision])


def test_masked_entries_do_not_count(precision: str) -> None:
    case = Case(6, 70, DEFAULT_TOWER)
    mask = torch.rand(6, 70, generator=torch.Generator().manual_seed(1)) < 0.7
    ours = kernel(case, precision, mask=mask)
    assert_same(ours, reference(case, precision, mask=mask), TOLERANCE[precision])
    assert bool((ours["f0"][~mask] == 0).all())


def test_targets_from_csr_and_held_out_lists_equal_the_dense_form(precision: str) -> None:
    case = Case(6, 70, DEFAULT_TOWER)
    matrix = csr_matrix(np.vstack([np.ones((2, 70)), case.y.numpy()]).astype(np.float32))
    order = torch.tensor([5, 2, 7, 3, 4, 6])  # the cells of the block are any rows of the matrix
    case.y = torch.as_tensor(matrix[order.numpy()].toarray())
    held = torch.stack([torch.randperm(71, generator=torch.Generator().manual_seed(i))[:8] for i in range(6)])
    mask = torch.ones(6, 71, dtype=torch.bool).scatter_(1, held, False)[:, :70]
    indptr = torch.as_tensor(matrix.indptr.astype(np.int64))
    sparse = SparseTargets(
        indptr[order],
        (indptr[1:] - indptr[:-1])[order],
        torch.as_tensor(matrix.indices),
        torch.as_tensor(matrix.data),
    )
    masked = kernel(case, precision, mask=mask)
    listed = kernel(case, precision, y=sparse, held_out=held)
    blank = kernel(case, precision, y=case.y.masked_fill(~mask, torch.nan))
    for name, value in masked.items():
        assert torch.equal(listed[name], value), name
        assert torch.equal(blank[name], value), name


def test_targets_of_some_genes_of_a_matrix(precision: str) -> None:
    case = Case(6, 40, DEFAULT_TOWER)
    generator = torch.Generator().manual_seed(1)
    genes = torch.randperm(70, generator=generator)[:40]  # the block's genes, in an order of their own
    whole = torch.poisson(torch.rand(6, 70, generator=generator), generator=generator)
    case.y = whole[:, genes]
    held = torch.randint(0, 71, (6, 9), generator=generator)
    mask = torch.ones(6, 71, dtype=torch.bool).scatter_(1, held, False)[:, genes]
    matrix = csr_matrix(whole.numpy())
    indptr = torch.as_tensor(matrix.indptr.astype(np.int64))
    column = torch.full((70,), -1, dtype=torch.int32)
    column[genes] = torch.arange(40, dtype=torch.int32)
    sparse = SparseTargets(
        indptr[:-1], indptr.diff(), torch.as_tensor(matrix.indices), torch.as_tensor(matrix.data), column
    )
    masked = kernel(case, precision, mask=mask)
    listed = kernel(case, precision, y=sparse, held_out=held)
    assert all(torch.equal(listed[name], value) for name, value in masked.items())


def test_predictor_above_its_bound_has_no_gradient(precision: str) -> None:
    case = Case(2, 20, DEFAULT_TOWER)
    case.parameters["f0"][0] = 100.0
    ours = kernel(case, precision)
    assert_same(ours, reference(case, precision), TOLERANCE[precision])
    assert bool((ours["f0"][0] == 0).all())
    assert bool((ours["a"][0] == 0).all())


def test_scale_and_outer_gradient_multiply(precision: str) -> None:
    case = Case(3, 40, DEFAULT_TOWER)
    plain, scaled = case.leaves(torch.float32), case.leaves(torch.float32)
    run(case, plain, precision, "poisson").backward()
    (2.0 * run(case, scaled, precision, "poisson", scale=0.25)).backward()
    for name in ("f0", "a", "c", "w0", "b1", "out"):
        torch.testing.assert_close(scaled[name].grad, 0.5 * plain[name].grad)


def test_prediction_is_the_predictor(precision: str) -> None:
    case = Case(5, 77, DEFAULT_TOWER)
    leaves = case.parameters
    ours = fused_block_forward(
        leaves["f0"],
        leaves["a"],
        leaves["c"],
        *case.layers(leaves),
        leaves["out"],
        precision=precision,  # type: ignore[arg-type]
    )
    exact = predictor(case, case.leaves(torch.float64), precision).detach()
    assert error(ours, exact) <= TOLERANCE[precision]


def test_bfloat16_is_near_unrounded_float64() -> None:
    require("bfloat16")
    case = Case(64, 512, DEFAULT_TOWER)
    ours, exact = kernel(case, "bfloat16", "bce"), reference(case, "float32", "bce")
    assert_same(ours, exact, 0.1)  # sums over entries whose gradients cancel
    assert error(ours["loss"], exact["loss"]) < 1e-3
    assert error(ours["f0"], exact["f0"]) < 0.01


def test_same_result_bit_for_bit(precision: str) -> None:
    case = Case(16, 300, DEFAULT_TOWER)
    first = kernel(case, precision)
    for _ in range(3):
        again = kernel(case, precision)
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_any_number_of_threads_agrees(precision: str) -> None:
    case = Case(4, 150, DEFAULT_TOWER)
    one = kernel(case, precision, threads=1)
    for threads in (2, 3, 64):
        assert_same(kernel(case, precision, threads=threads), one)


def test_overwriting_f0_changes_nothing_else(precision: str) -> None:
    case = Case(4, 50, DEFAULT_TOWER)
    fresh = kernel(case, precision)
    leaves = case.leaves(torch.float32)
    f0 = leaves["f0"] * 1.0
    run(case, leaves | {"f0": f0}, precision, "poisson", overwrite_f0=True).backward()
    assert all(torch.equal(leaves[name].grad, fresh[name]) for name in ("f0", "a", "w1"))  # type: ignore[arg-type]


def test_wrong_shapes_are_refused() -> None:
    require("float32")
    case = Case(4, 50, DEFAULT_TOWER)
    with pytest.raises(ValueError, match="y has shape"):
        run(case, case.leaves(torch.float32), "float32", "poisson", y=case.y[:, :-1])
    with pytest.raises(ValueError, match="at most 5 hidden layers"):
        kernel(Case(2, 3, (8,) * 6), "float32")


BUILD = """
import sys
from pathlib import Path
from neumf_assets.core.neumf.fused import library
print(library.build(library.find_compiler(), Path(sys.argv[1])))
"""


def test_concurrent_builds_leave_one_usable_library(tmp_path: Path) -> None:
    if not library.find_compiler():
        pytest.skip("no C++ compiler")
    started = [
        subprocess.Popen([sys.executable, "-c", BUILD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = {process.communicate()[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0]
    assert printed == {str(path) for path in tmp_path.iterdir()}
    assert len(printed) == 1


def test_without_a_compiler_the_kernel_says_so(tmp_path: Path) -> None:
    code = "from neumf_assets.core.neumf.fused.tower import available; print(available())"
    environment = os.environ | {"CXX": str(tmp_path / "missing"), "NEUMF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("(False, 'no C++ compiler")


def test_one_build_serves_every_home_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("NEUMF_HOME", str(tmp_path / "home"))
    assert library.cache_folder() == tmp_path / "user" / "neumf-assets" / "fused"


def test_a_user_without_a_folder_gets_the_build_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("NEUMF_HOME", str(tmp_path / "home"))
    assert library.cache_folder() == tmp_path / "home" / "cache" / "neumf-assets" / "fused"
    monkeypatch.delenv("NEUMF_HOME")
    with pytest.raises(library.KernelUnavailable, match="no folder to build the kernel in"):
        library.cache_folder()


def test_an_account_without_a_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", staticmethod(none))
    monkeypatch.setenv("NEUMF_HOME", str(tmp_path))
    assert library.cache_folder() == tmp_path / "cache" / "neumf-assets" / "fused"
    monkeypatch.delenv("NEUMF_HOME")
    with pytest.raises(library.KernelUnavailable, match="Could not determine home directory"):
        library.cache_folder()


FIRST_USE = """
import torch
from neumf_assets.core.neumf.fused.tower import available
with torch.{mode}():
    for precision in ("bfloat16", "float32"):
        usable, reason = available(precision)
        assert usable or "matrix instructions" in reason or "compiler" in reason, reason
"""


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_the_first_to_use_the_kernel_may_be_a_prediction(mode: str) -> None:
    subprocess.run([sys.executable, "-c", FIRST_USE.format(mode=mode)], check=True)
