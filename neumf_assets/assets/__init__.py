"""What each asset does, by stage: ingest, model, integrate, report. Thin: the work is in `core`.

Imports `core` and `study`.
"""
