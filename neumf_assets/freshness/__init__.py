"""What is out of date, and which results a run may keep.

Imports `core`, `study` and `assets`.
"""
