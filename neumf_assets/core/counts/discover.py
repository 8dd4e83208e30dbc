"""Which datasets lie in an inbox: names, paths and fingerprints, without opening a matrix.

Sensors call this every few seconds, so it imports nothing heavy and looks at directory entries; only files
of at most `SMALL` bytes are read.

Names
-----
A dataset is called as its file or folder without the endings that tell its kind; dots that remain become
``_`` (``E12.5_rep1.csv.gz`` is ``E12_5_rep1``). ``NAME.labels.csv`` beside it (or ``.tsv``, gzipped or not)
holds its labels. A Matrix Market triple may lie in the inbox itself under a common prefix, as GEO ships them: the
prefix is its name. Hidden, temporary and documentation files are passed over, and what Cell Ranger and GEO
put beside counts; of a raw and a filtered matrix side by side the raw one is. Whatever else is no count file is
refused with what to do.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from neumf_assets.core.counts.samples import Sample
from neumf_assets.core.errors import BadInput

NAME_RULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
LABELS_SUFFIX = ".labels.csv"
_LABELS = re.compile(r"(?P<stem>.+)\.labels\.(csv|tsv|txt)(\.gz)?", re.IGNORECASE | re.DOTALL)
SMALL = 1 << 16
"""Files up to this many bytes are fingerprinted by content, larger ones by size and time of modification."""

_TABLES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
_STORES = (".h5", ".hdf5", ".h5ad", ".loom", ".h5.gz", ".hdf5.gz", ".h5ad.gz", ".loom.gz")
ARCHIVES = (".zip", ".tar.gz", ".tgz")
"""Archives that may hold the files of one sample."""
_KINDS = re.compile(r"(\.(csv|tsv|txt|h5|hdf5|h5ad|loom|zarr))?(\.gz|\.zip|\.tar\.gz|\.tgz)?", re.IGNORECASE)
_MATRIX = re.compile(r"(?P<stem>.*?)[._-]?(?:matrix)?\.mtx(?:\.gz)?", re.DOTALL)
_COMPANION = re.compile(
    r"(?P<stem>.*?)[._-]?(?P<kind>barcodes|features|genes)\.(tsv|txt)(?:\.gz)?", re.DOTALL
)
_SPLICED = "spliced"
"""Stem of the matrix that is taken of what STARsolo and velocyto write: molecules without introns, as others count."""
_PARTIAL = (".tmp", ".part", ".partial", ".crdownload", ".swp", "~")
REFUSAL_SUFFIX = ".refused.txt"
"""Ending of the note that says why the file beside it was refused."""
_DOCUMENTS = (
    REFUSAL_SUFFIX,
    ".md",
    ".rst",
    ".pdf",
    ".html",
    ".json",
    ".yaml",
    ".yml",
    ".png",
    ".svg",
    ".jpg",
    ".log",
    ".sha256",
)
_DOCUMENT_NAMES = re.compile(
    r"(readme|licen[cs]e|changelog|md5sums?|sha256sums?|checksums?|filelist|manifest)(\.txt)?"
    r"|thumbs\.db|desktop\.ini|icon\r|metrics_summary\.csv|samplesheet\.csv|samples\.(csv|tsv)"
    r"|.*_series_matrix\.txt(\.gz)?|.*\.soft(\.gz)?|.*\.(cloupe|vloupe|bai)|web_summary\..*",
    re.IGNORECASE | re.DOTALL,
)
"""What lies beside counts and holds none: notes, litter of operating systems, what Cell Ranger and GEO add."""
_FILTERED = (
    "filtered_feature_bc_matrix",
    "sample_filtered_feature_bc_matrix",
    "filtered_gene_bc_matrices",
    "sample_feature_bc_matrix",
)
_NESTED = (
    *_FILTERED,
    *(f"outs/{name}" for name in _FILTERED),
    *(f"count/{name}" for name in _FILTERED),
    *(f"{outs}per_sample_outs/*/count/{name}" for outs in ("", "outs/") for name in _FILTERED),
    "filtered",
    "DGE_filtered",
    "all-sample/DGE_filtered",
    "alevin",
    "quants/alevin",
    *(
        f"{solo}{kind}/filtered"
        for solo in ("", "Solo.out/")
        for kind in ("Gene", "GeneFull", "GeneFull_Ex50pAS", "GeneFull_ExonOverIntron", "Velocyto")
    ),
)
"""Where Cell Ranger (count and multi), STARsolo, Parse and alevin-fry put their matrices; ``*`` is any one folder."""
_BESIDE_FILTERED = re.compile(r"raw_(feature|gene)_bc_matri(x|ces)(\.h5)?|molecule_info\.h5|analysis|.*\.bam")
_MEND_NAME = (
    "Rename it so that what comes before its ending starts with a letter or digit and holds at most 64 "
    "letters, digits, '_' and '-'"
)
UNPACK = "Unpack it, and put the count files of each sample into the inbox, or into a folder of its own there"
_OTHER_ENDINGS = {
    (".tar", ".tar.bz2", ".7z", ".rar"): ("is an archive", UNPACK),
    (".bz2", ".xz", ".zst"): ("is packed in a way that is not read here", "Unpack it, or pack it with gzip"),
    (".xlsx", ".xls", ".ods"): ("is a workbook", "Export the sheet with the counts as CSV (UTF-8)"),
    (".rds", ".rda", ".rdata", ".robj"): (
        "is an object of R, which only R can open",
        "Export its counts, in R: DropletUtils::write10xCounts('NAME', SeuratObject::LayerData(readRDS('NAME.rds'), "
        "'counts')), or counts(…) of a SingleCellExperiment",
    ),
    (".h5seurat",): (
        "is a file of SeuratDisk",
        "Export it as h5ad, in R: SeuratDisk::Convert('NAME.h5seurat', dest = 'h5ad')",
    ),
    (".h5mu",): (
        "is a MuData file of several modalities",
        "Export the one with the genes, in Python: mudata.read('NAME.h5mu').mod['rna'].write_h5ad('NAME.h5ad')",
    ),
    (".bam", ".cram", ".sam", ".fastq", ".fastq.gz", ".fq.gz"): (
        "has the ending of reads, which are no counts",
        "Count them with Cell Ranger, STARsolo, kallisto or alevin-fry; convert nothing by hand",
    ),
}


@dataclass(frozen=True)
class DatasetFile:
    """One dataset of an inbox.

    Attributes
    ----------
    name
        Name of the dataset.
    path
        Path or URL of the file or folder; of a triple in a flat folder, its Matrix Market file.
    labels
        Path or URL of ``NAME.labels.csv``, where there is one.
    bytes
        Size of everything that belongs to the dataset, labels included.
    modified
        Latest time of modification in seconds since 1970 (0 where the store does not tell): lets a sensor
        wait until a file that is still being copied has come to rest.
    identity
        Fingerprint for a run key. Local files of at most `SMALL` bytes count by their SHA-256, larger ones by
        size and time of modification in nanoseconds, remote ones by ETag or checksum or, failing these,
        size and time. It changes whenever the content does; it may also change without (after ``touch``),
        which costs a run that finds nothing new, since the reader's own SHA-256 decides what is stale.
    sample
        What the sample sheet says of it, where there is one.
    """

    name: str
    path: str
    labels: str | None
    bytes: int
    modified: float
    identity: str
    sample: Sample | None = None


class Inbox(NamedTuple):
    """What an inbox holds: the datasets by name, and what was refused with the reason."""

    datasets: list[DatasetFile]
    refused: list[BadInput]


class Triple(NamedTuple):
    """File names of a Matrix Market matrix and its companions."""

    matrix: str
    barcodes: str
    features: str


@dataclass(frozen=True)
class _Entry:
    """A directory entry; ``fingerprint`` is called only for entries that belong to a dataset."""

    name: str
    path: str
    is_folder: bool
    bytes: int
    modified: float
    fingerprint: Callable[[], str]
    children: Callable[[], list[_Entry]]
    missing: bool = False


def is_table(name: str) -> bool:
    """Whether a file is called as a table of text."""
    return name.lower().endswith(_TABLES)


def is_url(source: str | Path) -> bool:
    """Whether ``source`` is a URL rather than a local path."""
    return isinstance(source, str) and "://" in source


def dataset_name(source: str | Path) -> str:
    """Name of the dataset at a path or URL: the last part without the endings that tell its kind, dots as ``_``.

    Of a triple it is the prefix.

    Raises
    ------
    BadInput
        When the name breaks the rule for dataset names.
    """
    text = str(source).split("?")[0] if is_url(source) else str(source)
    path = PurePosixPath(Path(text).absolute().as_posix() if not is_url(source) else text.rstrip("/"))
    stem = path.name
    if matrix := _MATRIX.fullmatch(path.name):
        stem = matrix["stem"] or path.parent.name
    return check_name(_without_kind(stem), source)


def _without_kind(name: str) -> str:
    """Take off the endings that tell a file's kind, and put ``_`` for dots."""
    length = next(at for at in range(len(name) + 1) if _KINDS.fullmatch(name, at))
    return name[: length or None].replace(".", "_")


