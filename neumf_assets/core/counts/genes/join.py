"""Genes of several datasets under one name each, and which datasets go together at all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import anndata as ad
import numpy as np
import pandas as pd

from neumf_assets.core.counts.genes.accessions import UNKNOWN, Names, Species, prefix_of

FEWEST_SHARED = 20
"""Genes that a dataset has to share with the others: fewer tell nothing of its cells."""
_NARROWER = 0.5


@dataclass(frozen=True)
class DatasetGenes:
    """The genes of a dataset.

    Attributes
    ----------
    names
        Their unique names in the dataset.
    symbols, ids
        Symbols and stable accessions; empty text where one is missing.
    species
        Of what species they are.
    cells
        How many cells the dataset has.
    """

    names: Names
    symbols: Names
    ids: Names
    species: Species = UNKNOWN
    cells: int = 0

    @classmethod
    def of(cls, var: pd.DataFrame, species: Species = UNKNOWN, cells: int = 0) -> DatasetGenes:
        """Take them from the table that readers make."""
        names = var.index.to_numpy(dtype=object)
        blank = np.full(len(names), "", dtype=object)

        def column(name: str) -> Names:
            return var[name].astype(str).to_numpy(dtype=object) if name in var else blank

        return cls(names, column("gene_symbol"), column("gene_id"), species, cells)


@dataclass(frozen=True)
class Joined:
    """Datasets that go together, over genes of one name each.

    Attributes
    ----------
    names
        By dataset, the name in the study of each of its genes, unique within the dataset.
    left_out
        Datasets that do not fit to the others, and why.
    said
        What a person should know of how they were joined.
    """

    names: dict[str, Names]
    left_out: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    @property
    def members(self) -> list[str]:
        """The datasets that go together."""
        return [name for name in self.names if name not in self.left_out]


def join_datasets(datasets: Mapping[str, DatasetGenes], fewest: int = FEWEST_SHARED) -> Joined:
    """Give genes one name in all datasets, and leave out datasets that do not fit to the others.

    Genes with the same accession are the same, whatever their symbols; where a dataset lacks accessions, genes
    with the same symbol are. Of the symbols that datasets have for an accession the most frequent is the name.
    Names as R mangles them (``HLA.A``) are those of the genes that they were made of, where this is one gene.

    Of datasets that contradict each other, those stay that fit to the most others (then: the most cells).

    Parameters
    ----------
    datasets
        The genes of each dataset.
    fewest
        Genes that a dataset has to share with all others.
    """
    left_out = _other_species(datasets)
    names, said = _names_of_genes({name: one for name, one in datasets.items() if name not in left_out})
    apart, narrow = _strangers(datasets, names, fewest)
    left_out |= apart
    for name in datasets:
        names.setdefault(name, datasets[name].names)
    return Joined({name: names[name] for name in datasets}, left_out, [*said, *narrow])


def _other_species(datasets: Mapping[str, DatasetGenes]) -> dict[str, str]:
    """Datasets of another species than most."""

    def fits(name: str) -> tuple[int, int]:
        one = datasets[name]
        others = [other for other in datasets.values() if not one.species.contradicts(other.species)]
        return len(others), sum(other.cells for other in others)

    told = [name for name in datasets if datasets[name].species.name]
    if not told:
        return {}
    chosen = datasets[max(told, key=fits)].species
    where = ", ".join(name for name in told if datasets[name].species.name == chosen.name)
    return {
        name: f"its genes are of {_said(one.species)}, those of {where} of {_said(chosen)}: cells of different "
        "species are not integrated. Analyse it in a study of its own"
        for name, one in datasets.items()
        if one.species.contradicts(chosen)
    }


def _said(species: Species) -> str:
    return species.name if species.sure else f"{species.name} (by how its symbols are written)"


def _names_of_genes(datasets: Mapping[str, DatasetGenes]) -> tuple[dict[str, Names], list[str]]:
    """The name of every gene of every dataset, and what was mended."""
    named = _names_by_id(datasets)
    aliases = _aliases(datasets, named)
    everywhere = {str(name) for one in datasets.values() for name in one.names} | set(named.values())
    mangled: dict[str, str] = {}
    for name in everywhere:
        if (spoilt := _mangle(name)) != name:  # a name that two could have been mangled to is nobody's
            mangled[spoilt] = "" if mangled.get(spoilt, name) != name else name
    found, said = {}, []
    for dataset, one in datasets.items():
        keys, mended = _own_names(one, named, aliases, mangled)
        found[dataset] = keys
        if mended:
            said.append(
                f"{dataset}: {len(mended)} gene names that R has changed are taken for those of other datasets "
                f"(as {mended[0][0]} for {mended[0][1]})."
            )
    return found, said


def _names_by_id(datasets: Mapping[str, DatasetGenes]) -> dict[str, str]:
    """One name for every accession: the most frequent symbol, the accession where there is none; unique."""
    votes: dict[str, Counter[str]] = {}
    for one in datasets.values():
        for gene_id, symbol in zip(one.ids, one.symbols, strict=True):
            if gene_id:
                count = votes.setdefault(gene_id, Counter())
                if symbol:
                    count[symbol] += 1
    chosen = [count.most_common(1)[0][0] if count else gene_id for gene_id, count in votes.items()]
    unique = ad.utils.make_index_unique(pd.Index(chosen, dtype=object)) if chosen else []
    return dict(zip(votes, map(str, unique), strict=True))


def _aliases(datasets: Mapping[str, DatasetGenes], named: Mapping[str, str]) -> dict[str, str]:
    """Symbols that stand for one accession only, under another name than its own."""
    known: dict[str, set[str]] = {}
    for one in datasets.values():
        for gene_id, symbol in zip(one.ids, one.symbols, strict=True):
            if gene_id and symbol:
                known.setdefault(symbol, set()).add(gene_id)
    names = set(named.values())
    return {
        symbol: named[next(iter(ids))]
        for symbol, ids in known.items()
        if len(ids) == 1 and symbol not in names
    }


def _own_names(
    one: DatasetGenes, named: Mapping[str, str], aliases: Mapping[str, str], mangled: Mapping[str, str]
) -> tuple[Names, list[tuple[str, str]]]:
    """Names of a dataset's genes: by accession first, then by symbol; no two genes get the same."""
    keys = np.full(len(one.names), None, dtype=object)
    used: set[str] = set()
    for at, gene_id in enumerate(one.ids):
        if gene_id and named[gene_id] not in used:
            keys[at] = named[gene_id]
            used.add(named[gene_id])
    r_names = not any("-" in str(name) for name in one.names)
    own, mended = set(map(str, one.names)), []
    for at in [at for at, key in enumerate(keys) if key is None]:
        name = str(one.names[at])
        key = aliases.get(name, name)
        if r_names and not one.ids[at] and (other := mangled.get(_mangle(name), "")) and other not in own:
            key = other
            mended.append((name, other))
        number = 1
        while key in used:
            key, number = f"{name}-{number}", number + 1
        keys[at] = key
        used.add(key)
    return keys, mended


