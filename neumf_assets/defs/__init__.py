"""Study instances: one folder each, with a ``defs.yaml``."""