def labels_name(file: str) -> str | None:
    """Name of the dataset whose labels a file holds; None where it is no labels file."""
    match = _LABELS.fullmatch(file)
    return _without_kind(match["stem"]) if match else None


def check_name(name: str, file: str | Path) -> str:
    """Return ``name`` when it is allowed as the name of a dataset, else raise `BadInput` for ``file``."""
    if not NAME_RULE.fullmatch(name):
        raise BadInput(file, "name", f"{name!r} cannot be the name of a dataset", _MEND_NAME)
    return name


def find_triple(names: Iterable[str], matrix: str, file: str | Path) -> Triple:
    """Find the barcodes and features that belong to a Matrix Market file among the names in its folder.

    Raises
    ------
    BadInput
        When one of them is missing.
    """
    match = _MATRIX.fullmatch(matrix)
    stem = match["stem"] if match else ""
    present = set(names)
    for tables in _OTHER_TABLES:
        own = [
            next((f"{name}{end}" for end in (".gz", "") if f"{name}{end}" in present), "") for name in tables
        ]
        if all(own):
            return Triple(matrix, *own)

    def companion(*kinds: str) -> str:
        own = {"": ("",), _SPLICED: ("",)}.get(
            stem, tuple(f"{stem}{separator}" for separator in ("_", ".", "-", ""))
        )
        choices = (
            f"{prefix}{kind}.{table}{ending}"
            for kind in kinds
            for prefix in own
            for table in ("tsv", "txt")
            for ending in (".gz", "")
        )
        for choice in choices:
            if choice in present:
                return choice
        if shared := _shared_companion(present, kinds):
            return shared
        wanted = " or ".join(f"{stem}{'_' if stem else ''}{kind}.tsv[.gz]" for kind in kinds)
        raise BadInput(file, "", f"{wanted} is missing beside {matrix}", "Put it there")

    return Triple(matrix, companion("barcodes"), companion("features", "genes.names", "genes"))


