"""Random draws of a loss, which go on where they stopped when a run is resumed."""

import torch
from torch import Tensor, nn


class SavedGenerator(nn.Module):
    """A generator on the CPU whose state is saved with the module it belongs to.

    Every process of a run draws the same numbers from the same seed, as each of them computes the loss of the whole
    batch.

    Args:
        seed: Of the generator.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())
