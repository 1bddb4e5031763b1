"""The exponential moving average of the weights, which validation and the best checkpoint use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


class Averaged:
    """Average of a model's trained parameters: ``a <- d a + (1 - d) w`` with ``d = min(decay, (1 + n) / (10 + n))`` at update n."""

    def __init__(self, model: torch.nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.live = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.shadow = [parameter.detach().clone() for parameter in self.live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after the update number ``step``."""
        torch._foreach_lerp_(self.shadow, [item.detach() for item in self.live], 1 - min(self.decay, (1 + step) / (10 + step)))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the average inside the block, its own weights again after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The whole model's tensors with the average in place of the trained ones (copies)."""
        with self.applied():
            return {name: value.detach().clone().contiguous() for name, value in self.model.state_dict().items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what :meth:`state_dict` gave."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for shadow, live in zip(self.shadow, self.live, strict=True):
            shadow.copy_(state[names[id(live)]])

    @torch.no_grad()
    def _swap(self) -> None:
        for shadow, live in zip(self.shadow, self.live, strict=True):
            kept = live.detach().clone()
            live.copy_(shadow)
            shadow.copy_(kept)
