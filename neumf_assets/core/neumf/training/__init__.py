"""The one trainer: single-dataset and integrative NeuMF, and pretraining.

A step takes a block of cells (of one dataset) x genes, differentiates the summed loss with respect to the
rows of the tables that the block uses, and moves them by Adam. Whatever is random in an epoch derives from
(seed, stage, epoch), so training that was killed continues bit for bit from its last checkpoint.

``fit`` -> ``stages`` -> ``loop`` -> ``step`` -> ``state``. Imports what is beside the rooms in `core.neumf`; knows
neither files of cells nor processes.
"""