_OTHER_TABLES = (
    ("quants_mat_rows.txt", "quants_mat_cols.txt"),  # alevin-fry
    ("cell_metadata.csv", "all_genes.csv"),  # Parse
)
"""Names of barcodes and features beside a matrix, as some programmes call them."""


def _shared_companion(names: set[str], kinds: tuple[str, ...]) -> str | None:
    """The one features file of a folder with several matrices, where none of them has its own."""
    if "barcodes" in kinds:
        return None  # cells are never shared
    stems = {found["stem"] for name in names if (found := _MATRIX.fullmatch(name))}
    tables = [found for name in names if (found := _COMPANION.fullmatch(name)) and found["kind"] in kinds]
    alone = [found.group() for found in tables if found["stem"] not in stems]
    return alone[0] if len(alone) == 1 and len(tables) == 1 else None


def matrix_folder(folder: str | Path, names: Callable[[str], list[str]]) -> tuple[str, Triple]:
    """Find the Matrix Market triple inside a folder: ``(path below the folder, "" for itself; the triple)``.

    ``names`` lists the names in a folder below ``folder`` ([] where there is none). Looks in the folder
    itself, then where Cell Ranger and STARsolo put their filtered matrices.

    Raises
    ------
    BadInput
        When there is no matrix, or more than one.
    """

    def visible(below: str) -> list[str]:
        return [name for name in names(below) if not _is_hidden(name)]

    for pattern in ("", *_NESTED):
        found = []
        for below in _folders_like(pattern, visible):
            listed = visible(below)
            if below.endswith("gene_bc_matrices") and len(listed) == 1:
                below = f"{below}/{listed[0]}"
                listed = visible(below)
            if matrix := _the_matrix(listed, below, folder):
                found.append((below, find_triple(listed, matrix, folder)))
        if len(found) > 1:
            raise BadInput(
                folder,
                pattern,
                f"holds {len(found)} samples ({', '.join(below for below, _ in found[:3])}, …)",
                "Put each sample's folder into the inbox by itself",
            )
        if found:
            return found[0]
    raise BadInput(
        folder,
        "",
        "holds no matrix.mtx[.gz] and is no Zarr store",
        "Put a 10x or STARsolo matrix folder there",
    )


