"""What is known of each barcode before it counts as a good cell: figures, outliers, cell calling, ambient RNA.

May import from ``core.counts``; decides nothing by itself, which :mod:`neumf_assets.core.counts.qc` does.
"""
