"""The science as functions on AnnData, in the manner of scanpy: `neumf_assets.read`, `.integrate`, `.tl`, `.pl`.

Knows nothing of Dagster, studies or stored artifacts; imports `core` alone.
"""