def the_only_file(names: Iterable[str]) -> str | None:
    """The one count file of a folder (HDF5, or a table), where there is nothing else that could be counts."""
    there = [name for name in names if not _is_passed_over(name) and not labels_name(name)]
    counts = [name for name in there if name.lower().endswith(_TABLES + _STORES)]
    stores = [name for name in counts if name.lower().endswith(_STORES)]
    filtered = [name for name in stores if "raw" not in name.lower() and "molecule_info" not in name.lower()]
    if any(_MATRIX.fullmatch(name) or _COMPANION.fullmatch(name) for name in there):
        return None
    for found in (filtered, counts):
        if len(found) == 1:
            return found[0]
    return None


def _folders_like(pattern: str, names: Callable[[str], list[str]], above: str = "") -> Iterator[str]:
    """Folders whose path fits a pattern, in which ``*`` is any one folder."""
    head, _, rest = pattern.partition("/")
    for name in names(above) if head == "*" else [head]:
        below = f"{above}/{name}" if above else name
        if rest:
            yield from _folders_like(rest, names, below)
        else:
            yield below


def _the_matrix(listed: list[str], below: str, folder: str | Path) -> str | None:
    """The matrix of a folder: what is called so by its programme, whatever lies beside it."""
    matrices = sorted(name for name in listed if _MATRIX.fullmatch(name))
    for usual in ("matrix.mtx.gz", "matrix.mtx", f"{_SPLICED}.mtx.gz", f"{_SPLICED}.mtx"):
        if usual in matrices:
            return usual
    stems = {name.removesuffix(".gz") for name in matrices}
    if len(stems) > 1:
        raise BadInput(
            folder,
            below,
            f"holds {len(stems)} matrices ({', '.join(matrices[:3])}, …)",
            "Give each its own folder, or put them into the inbox itself under different prefixes",
        )
    return matrices[-1] if matrices else None


