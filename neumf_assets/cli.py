"""The ``neumf-assets`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from neumf_assets.core.errors import NeumfError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.action(options))
    except NeumfError as error:
        print(f"neumf-assets: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("neumf-assets: interrupted; what was finished is kept, run it again to go on.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="neumf-assets", description="Single-cell studies as Dagster assets: NeuMF beside LIGER."
    )
    parser.add_argument("--version", action="version", version=f"neumf-assets {version('neumf-assets')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="bring a study up to date, once, in this process",
        description="Registers the datasets of INBOX with a study and materialises everything that is out of "
        "date, into the Dagster instance that the web interface opens.",
    )
    run.add_argument(
        "inbox", nargs="?", help="folder or URL with count files; the study's own inbox by default"
    )
    run.add_argument(
        "--study", help="name of the study; by default the name of the inbox folder, or 'example'"
    )
    run.set_defaults(action=_run)
    ui = commands.add_parser(
        "ui", help="the Dagster web interface and daemon on 127.0.0.1", description="Runs until interrupted."
    )
    ui.add_argument("--port", type=int, default=3000, help="port on 127.0.0.1 (default 3000)")
    ui.set_defaults(action=_ui)
    export = commands.add_parser(
        "export",
        help="write a study's matrices as CSV or Matrix Market",
        description="csv: a dense matrix, gene × cell with names; mtx: the filtered counts as a 10x folder.",
    )
    export.add_argument("target", help="folder to write to")
    export.add_argument("--study", required=True, help="name of the study")
    export.add_argument("--format", choices=("csv", "mtx"), default="csv", help="default: csv")
    export.add_argument(
        "--matrix",
        choices=("model", "liger", "ineumf"),
        default="model",
        help="csv: what the dataset's own NeuMF predicts (default), LIGER's H (W + V) in counts, or what the "
        "integrative NeuMF predicts without the differences between datasets",
    )
    export.add_argument("--dataset", action="append", help="only this dataset (may be repeated)")
    export.set_defaults(action=_export)
    doctor = commands.add_parser(
        "doctor",
        help="say what is wrong with the set-up, and the mend",
        description="Examines versions, device, disk, Dagster instance, storage and port. Exit status 1 if "
        "there is a problem.",
    )
    doctor.add_argument("--port", type=int, default=3000, help="port of the web interface (default 3000)")
    doctor.set_defaults(action=_doctor)
    notebook = commands.add_parser(
        "notebook",
        help="train the original notebook's configuration on its slice of a file, beside the default",
        description="The first 300 genes × 1,000 cells of FILE: the preset notebook, the default settings, gene "
        "means and a constant, each with its mean squared error and deviance over all entries.",
    )
    notebook.add_argument("file", help="count file or folder, as for run")
    notebook.add_argument("--seed", type=int, default=0, help="seed of the trainings (default 0)")
    notebook.set_defaults(action=_notebook)
    samples = commands.add_parser(
        "samples",
        help="write a first sample sheet from what a folder holds",
        description="Writes samples.csv into FOLDER: a line for each dataset, with columns to fill in (donor, "
        "condition, …). Columns become those of the cells; see docs/reading.md.",
    )
    samples.add_argument("folder", help="folder with count files")
    samples.set_defaults(action=_samples)
    backfill = commands.add_parser(
        "backfill",
        help="materialise datasets of a study again, as a Dagster backfill",
        description="Launches a backfill that the daemon carries out, a run for each dataset, and that the web "
        "interface shows. A dataset that fails stops; the others go on.",
    )
    backfill.add_argument("--study", required=True, help="name of the study")
    backfill.add_argument("--dataset", action="append", help="only this dataset (may be repeated)")
    backfill.add_argument(
        "--job",
        choices=("ingest", "train", "everything"),
        default="train",
        help="what to materialise (default: train, all that belongs to a dataset)",
    )
    backfill.set_defaults(action=_backfill)
    return parser


def _samples(options: argparse.Namespace) -> int:
    from neumf_assets.commands.samples import write_sheet

    return write_sheet(options.folder)


def _backfill(options: argparse.Namespace) -> int:
    from neumf_assets.commands.backfill import backfill

    return backfill(options.study, options.dataset, options.job)


def _notebook(options: argparse.Namespace) -> int:
    from neumf_assets.commands.notebook import run_notebook

    return run_notebook(options.file, options.seed)


def _doctor(options: argparse.Namespace) -> int:
    from neumf_assets.commands.doctor import doctor

    return doctor(options.port)


def _export(options: argparse.Namespace) -> int:
    from neumf_assets.commands.export import export_study

    for path in export_study(options.study, options.target, options.format, options.dataset, options.matrix):
        print(path)
    return 0


def _run(options: argparse.Namespace) -> int:
    from neumf_assets.commands.run import run_study

    return run_study(options.study, options.inbox)


def _ui(options: argparse.Namespace) -> int:
    from neumf_assets.commands.ui import serve

    return serve(options.port)


if __name__ == "__main__":
    sys.exit(main())
