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

TOLERANCE = {"float32": 1e-5, "bfloat16": 1.5e-2}
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


def predictor(case: Case, leaves: dict[str, Tensor]) -> Tensor:
    hidden = (leaves["a"][:, None] + leaves["c"][None]).relu()
    for weight, bias in zip(*case.layers(leaves), strict=True):
        hidden = (hidden @ weight.T + bias).relu()
    return leaves["f0"] + hidden @ leaves["out"]


def reference_loss(case: Case, leaves: dict[str, Tensor], objective: str, mask: Tensor | None) -> Tensor:
    f, y, log_size = predictor(case, leaves), case.y.double(), case.log_size.double()[:, None]
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


def both(
    case: Case, precision: str, objective: str = "poisson", mask: Tensor | None = None, **options: object
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return loss and gradients of the kernel and of float64 autograd."""
    ours, exact = case.leaves(torch.float32), case.leaves(torch.float64)
    loss = run(case, ours, precision, objective, mask=mask, **options)
    loss.backward()
    expected = reference_loss(case, exact, objective, mask)
    expected.backward()
    used = [name for name, value in exact.items() if value.grad is not None]
    return (
        {"loss": loss.detach()} | {name: ours[name].grad for name in used},  # type: ignore[dict-item]
        {"loss": expected.detach()} | {name: exact[name].grad for name in used},  # type: ignore[dict-item]
    )


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


def assert_close(ours: dict[str, Tensor], exact: dict[str, Tensor], tolerance: float) -> None:
    for name, value in exact.items():
        error = (ours[name].double() - value).norm() / value.norm().clamp_min(1e-12)
        assert error <= tolerance, f"{name} is off by {error:.2g}"


@pytest.mark.parametrize("objective", ["poisson", "nb", "mse", "bce"])
def test_loss_and_gradients_match_float64(objective: str, precision: str) -> None:
    ours, exact = both(Case(9, 203, DEFAULT_TOWER), precision, objective)
    assert set(exact) >= {"loss", "f0", "a", "c", "w0", "w2", "b0", "b2", "out"}
    assert ("log_dispersion" in exact) == (objective == "nb")
    assert_close(ours, exact, TOLERANCE[precision])


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
    ours, exact = both(Case(cells, genes, tower, seed=3), precision)
    # a single pair averages no rounding away
    assert_close(ours, exact, TOLERANCE[precision] * (2 if cells * genes < 50 else 1))


def test_masked_entries_do_not_count(precision: str) -> None:
    case = Case(6, 70, DEFAULT_TOWER)
    mask = torch.rand(6, 70, generator=torch.Generator().manual_seed(1)) < 0.7
    ours, exact = both(case, precision, mask=mask)
    assert_close(ours, exact, TOLERANCE[precision])
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
    masked, _ = both(case, precision, mask=mask)
    listed, _ = both(case, precision, y=sparse, held_out=held)
    blank, _ = both(case, precision, y=case.y.masked_fill(~mask, torch.nan))
    for name, value in masked.items():
        assert torch.equal(listed[name], value), name
        assert torch.equal(blank[name], value), name


def test_predictor_above_its_bound_has_no_gradient(precision: str) -> None:
    case = Case(2, 20, DEFAULT_TOWER)
    case.parameters["f0"][0] = 100.0
    ours, exact = both(case, precision)
    assert bool((ours["f0"][0] == 0).all())
    assert float(ours["loss"]) == pytest.approx(float(exact["loss"]), rel=1e-5)


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
    exact = predictor(case, case.leaves(torch.float64))
    assert_close({"f": ours}, {"f": exact.detach()}, TOLERANCE[precision])


def test_same_result_bit_for_bit(precision: str) -> None:
    case = Case(16, 300, DEFAULT_TOWER)
    first, _ = both(case, precision)
    for _ in range(3):
        again, _ = both(case, precision)
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_any_number_of_threads_agrees(precision: str) -> None:
    case = Case(4, 150, DEFAULT_TOWER)
    one, _ = both(case, precision, threads=1)
    for threads in (2, 3, 64):
        many, _ = both(case, precision, threads=threads)
        assert_close(many, {name: value.double() for name, value in one.items()}, 1e-5)


def test_overwriting_f0_changes_nothing_else(precision: str) -> None:
    case = Case(4, 50, DEFAULT_TOWER)
    fresh, _ = both(case, precision)
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
        both(Case(2, 3, (8,) * 6), "float32")


BUILD = """
import sys
from pathlib import Path
from neumf_assets.core.neumf.fused import library
print(library.build(library.find_compiler(), Path(sys.argv[1])))
"""


def test_concurrent_builds_leave_one_usable_library(tmp_path: Path) -> None:
    if library.find_compiler() is None:
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


def test_cache_lies_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUMF_HOME", str(tmp_path))
    assert library.cache_folder() == tmp_path / "cache" / "fused"