def list_datasets(inbox: str | Path) -> Inbox:
    """List the datasets of an inbox.

    Parameters
    ----------
    inbox
        A local folder or an fsspec URL.

    Returns
    -------
    Inbox
        ``datasets`` sorted by name, and in ``refused`` one `BadInput` for each entry that cannot be a
        dataset: a name that breaks the rule, two sources for one name, an incomplete triple, an unknown
        format.

    Raises
    ------
    BadInput
        When the inbox itself cannot be listed.
    """
    entries = _list_remote(str(inbox)) if is_url(inbox) else _list_local(inbox)
    entries = _without_repeats([entry for entry in entries if not _is_passed_over(entry.name)])
    names = {entry.name: entry for entry in entries}
    labels = {name: entry for entry in entries if (name := labels_name(entry.name)) and not entry.is_folder}
    refused: list[BadInput] = []
    found: dict[str, list[tuple[str, list[_Entry]]]] = {}
    for path, parts in _group(entries, names, refused):
        try:
            found.setdefault(dataset_name(path), []).append((path, parts))
        except BadInput as error:
            refused.append(error)
    datasets = []
    for name, sources in sorted(found.items()):
        if len(sources) > 1:
            others = ", ".join(sorted(PurePosixPath(Path(path).as_posix()).name for path, _ in sources))
            refused.append(
                BadInput(
                    sources[0][0],
                    "name",
                    f"{name!r} has several sources: {others}",
                    "If they are the same sample keep one of them, else rename them",
                )
            )
            continue
        datasets.append(_dataset(name, *sources[0], labels=labels.get(name)))
    refused.extend(
        BadInput(
            entry.path, "name", "there is no dataset of this name to label", "Add the dataset or rename it"
        )
        for name, entry in labels.items()
        if name not in found
    )
    return Inbox(datasets, refused)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_", "~"))


def _is_passed_over(name: str) -> bool:
    named = name.lower().endswith(_PARTIAL + _DOCUMENTS) or bool(_DOCUMENT_NAMES.fullmatch(name))
    return _is_hidden(name) or named


def _without_repeats(entries: list[_Entry]) -> list[_Entry]:
    """Leave out what Cell Ranger writes besides its filtered matrix: the raw one, and the same in another form."""
    names = {entry.name for entry in entries}
    filtered = names & {name + ending for name in _FILTERED for ending in ("", ".h5")}
    repeated = {f"{name}.h5" for name in _FILTERED if name in names}
    return [
        entry
        for entry in entries
        if not (filtered and _BESIDE_FILTERED.fullmatch(entry.name)) and entry.name not in repeated
    ]


def _group(
    entries: list[_Entry], names: dict[str, _Entry], refused: list[BadInput]
) -> Iterator[tuple[str, list[_Entry]]]:
    """Yield ``(path, entries that belong to it)`` for every source; append what is none to ``refused``."""
    taken: set[str] = set()
    companions = []
    for entry in entries:
        lowered = entry.name.lower()
        try:
            if entry.missing:
                raise BadInput(
                    entry.path,
                    "",
                    "does not exist: it is a link whose target is gone",
                    "Mend the link, or take it out of the inbox",
                )
            if entry.is_folder:
                yield entry.path, _folder_parts(entry)
            elif _MATRIX.fullmatch(entry.name):
                triple = find_triple(names, entry.name, entry.path)
                taken.update(triple)
                yield entry.path, [names[name] for name in triple]
            elif _is_companion(entry.name, names):
                companions.append(entry)
            elif labels_name(entry.name):
                continue
            elif lowered.endswith(_TABLES + _STORES + ARCHIVES):
                yield entry.path, [entry]
            else:
                raise _of_unknown_kind(entry)
        except BadInput as error:
            refused.append(error)
    refused.extend(
        BadInput(entry.path, "", "the Matrix Market file that it belongs to is missing", "Put it beside")
        for entry in companions
        if entry.name not in taken and not _has_matrix(entry.name, names)
    )


def _is_companion(name: str, names: Iterable[str]) -> bool:
    """Whether a file holds the names of a matrix; tables of text (.txt) may as well be counts of their own."""
    match = _COMPANION.fullmatch(name)
    if match is None:
        return name.endswith((".genes.names.txt", ".barcodes.prefix.txt"))
    if match[3] == "tsv":
        return True
    return _has_matrix(name, names)


