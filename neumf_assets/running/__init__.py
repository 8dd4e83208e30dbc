"""How steps run: executor, launcher, requests, resources, IO manager, locks, orphans, out of memory.

Imports `core` to `freshness`; nothing of what starts a run.
"""
