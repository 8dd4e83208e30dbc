"""What the rows of genes are, whatever the format: genes, with names that can be relied on.

Every reader gives names as they stand in the file. Here features of other types and what counting programmes
write among the genes are left out, genome prefixes are taken off, symbols that are missing are filled in, and
what cannot be mended is said: gene names that Excel has made dates of, running numbers in place of names.
"""

from __future__ import annotations

import logging
from typing import TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from neumf_assets.core.counts.genes.accessions import are_accessions, species_of, stable_ids
from neumf_assets.core.counts.readers.matrix import Names, RawMatrix
from neumf_assets.core.errors import BadInput

_logger = logging.getLogger(__name__)

GENE_EXPRESSION = "Gene Expression"
_NO_GENES = (
    r"(__)?(no_feature|ambiguous|too_low_aQual|not_aligned|alignment_not_unique)|N_(unmapped|multimapping|noFeature|ambiguous)|"
    r"unmapped|Unassigned_\w+"
)
"""What htseq-count, STAR and featureCounts write among the genes: reads without one."""
_GENOME = r"^(GRCh\d+|hg\d+|GRCm\d+|mm\d+|GRCz\d+|Rnor_\d+|BDGP\d+)_+"
_MONTH = "(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
_DATE = (
    rf"^(\d{{1,2}}-{_MONTH}(-\d{{2,4}})?|{_MONTH}-\d{{1,2}}|\d{{4}}-\d{{2}}-\d{{2}}|\d(\.\d+)?E\+\d{{2}})$"
)
_TAG = r"-[ACGT]{8,}$"
_JOINED = (
    r"^(?P<id>ENS[A-Z]{0,6}G\d{11}(?:\.\d+)?)[_|:-](?P<symbol>.+)$",
    r"^(?P<symbol>.+)[_|:-](?P<id>ENS[A-Z]{0,6}G\d{11}(?:\.\d+)?)$",
)
"""Accession and symbol in one name."""
_MOST = 0.5
_NAMED_AT_MOST = 5


Settled: TypeAlias = "NDArray[np.bool_] | slice | sparse.csr_matrix"


def take_genes(X: sparse.csr_matrix, settled: Settled) -> sparse.csr_matrix:
    """The entries of the genes that :func:`settle_genes` found."""
    return (X @ settled).tocsr() if sparse.issparse(settled) else X[:, settled]


def settle_genes(raw: RawMatrix, file: str) -> Settled:
    """Settle which columns of a matrix are genes, and what these are called.

    Parameters
    ----------
    raw
        The matrix as read, with or without its entries. Its names and what goes with them are changed in place.
    file
        Path or URL for messages.

    Returns
    -------
    What :func:`take_genes` makes of the entries: columns to keep, or a matrix that adds some of them up.

    Raises
    ------
    BadInput
        When there is nothing but features of other types, as antibodies.
    """
    summed = _sum_splicing(raw, file)
    if summed is not None:
        _fill_names(raw)
        _find_species(raw)
        return summed
    _refuse_tags(raw, file)
    kept = _gene_expression(raw, file) & _counted(raw, file)
    if not kept.all():
        raw.gene_positions = np.flatnonzero(kept)
        raw.genes = raw.genes[kept]
        raw.gene_ids = None if raw.gene_ids is None else raw.gene_ids[kept]
    _strip_genomes(raw, file)
    _part_joined_names(raw, file)
    _fill_names(raw)
    _find_species(raw)
    _say_odd_names(raw, file)
    return slice(None) if kept.all() else kept


def _sum_splicing(raw: RawMatrix, file: str) -> sparse.csr_matrix | None:
    """Add up what alevin-fry counts apart for each gene: spliced and ambiguous molecules, as other tools count.

    In its mode "USA" a gene has three columns, NAME, NAME-U (unspliced) and NAME-A (ambiguous).
    """
    names = pl.Series(raw.genes, dtype=pl.String)
    third, rest = divmod(len(names), 3)
    if rest or not third:
        return None
    plain = names[:third]
    for at, ending in ((1, "-U"), (2, "-A")):
        if not (names[at * third : (at + 1) * third] == plain + ending).all():
            return None
    _logger.warning(
        "%s: counts of alevin-fry's mode USA: spliced and ambiguous molecules of each gene are added up, unspliced "
        "ones (%d columns) are left out",
        file,
        third,
    )
    raw.notes["molecules"] = "spliced and ambiguous"
    genes = np.arange(third)
    rows = np.concatenate([genes, genes + 2 * third])
    raw.genes, raw.gene_positions = raw.genes[:third], genes
    raw.gene_ids = None if raw.gene_ids is None else raw.gene_ids[:third]
    raw.feature_types = None
    ones = np.ones(2 * third, dtype=np.int64)
    return sparse.csr_matrix((ones, (rows, np.concatenate([genes, genes]))), shape=(3 * third, third))


def _refuse_tags(raw: RawMatrix, file: str) -> None:
    """Refuse the antibody tags of CITE-seq-Count, whose names end in their barcode."""
    names = pl.Series(raw.genes, dtype=pl.String)
    tags = names.str.contains(_TAG)
    if len(names) and (tags.sum() or 0) > _MOST * len(names):
        raise BadInput(
            file,
            "features",
            f"holds antibody tags and no genes ({names[0]!r}, …), as CITE-seq-Count writes them",
            "Give the matrix of the genes; tags are not analysed here",
        )