def _has_matrix(name: str, names: Iterable[str]) -> bool:
    """Whether the matrix is there that a table of names belongs to."""
    match = _COMPANION.fullmatch(name)
    stem = match["stem"] if match else name.partition(".")[0]
    return any((found := _MATRIX.fullmatch(other)) and found["stem"] == stem for other in names)


def _of_unknown_kind(entry: _Entry) -> BadInput:
    lowered = entry.name.lower()
    for endings, (what, mend) in _OTHER_ENDINGS.items():
        if lowered.endswith(endings):
            return BadInput(entry.path, "name", what, f"{mend}, or take it out of the inbox")
    return BadInput(
        entry.path,
        "name",
        "its ending is none of a known count file",
        "Known are .csv .tsv .txt (also .gz), .mtx[.gz] triples, .h5, .h5ad, .loom and Zarr folders; convert it, "
        "or take it out of the inbox",
    )


def _folder_parts(folder: _Entry) -> list[_Entry]:
    """Return what counts of a folder: all of a Zarr store, the three files of a Matrix Market folder."""
    children = folder.children()
    if {child.name for child in children} & {".zgroup", "zarr.json", ".zattrs", ".zmetadata"}:
        return list(_walk(children))
    if only := the_only_file([child.name for child in children]):
        return [child for child in children if child.name == only]

    def below(path: str) -> list[_Entry]:
        level = children
        for part in PurePosixPath(path).parts:
            level = next((child.children() for child in level if child.name == part and child.is_folder), [])
        return level

    place, triple = matrix_folder(folder.path, lambda path: [child.name for child in below(path)])
    return [child for child in below(place) if child.name in triple]


def _walk(entries: list[_Entry]) -> Iterator[_Entry]:
    for entry in entries:
        if entry.is_folder:
            yield from _walk(entry.children())
        else:
            yield entry


def dataset_at(path: str) -> DatasetFile:
    """A dataset at a path or URL, wherever it is, under the name of its file or folder as it stands.

    Raises
    ------
    BadInput
        When there is nothing, or nothing that could be a dataset.
    """
    entry = _remote_entry_at(path) if is_url(path) else _local_entry_at(path)
    lowered = entry.name.lower()
    if entry.is_folder:
        parts = _folder_parts(entry)
    elif _MATRIX.fullmatch(entry.name):
        folder = path.rpartition("/")[0]
        beside = {
            item.name: item for item in (_list_remote(folder) if is_url(path) else _list_local(folder or "."))
        }
        parts = [beside[name] for name in find_triple(beside, entry.name, path)]
    elif lowered.endswith(_TABLES + _STORES + ARCHIVES):
        parts = [entry]
    else:
        raise _of_unknown_kind(entry)
    return _dataset(entry.name, entry.path, parts, None)


def _dataset(name: str, path: str, parts: list[_Entry], labels: _Entry | None) -> DatasetFile:
    everything = [*parts, labels] if labels else parts
    parent = len(path.rpartition("/")[0])
    digest = hashlib.sha256()
    for part in sorted(everything, key=lambda part: part.path):
        digest.update(f"{part.path[parent:]} {part.fingerprint()}\n".encode())
    return DatasetFile(
        name=name,
        path=path,
        labels=labels.path if labels else None,
        bytes=sum(part.bytes for part in everything),
        modified=max((part.modified for part in everything), default=0.0),
        identity=digest.hexdigest(),
    )


def _list_local(folder: str | Path) -> list[_Entry]:
    try:
        with os.scandir(folder) as entries:
            return [_local_entry(entry) for entry in sorted(entries, key=lambda entry: entry.name)]
    except OSError as error:
        raise BadInput(
            folder,
            "",
            f"the folder cannot be listed ({error.strerror})",
            "Check the path and its permissions",
        ) from error


def _local_entry_at(path: str) -> _Entry:
    place = Path(path)
    try:
        stat = place.stat()
    except OSError as error:
        raise BadInput(
            path, "", f"cannot be found ({error.strerror})", "Correct its path in the sample sheet"
        ) from error
    return _known_entry(place.name, str(place), place.is_dir(), stat)


