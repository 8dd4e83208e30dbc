"""What a condition did to cells: composition and expression by sample, tested over biological replicates.

Cells of one sample are no replicates of each other: a test that takes them for such finds differences between any two
people. All tests here are of samples.
"""
