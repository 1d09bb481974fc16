"""Hierarchical equality, the task of DAS (arXiv 2303.02536), and a network that learns it.

The network is given four random vectors and tells whether (w = x) = (y = z). Its two variables
are w = x and y = z.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from roadint.progress import track

_DIMS = 4  # of each of the four vectors
_LAYERS_BELOW = 1  # the site is the output of this many layers

Hidden = Float[Tensor, "rows width"]
Labels = Int[Tensor, " rows"]


class EqualityNetwork(nn.Module):
    """Three layers with ReLU, two classes.

    Args:
        width: The width of the hidden states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in (4 * _DIMS, width, width))
        self.head = nn.Linear(width, 2)

    def below(self, x: Float[Tensor, "rows inputs"]) -> Hidden:
        """The hidden states at the site."""
        for layer in self.layers[:_LAYERS_BELOW]:
            x = functional.relu(layer(x))
        return x

    def above(self, h: Hidden) -> Float[Tensor, "rows 2"]:
        """The logits for hidden states at the site."""
        for layer in self.layers[_LAYERS_BELOW:]:
            h = functional.relu(layer(h))
        logits: Tensor = self.head(h)
        return logits


def learn_task(network: EqualityNetwork, steps: int, quiet: bool) -> float:
    """Train the network.

    Args:
        network: The network.
        steps: The number of steps, of 512 rows, by Adam.
        quiet: Whether there is no progress bar.

    Returns:
        The share of right answers on 4,096 new rows.
    """
    device = next(network.parameters()).device
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in track(range(steps), steps, "learning the task", quiet=quiet):
        x, equal = _rows(512, device)
        loss = functional.cross_entropy(network.above(network.below(x)), _label(equal))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    x, equal = _rows(4096, device)
    with torch.no_grad():
        answers = network.above(network.below(x)).argmax(1)
    return float((answers == _label(equal)).float().mean())


def swapped_pairs(
    network: EqualityNetwork, count: int, variable: int
) -> tuple[Hidden, Hidden, Labels]:
    """Draw pairs of inputs whose variable is swapped.

    Args:
        network: The network.
        count: How many pairs.
        variable: 0 for w = x, 1 for y = z.

    Returns:
        Hidden states of the bases and of the sources; the labels of the bases with the variable of
        the sources.
    """
    device = next(network.parameters()).device
    with torch.no_grad():
        (base, equal), (source, equal_of_source) = _rows(count, device), _rows(count, device)
        swapped = equal.clone()
        swapped[:, variable] = equal_of_source[:, variable]
        return network.below(base), network.below(source), _label(swapped)


def _rows(
    count: int, device: torch.device
) -> tuple[Float[Tensor, "rows inputs"], Bool[Tensor, "rows 2"]]:
    """Random inputs, and whether their pairs are equal, with probability one half."""
    w, x, y, z = torch.randn(4, count, _DIMS)
    equal = torch.rand(count, 2) < 0.5
    x, z = torch.where(equal[:, :1], w, x), torch.where(equal[:, 1:], y, z)
    return torch.cat([w, x, y, z], dim=1).to(device), equal.to(device)


def _label(equal: Bool[Tensor, "rows 2"]) -> Labels:
    return (equal[:, 0] == equal[:, 1]).long()