def _known_entry(name: str, path: str, is_folder: bool, stat: os.stat_result) -> _Entry:
    fingerprint = partial(_local_fingerprint, path, stat.st_size, stat.st_mtime_ns)
    return _Entry(name, path, is_folder, stat.st_size, stat.st_mtime, fingerprint, partial(_list_local, path))


def _remote_entry_at(url: str) -> _Entry:
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(url)
        filesystem.invalidate_cache()
        info = filesystem.info(root)
    except Exception as error:  # each file system raises its own
        reason = str(error).strip() or type(error).__name__
        raise BadInput(
            url, "", f"cannot be found ({reason})", "Correct its URL in the sample sheet"
        ) from error
    return _remote_entry(filesystem, {**info, "name": root}, url.rstrip("/"))


def _local_entry(entry: os.DirEntry[str]) -> _Entry:
    try:
        stat = entry.stat()
        is_folder = entry.is_dir()
    except OSError:
        # A link to nothing, or a file taken away meanwhile.
        return _Entry(entry.name, entry.path, False, 0, 0.0, lambda: "missing", list, missing=True)
    return _known_entry(entry.name, entry.path, is_folder, stat)


@lru_cache(maxsize=65536)
def _local_fingerprint(path: str, size: int, modified_ns: int) -> str:
    if size <= SMALL:
        try:
            return hashlib.sha256(Path(path).read_bytes()).hexdigest()
        except OSError:
            return "unreadable"
    return f"{size}-{modified_ns}"


def _list_remote(url: str) -> list[_Entry]:
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(url)
        filesystem.invalidate_cache()  # a process that lives long would see for ever what it saw first
        return _remote_entries(filesystem, root)
    except Exception as error:  # each file system raises its own
        reason = str(error).strip() or type(error).__name__
        raise BadInput(
            url, "", f"the folder cannot be listed ({reason})", "Check the URL and the credentials"
        ) from error


def _remote_entries(filesystem: Any, folder: str) -> list[_Entry]:
    entries = []
    for info in filesystem.ls(folder, detail=True):
        path = str(info["name"]).rstrip("/")
        if path == folder.rstrip("/"):
            continue  # object stores list a folder's own marker among its content
        entries.append(_remote_entry(filesystem, info, filesystem.unstrip_protocol(path)))
    return sorted(entries, key=lambda entry: entry.name)


def _remote_entry(filesystem: Any, info: dict[str, Any], url: str) -> _Entry:
    path = str(info["name"]).rstrip("/")
    modified = info.get("LastModified") or info.get("mtime") or info.get("last_modified") or 0.0
    seconds = float(modified.timestamp()) if hasattr(modified, "timestamp") else _number(modified)
    is_folder = info.get("type") == "directory"
    # A web server answers for a folder with a page; only a trailing slash tells it from a file.
    slash = "/" if is_folder and path.startswith(("http://", "https://")) else ""
    return _Entry(
        name=path.rsplit("/", 1)[-1],
        path=url + slash,
        is_folder=is_folder,
        bytes=int(info.get("size") or 0),
        modified=seconds,
        fingerprint=partial(_remote_fingerprint, filesystem, path, info),
        children=partial(_remote_entries, filesystem, path),
    )


def _remote_fingerprint(filesystem: Any, path: str, listed: dict[str, Any]) -> str:
    """ETag or checksum, else size and time; a web server's listing tells none of them, so the file is asked."""
    known = listed if listed.get("size") is not None else {**listed, **filesystem.info(path)}
    tag = known.get("ETag") or known.get("md5") or known.get("checksum") or known.get("Content-MD5")
    changed = [known.get(key) for key in ("LastModified", "mtime", "last_modified", "Last-Modified")]
    return str(tag or f"{known.get('size')}-{next(filter(None, changed), '')}")


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