def _mangle(name: str) -> str:
    """The name as R's ``make.names`` changes it."""
    plain = re.sub(r"[^A-Za-z0-9._]", ".", name)
    return f"X{plain}" if plain[:1].isdigit() else plain


def _strangers(
    datasets: Mapping[str, DatasetGenes], names: Mapping[str, Names], fewest: int
) -> tuple[dict[str, str], list[str]]:
    """Datasets that share too few genes with the others, and a word on those that narrow the shared ones."""
    genes = {name: set(keys) for name, keys in names.items()}

    def fits(name: str) -> tuple[int, int]:
        alike = [other for other in genes if len(genes[name] & genes[other]) >= fewest]
        return len(alike), sum(datasets[other].cells for other in alike)

    shared: set[str] = set()
    members: list[str] = []
    left_out, narrow = {}, []
    for name in sorted(genes, key=fits, reverse=True):
        both = genes[name] & shared if members else genes[name]
        if len(both) < fewest:
            kinds = f"{kind_of_names(datasets[name].names)}; those of {members[0]}: "
            kinds += kind_of_names(datasets[members[0]].names)
            left_out[name] = (
                f"it shares {len(both) or 'no'} gene{'s' * (len(both) != 1)} with the other datasets, {fewest} are "
                f"needed. Kinds of names here: {kinds}. Give all datasets the same kind of names (accessions "
                "and symbols side by side are best)"
            )
            continue
        if members and len(both) < _NARROWER * len(shared):
            narrow.append(
                f"{name} shares only {len(both)} genes with the datasets before it ({len(shared)} were shared "
                "without it): what is compared rests on these."
            )
        shared = both
        members.append(name)
    return left_out, narrow


def kind_of_names(names: Iterable[object]) -> str:
    """Say what the names of genes look like: accessions, or symbols and of which species' kind."""
    texts = [str(name) for name in names]
    shown = f"as {texts[0]!r}" if texts else "none"
    if prefix := prefix_of(np.asarray(texts, dtype=object)):
        return f"accessions ({prefix}…), {shown}"
    letters = [name for name in texts if any(sign.isalpha() for sign in name)]
    upper = sum(name == name.upper() for name in letters)
    capital = sum(name[:1].isupper() and name != name.upper() for name in letters)
    if 2 * upper > len(letters):
        return f"symbols in capitals, as of human genes, {shown}"
    if 2 * capital > len(letters):
        return f"capitalised symbols, as of mouse genes, {shown}"
    return f"other names, {shown}"