def _gene_expression(raw: RawMatrix, file: str) -> NDArray[np.bool_]:
    """Keep features of the type of genes, where the file tells types; count and name what else there is."""
    if raw.feature_types is None:
        return np.ones(len(raw.genes), bool)
    types = pl.Series(raw.feature_types, dtype=pl.String).fill_null("")
    raw.feature_types = None
    kept = types.str.to_lowercase().is_in([GENE_EXPRESSION.lower(), "gene"]).to_numpy()
    if kept.all() or not (types != "").any():
        return np.ones(len(raw.genes), bool)
    others = types.filter(pl.Series(~kept)).value_counts(sort=True)
    named = ", ".join(f"{count} of the type {kind!r}" for kind, count in others.iter_rows())
    if not kept.any():
        raise BadInput(
            file,
            "features",
            f"none is of the type {GENE_EXPRESSION!r} (but {named})",
            "Give the genes' matrix",
        )
    raw.notes["features_left_out"] = int((~kept).sum())
    _logger.info("%s: features left out, as they are no genes: %s", file, named)
    return np.asarray(kept)


def _counted(raw: RawMatrix, file: str) -> NDArray[np.bool_]:
    """Leave out the rows in which counting programmes write how many reads had no gene."""
    names = pl.Series(raw.genes, dtype=pl.String)
    others = names.str.contains(rf"^(?:{_NO_GENES})$").fill_null(False).to_numpy()
    if others.any():
        named = ", ".join(raw.genes[others])
        raw.notes["no_genes_left_out"] = named
        _logger.warning("%s: left out, as they are no genes: %s", file, named)
    return ~others


def _strip_genomes(raw: RawMatrix, file: str) -> None:
    """Take off the prefixes by which Cell Ranger tells genomes apart, and say how many there are."""
    for names in (raw.genes, raw.gene_ids):
        if names is None or not len(names):
            continue
        series = pl.Series(names, dtype=pl.String)
        prefixes = series.str.extract(_GENOME, 1)
        if (prefixes.is_not_null().sum()) <= _MOST * len(series):
            continue
        names[:] = series.str.replace(_GENOME, "").to_list()
        genomes = sorted(prefixes.drop_nulls().unique().to_list())
        raw.notes["genomes"] = ", ".join(genomes)
        if len(genomes) > 1 and names is raw.genes:
            _logger.warning(
                "%s: holds genes of %d genomes (%s); cells of different species are best analysed apart",
                file,
                len(genomes),
                ", ".join(genomes),
            )


def _part_joined_names(raw: RawMatrix, file: str) -> None:
    """Part names that are made of accession and symbol (``ENSG00000141510_TP53``)."""
    names = pl.Series(raw.genes, dtype=pl.String)
    for pattern in _JOINED:
        parts = names.str.extract_groups(pattern).struct.unnest()
        fits = parts["id"].is_not_null()
        if fits.sum() <= _MOST * len(names):
            continue
        if raw.gene_ids is None or not are_accessions(raw.gene_ids):
            raw.gene_ids = np.asarray(parts["id"].fill_null("").to_list(), dtype=object)
        raw.genes = np.asarray(parts["symbol"].zip_with(fits, names).to_list(), dtype=object)
        raw.notes["names_parted"] = int(fits.sum())
        _logger.info("%s: names such as %r are parted into accession and symbol", file, names[0])
        return


def _find_species(raw: RawMatrix) -> None:
    """Note which species the genes are of, and what told it."""
    ids = stable_ids(raw.genes if raw.gene_ids is None else raw.gene_ids)
    found = species_of(raw.genes, ids, str(raw.notes.get("genomes", "")))
    if found.name:
        raw.notes["species"] = found.name
        raw.notes["species_from"] = "accessions or genome" if found.sure else "symbols"


def _fill_names(raw: RawMatrix) -> None:
    """Let the accession stand in where a gene has no symbol, also where both columns changed places."""
    if raw.gene_ids is None:
        return
    if are_accessions(raw.genes) and not are_accessions(raw.gene_ids) and len(set(raw.gene_ids)) > 1:
        raw.genes, raw.gene_ids = raw.gene_ids, raw.genes
    nameless = np.array([name in ("", None) for name in raw.genes], dtype=bool)
    if nameless.any() and not nameless.all():
        raw.genes = np.where(nameless, raw.gene_ids, raw.genes).astype(object)
        raw.notes["named_by_accession"] = int(nameless.sum())


def _say_odd_names(raw: RawMatrix, file: str) -> None:
    names = pl.Series(raw.genes, dtype=pl.String)
    dates = names.filter(names.str.contains(_DATE))
    if len(dates):
        shown = ", ".join(map(repr, dates.unique(maintain_order=True)[:_NAMED_AT_MOST]))
        raw.notes["names_like_dates"] = len(dates)
        _logger.warning(
            "%s: %d gene names look like dates that Excel has made of symbols (%s, …): take the names from before "
            "they were opened there",
            file,
            len(dates),
            shown,
        )
    if are_running_numbers(raw.genes):
        raw.notes["running_numbers"] = "in place of gene names"
        _logger.warning(
            "%s: there are running numbers in place of gene names: nothing tells which genes these are, and other "
            "datasets can be joined only if their numbers mean the same",
            file,
        )


def are_running_numbers(names: Names) -> bool:
    """Whether names are just 0, 1, 2, … or 1, 2, 3, …."""
    if len(names) < 2 or str(names[0]) not in ("0", "1"):
        return False
    first = int(names[0])
    return all(str(name) == str(number) for number, name in enumerate(names, first))
