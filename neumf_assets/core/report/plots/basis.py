"""What pictures are drawn of, and the colours that several of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

Values = Sequence[float] | npt.NDArray[Any]

Categories = Sequence[object] | npt.NDArray[Any]

SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#332288")
