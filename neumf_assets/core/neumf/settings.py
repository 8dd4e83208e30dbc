"""Settings of the NeuMF models: what is trained, on which entries, and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from neumf_assets.core.settings import Settings

Kind = Literal["gmf", "mlp", "neumf"]
Objective = Literal["poisson", "nb", "mse", "bce", "bpr"]
Link = Literal["exp", "softplus", "identity"]
LayerSize = Annotated[int, Field(ge=1, le=4096)]

NOTEBOOK: dict[str, Any] = {
    "gmf_size": 50,
    "mlp_size": 50,
    "tower": (64, 32, 16, 8),
    "dropout": 0.2,
    "batch_norm": True,
    "objective": "mse",
    "link": "identity",
    "size_factors": False,
    "n_genes": None,
    "epochs": 20,
    "learning_rate": 0.001,
    "cell_learning_rate": 0.001,
    "tower_learning_rate": 0.001,
    "schedule": "constant",
    "warmup": 0.0,
    "weight_decay": 0.0,
    "bias_prior": 0.0,
    "tower_weight_decay": 0.0,
    "pretrain": "none",
}
"""The original notebook's NeuMF; corrected only in what it trains on, blocks of all entries."""


class NeuMFSettings(Settings):
    """One NeuMF training run, for a single dataset or for several datasets at once.

    The mean count of gene ``g`` in cell ``c`` is ``size_factor[c] * link(f[c, g])`` with ``f`` the sum of the
    GMF part, the MLP part and the gene's bias (He et al. 2017, section 3, with a count likelihood).
    """

    preset: Literal["none", "notebook"] = Field(
        default="none",
        description="What the settings that are not given are. none: the defaults described here; notebook: those "
        "of the original notebook (four embeddings of 50, tower 64-32-16-8, dropout 0.2, batch norm, squared "
        "error on raw counts, identity link, Adam at 0.001, 20 epochs, all genes), to see what they cost.",
    )
    kind: Kind = Field(
        default="neumf",
        description="gmf: generalised matrix factorisation alone; mlp: the tower alone; neumf: both.",
    )
    gmf_size: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Length of the GMF embeddings of cells and genes (50 in the notebook). Null: as many as axes of "
        "the counts stand out of their noise, from 4 to 50, of several datasets together to 20.",
    )
    mlp_size: int = Field(
        default=50,
        ge=1,
        le=1024,
        description="Length of the MLP embeddings of cells and genes; 50 as in the notebook.",
    )
    tower: tuple[LayerSize, ...] = Field(
        default=(64, 32, 16, 8),
        min_length=1,
        max_length=12,
        description="Hidden layers of the MLP, first to last; the tower pattern of He et al., halving each "
        "time.",
    )
    dropout: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="Dropout after each hidden layer; 0 because it raises held-out deviance.",
    )
    batch_norm: bool = Field(
        default=False,
        description="Batch normalisation of the hidden layers; off: costly, and no gain on counts.",
    )
    objective: Objective = Field(
        default="poisson",
        description="poisson and nb: likelihood of the counts; mse: squared error; bce: observed or not; "
        "bpr: observed genes ranked above unobserved ones.",
    )
    link: Link = Field(
        default="exp",
        description="Mean = size factor x link(f): exp (log link, clamped), softplus or identity.",
    )
    dispersion: Literal["gene", "shared"] = Field(
        default="gene", description="nb only: one dispersion for each gene or one for all."
    )
    size_factors: bool = Field(
        default=True,
        description="Scale the mean by the cell's total over the median total; off only for the notebook.",
    )
    pairs: Literal["full", "sampled"] = Field(
        default="full",
        description="full: every entry, a zero is data too (Svensson 2020); sampled: all observed entries "
        "and num_negatives zeros for each, weighted so that the loss stays unbiased.",
    )
    num_negatives: int = Field(
        default=4,
        ge=1,
        le=1000,
        description="Zeros drawn for each observed entry (pairs sampled, bpr); 4 as in NCF.",
    )
    n_genes: int | None = Field(
        default=3000,
        ge=1,
        description="Train on this many most overdispersed genes (null: all); beyond about 3,000 the rest "
        "is close to Poisson noise.",
    )
    epochs: int = Field(
        default=80,
        ge=1,
        le=10_000,
        description="Passes over all entries, at most, of a model trained from the start; more than 80 gain little.",
    )
    learning_rate: float = Field(
        default=0.02,
        gt=0,
        le=1,
        description="Adam's step size at its peak; several times NCF's 0.001 since a step sees a whole "
        "block of entries.",
    )
    cell_learning_rate: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="Adam's peak step size for the cells' embeddings; larger, since a cell moves once in a "
        "block of all genes but a gene with every block of cells.",
    )
    tower_learning_rate: float = Field(
        default=0.003,
        gt=0,
        le=1,
        description="Adam's peak step size for the layers' weights, which every entry moves.",
    )
    pretrained_rate: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of learning_rate for branches and biases that were trained before: they only have to give "
        "way.",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="cosine",
        description="How the step size falls over the epochs; cosine ends in a low, quiet phase.",
    )
    warmup: float = Field(
        default=0.02, ge=0.0, le=0.5, description="Share of the steps in which the step size rises from 0."
    )
    final_rate: float = Field(
        default=0.01,
        ge=0.0,
        le=1.0,
        description="Share of its peak that the step size has at the end of a linear or cosine schedule.",
    )
    beta1: float = Field(
        default=0.9, ge=0.0, lt=1.0, description="Adam's memory of gradients (Kingma and Ba 2015)."
    )
    beta2: float = Field(
        default=0.999, ge=0.0, lt=1.0, description="Adam's memory of squared gradients (Kingma and Ba 2015)."
    )
    epsilon: float = Field(
        default=1e-8,
        gt=0.0,
        le=1.0,
        description="Adam's least denominator (Kingma and Ba 2015); gradients are of summed losses, so it hardly "
        "matters.",
    )
    initial_scale: float = Field(
        default=0.1,
        gt=0.0,
        le=10.0,
        description="Standard deviation of the embeddings that training starts from: close to the model that knows "
        "the genes' means alone.",
    )
    weight_decay: float = Field(
        default=50.0,
        ge=0.0,
        le=1e6,
        description="Precision of the Gaussian prior on the embeddings: penalty weight_decay/2 x ||.||^2 "
        "beside the summed loss, so it matters less the more counts a cell or gene has.",
    )
    bias_prior: float = Field(
        default=1.0,
        ge=0.0,
        le=1e6,
        description="Precision of the Gaussian prior of a gene's bias around the gene's mean; 1 keeps genes that were "
        "hardly ever seen from running off to minus infinity, and no other gene feels it.",
    )
    tower_weight_decay: float = Field(
        default=10.0,
        ge=0.0,
        le=1e6,
        description="The same for the MLP's embeddings and layers; lower, since the layers share their "
        "strength, but not by much: with 1 the MLP overfits data of about 1,000 cells.",
    )
    gradient_clip: float | None = Field(
        default=None,
        gt=0,
        description="Largest norm of the gradient of a step (null: unclipped; Adam is robust to it).",
    )
    validation_share: float = Field(
        default=0.05,
        ge=0.0,
        le=0.5,
        description="Share of the entries of the validation cells held out of training for the validation "
        "curve (0: none).",
    )
    validation_cells: int = Field(
        default=1000,
        ge=1,
        description="At most this many cells, drawn by seed, hold out entries: enough for a sure curve.",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Stop after this many epochs without a better validation loss and keep the best epoch. "
        "Null: train to the end of the schedule and keep the last epoch; better on counts, since a few "
        "large entries make the validation curve jump and a stop comes before the step size has fallen.",
    )
    block_cells: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Cells of a block (null: by the size of the data and the device).",
    )
    block_genes: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Genes of a block (null: all, the fastest; blocks of more genes have fewer cells).",
    )
    window_cells: int = Field(
        default=65_536,
        ge=32,
        le=100_000_000,
        description="Cells that are shuffled together. Of more cells, 32 chunks of consecutive ones, drawn anew "
        "in every epoch, make a window, so that training can read them from disk; the order is the same in "
        "memory.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Arithmetic of the tower; auto: bfloat16 where the hardware multiplies it faster.",
    )
    fused: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: the fused kernels where they can be had, on the CPU built by a C++ compiler, on a GPU by "
        'Triton (extra "gpu"); off: plain torch operations.',
    )
    pretrain: Literal["none", "gmf", "both"] = Field(
        default="gmf",
        description="neumf only. gmf: the fast GMF branch first, then both together; both: each branch "
        "alone, fused with alpha as in the paper; none: together from the start.",
    )
    pretrain_epochs: int = Field(
        default=80, ge=1, le=10_000, description="Passes, at most, of each branch that is pretrained."
    )
    fusion_epochs: int = Field(
        default=3,
        ge=1,
        le=10_000,
        description="Passes, at most, of the whole model after pretraining. The one that predicts held-out entries "
        "best is kept, or the pretrained branches where none does better: a pass costs ten of the GMF branch, and the "
        "tower has been worth nothing on counts so far.",
    )
    alpha: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="pretrain both: output weights alpha x GMF and (1 - alpha) x MLP.",
    )
    shift_penalty: float = Field(
        default=1.0,
        ge=0.0,
        le=1e6,
        description="Several datasets only: penalty lambda x ||v||^2 on a gene's dataset-specific embedding "
        "(LIGER's lambda); larger: less difference between datasets is taken out of the cells.",
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Seed of every random choice.")
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads (null: as torch is set)."
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Processes that train one model together, each with its share of the cells (on a Ray "
        "cluster, or on this machine); same model up to the order of sums in float32.",
    )
    checkpoint_seconds: float = Field(
        default=60.0, ge=0.0, description="Least time between two checkpoints; 0: after every epoch."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("preset") == "notebook":
            return {**NOTEBOOK, **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.objective in ("poisson", "nb") and self.link == "identity":
            raise ValueError(
                f"objective: {self.objective} needs a positive mean: set link to exp or softplus, or "
                f"objective to mse"
            )
        if self.objective == "bpr" and self.pairs == "full":
            raise ValueError("objective: bpr compares drawn pairs: set pairs to sampled")
        return self


class DenseSettings(Settings):
    """The dense matrix that a model predicts."""

    dtype: Literal["float32", "float16"] = Field(
        default="float32",
        description="Type of the entries on disk; float16 halves the size, with three significant digits; "
        "larger means are stored as 65,504.",
    )
    precision: Literal["trained", "float32"] = Field(
        default="trained",
        description="Arithmetic of the tower. trained: as in training; where that is bfloat16, means are off by "
        "0.01 % at most (root mean square) with a pretrained GMF branch, far below the noise of the "
        "counts they were learnt from. float32: by less than 0.001 %, and five times slower there.",
    )
    genes: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Predict these genes only, as far as the model knows them (null: all that it knows).",
    )


def ineumf_defaults() -> NeuMFSettings:
    """Return the settings of the integrative model.

    No more dimensions than the counts support, since each of the others is noise in every distance; more and
    larger steps than for denoising, since an embedding that has not converged separates cell types badly;
    hardly any dataset-specific embedding, since what the gene biases leave is better taken out of the cells'
    centroids afterwards.
    """
    return NeuMFSettings(
        kind="gmf",
        gmf_size=None,
        n_genes=2000,
        epochs=80,
        cell_learning_rate=0.1,
        learning_rate=0.03,
        weight_decay=20.0,
        shift_penalty=20_000.0,
    )
