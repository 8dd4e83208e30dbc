"""Which gene is which: accessions and symbols, species, families of genes, and one name for a gene in all datasets.

May import what stands beside the rooms of ``core``; readers and quality control build on it.
"""
