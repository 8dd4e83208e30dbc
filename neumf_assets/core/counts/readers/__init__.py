"""Readers of count files: every format into one validated AnnData."""

from __future__ import annotations

from neumf_assets.core.counts.readers.read import read_counts

__all__ = ["read_counts"]
