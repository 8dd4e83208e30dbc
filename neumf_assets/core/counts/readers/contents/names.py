"""Which columns of a table of genes hold their symbols and accessions, whatever they are called."""

from __future__ import annotations

from collections.abc import Mapping

from neumf_assets.core.counts.genes.accessions import are_accessions
from neumf_assets.core.counts.readers.contents.genes import are_running_numbers
from neumf_assets.core.counts.readers.matrix import Names

_SYMBOLS = (
    "gene_symbols",
    "gene_symbol",
    "feature_name",
    "gene_name",
    "gene_names",
    "symbol",
    "hgnc_symbol",
    "mgi_symbol",
    "external_gene_name",
    "gene_short_name",
    "features",
    "gene",
    "genes",
    "name",
    "names",
    "var_names",
)
_ACCESSIONS = (
    "gene_ids",
    "gene_id",
    "ensembl_id",
    "ensembl_ids",
    "ensembl",
    "ensembl_gene_id",
    "ensemblid",
    "ensembleid",
    "feature_id",
    "accession",
    "ids",
    "id",
)


def symbols_and_accessions(index: Names | None, columns: Mapping[str, Names]) -> tuple[Names, Names | None]:
    """Choose the names of genes, and their accessions where there are any.

    Symbols come first: from the index where it does not hold accessions or running numbers, else from the first
    column that is called as symbols usually are. Without symbols the accessions are the names.

    Parameters
    ----------
    index
        Names of the table's rows, where it has some.
    columns
        Text columns by name.

    Raises
    ------
    LookupError
        When there is neither an index nor a column of names.
    """
    lowered = {str(name).lower(): values for name, values in columns.items()}
    symbols = next(
        (lowered[name] for name in _SYMBOLS if name in lowered and not are_accessions(lowered[name])),
        None,
    )
    accessions = next((lowered[name] for name in _ACCESSIONS if name in lowered), None)
    if accessions is None:  # a column of any usual name may hold them
        accessions = next(
            (lowered[name] for name in _SYMBOLS if name in lowered and are_accessions(lowered[name])),
            None,
        )
    if index is not None and not are_running_numbers(index):
        if not are_accessions(index):
            return index, accessions
        return (index, None) if symbols is None else (symbols, index)
    if symbols is not None:
        return symbols, accessions
    if accessions is not None:
        return accessions, None
    if index is None:
        raise LookupError(", ".join((*_SYMBOLS, *_ACCESSIONS)))
    return index, None
