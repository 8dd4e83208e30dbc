"""Files arrive: what came, what is refused, which version of a dataset is in use.

Imports `core` to `freshness`.
"""
