"""Droplet count data with known truth: means, factors and labels.

The mean count of gene g in cell c is the exponential of a product of factors, ``mu_cg = exp(u_c . v_g)``,
and the count is negative binomial with ``var = mu + mu^2 / theta_g``. The columns of ``u`` and ``v`` have
names: the cell's library size, the genes' abundance, marker programs (shared by related types, or of one
type), the response to stimulation (common, and specific to types), the dataset's batch effect, programs of
gradually varying activity, and the mitochondrial share. Log means being of low rank, the truth is what a
factorisation of counts should find.

Cells are drawn in blocks with seeds of their own, so a study can be streamed in chunks of any size and gives
the same cells as when it is drawn whole.

Imports numpy, scipy and AnnData; of the package only `core`'s errors, memory and settings.
"""
