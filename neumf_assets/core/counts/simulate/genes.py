"""The genes of a simulated study: what they are called, how abundant they are, what changes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from neumf_assets.core.counts.simulate.settings import SimulatorSettings
from neumf_assets.core.counts.simulate.streams import Floats, Ints
from neumf_assets.core.counts.simulate.symbols import (
    INTERFERON,
    MARKERS,
    MITOCHONDRIAL,
    RIBOSOMAL,
    family_symbols,
)

_LN2 = float(np.log(2.0))


@dataclass(frozen=True)
class GeneTruth:
    """What is true of the genes of a simulated study.

    Attributes
    ----------
    symbols
        Gene symbols, genes; one occurs twice.
    factors
        Natural-log effects ``v``, genes × factors, float64.
    factor_names
        Names of the factors: ``library``, ``abundance``, ``program: NAME``, ``response``,
        ``response in TYPE``, ``batch DATASET``, ``variable N``, ``mitochondrial``.
    markers
        Program or type -> positions of its marker genes.
    response_genes
        Positions of the genes that every stimulated cell raises.
    specific_response_genes
        Type -> positions of the genes that stimulated cells of this type, and not all types, raise.
    response_scale
        Type -> how strongly it answers (1: as set).
    theta
        Negative-binomial size per gene: ``var = mu + mu^2 / theta``.
    """

    symbols: tuple[str, ...]
    factors: Floats
    factor_names: tuple[str, ...]
    markers: dict[str, Ints]
    response_genes: Ints
    specific_response_genes: dict[str, Ints]
    response_scale: dict[str, float]
    theta: Floats

    def effect(self, name: str) -> Floats:
        """Natural-log effect of the factor ``name`` on each gene."""
        return self.factors[:, self.factor_names.index(name)]


@dataclass(frozen=True)
class _Roles:
    """Which genes do what, before they are shuffled."""

    mito: Ints
    ribo: Ints
    markers: dict[str, Ints]
    response: Ints
    specific_response: dict[str, Ints]

    @property
    def specific(self) -> Ints:
        return np.unique(np.concatenate([np.zeros(0, np.int64), *self.specific_response.values()]))


def assign_roles(rng: np.random.Generator, settings: SimulatorSettings) -> _Roles:
    """Say which genes are markers, mitochondrial, ribosomal or respond, before they are shuffled."""
    genes, n = np.arange(settings.genes), settings.genes
    mito, ribo = genes[: min(len(MITOCHONDRIAL), n // 50)], genes[-min(len(RIBOSOMAL), n // 50) :]
    middle = iter(rng.permutation(genes[len(mito) : n - len(ribo)]))
    markers = {p: _take(middle, settings.markers_per_program) for p in settings.programs}
    specific = round(settings.response_genes * settings.response_specific_share)
    response = _take(middle, settings.response_genes - specific)
    return _Roles(
        mito, ribo, markers, response, _assign_specific_response(rng, settings, _take(middle, specific))
    )


def draw_effects(rng: np.random.Generator, settings: SimulatorSettings, roles: _Roles) -> dict[str, Floats]:
    """Natural-log effect of each factor on each gene."""
    n = settings.genes
    effects = {"library": np.ones(n), "abundance": _abundance_ranks(rng, n, roles)}
    for program, chosen in roles.markers.items():
        effects[f"program: {program}"] = _fold_changes(rng, n, chosen, settings.marker_strength)
    effects["response"] = _fold_changes(rng, n, roles.response, settings.response_strength)
    for cell_type, chosen in roles.specific_response.items():
        effects[f"response in {cell_type}"] = _fold_changes(rng, n, chosen, settings.response_strength)
    for dataset in settings.datasets:
        effects[f"batch {dataset.name}"] = rng.normal(0.0, settings.batch_strength * _LN2, n)
    for number in range(settings.variable_programs):
        touched = rng.random(n) < 0.1
        effects[f"variable {number + 1}"] = touched * rng.normal(0.0, settings.variable_strength * _LN2, n)
    effects["mitochondrial"] = np.isin(np.arange(n), roles.mito).astype(np.float64)
    return effects


def _take(genes: Iterator[np.int64], count: int) -> Ints:
    return np.array([next(genes) for _ in range(count)], dtype=np.int64)


def _assign_specific_response(
    rng: np.random.Generator, settings: SimulatorSettings, chosen: Ints
) -> dict[str, Ints]:
    """Each gene responds in up to a third of the types, so that neighbours differ in their answer."""
    types = list(settings.cell_types)
    most = max(1, len(types) // 3)
    member = np.zeros((len(chosen), len(types)), dtype=bool)
    for row in member:
        row[rng.choice(len(types), size=rng.integers(1, most + 1), replace=False)] = True
    return {cell_type: chosen[member[:, t]] for t, cell_type in enumerate(types)}


def name_genes(rng: np.random.Generator, n: int, roles: _Roles) -> list[str]:
    """Symbols by role; the two last unnamed genes share one symbol, as MATR3 does in 10x references."""
    named: dict[int, str] = {}
    known = [(roles.mito, MITOCHONDRIAL), (roles.ribo, RIBOSOMAL)]
    known += [(chosen, MARKERS.get(program, ())) for program, chosen in roles.markers.items()]
    known.append((np.concatenate([roles.response, roles.specific]), INTERFERON))
    for chosen, symbols in known:
        named.update(zip(chosen.tolist(), symbols, strict=False))
    rest = [gene for gene in range(n) if gene not in named]
    named.update(zip(rest, family_symbols(rng, len(rest), set(named.values())), strict=True))
    named[rest[-2]] = named[rest[-1]] = "MATR3"
    return [named[gene] for gene in range(n)]


def _abundance_ranks(rng: np.random.Generator, n: int, roles: _Roles) -> Floats:
    """Standardised log abundance: a bell of all genes, in which roles have their place.

    Ribosomal and mitochondrial genes are abundant; markers and response genes are common enough to be seen
    once they are raised.
    """
    # no gene may take most of the library, none be never seen
    abundance = np.clip(rng.normal(size=n), -1.0, 2.6)
    abundance[roles.ribo] = rng.normal(1.4, 0.3, len(roles.ribo))
    abundance[roles.mito] = rng.normal(1.4, 0.3, len(roles.mito))
    raised = np.unique(np.concatenate([*roles.markers.values(), roles.response, roles.specific]))
    abundance[raised] = rng.normal(0.7, 0.5, len(raised))
    return abundance


def _fold_changes(rng: np.random.Generator, n: int, chosen: Ints, mean_log2: float) -> Floats:
    """Natural-log effects: ``chosen`` genes around ``mean_log2``, never negative, their mean exactly that."""
    effect = np.zeros(n)
    if len(chosen):
        drawn = np.clip(rng.normal(1.0, 0.25, len(chosen)), 0.2, None)
        effect[chosen] = drawn / drawn.mean() * mean_log2 * _LN2
    return effect
