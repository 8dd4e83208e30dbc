"""Dagster resources: where artifacts live, and on which device models are trained."""

import dagster as dg
from pydantic import Field

from neumf_assets.core.store import Store
from neumf_assets.home import DEVICES, Home, requested_device


class StoreResource(dg.ConfigurableResource):
    """Where artifacts are stored."""

    root: str = Field(
        default="", description="Folder or fsspec URL. Empty: NEUMF_STORAGE, else storage/ in NEUMF_HOME."
    )

    def open(self) -> Store:
        """The store at ``root``."""
        home = Home.from_environment()
        return Store(self.root, cache=home.root / "cache" / "artifacts") if self.root else home.store()


class DeviceResource(dg.ConfigurableResource):
    """The device on which models are trained."""

    device: str = Field(
        default="", description="auto (CUDA where there is one), cpu or cuda. Empty: NEUMF_DEVICE, else auto."
    )

    def resolve(self) -> str:
        """``cpu`` or ``cuda``.

        Raises
        ------
        dagster.Failure
            If ``cuda`` is asked for and there is none, or the name is unknown.
        """
        wanted = self.device or requested_device()
        if wanted not in DEVICES:
            raise dg.Failure(
                f"device is {wanted!r}; set it to one of {', '.join(DEVICES)}.", allow_retries=False
            )
        if wanted == "cpu":
            return "cpu"
        import torch

        if torch.cuda.is_available():
            return "cuda"
        if wanted == "cuda":
            raise dg.Failure(
                "NEUMF_DEVICE is 'cuda', but torch finds no CUDA device. Set NEUMF_DEVICE=auto or cpu, or "
                "install a CUDA build of torch (see NEUMF_TORCH in the README).",
                allow_retries=False,
            )
        return "cpu"
