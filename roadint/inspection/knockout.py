"""Knock-outs: which blocks of a subspace carry what it learned."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from roadint.errors import RoadError, check_known
from roadint.interventions.base import SubspaceIntervention
from roadint.model.road_model import RoadModel

Order = Literal["largest", "smallest", "random"]


@contextmanager
def knocked_out(
    road: RoadModel, subspace: str, share: float, *, order: Order = "largest", seed: int = 0
) -> Iterator[RoadModel]:
    """A context in which some units of a subspace do nothing, at every site that has it.

    A unit of RoAd is a block, of LoReFT a row of its matrices. The values are the model's own:
    other threads see them change. They come back exactly when the context ends.

    Args:
        road: The model.
        subspace: The name of a subspace.
        share: The share of the subspace's units, from 0 to 1; at each site the nearest whole
            number of them.
        order: Which go first: "largest", those that change a state most, by θ² + (ln α)²;
            "smallest"; or "random".
        seed: The seed of "random".

    Yields:
        The model.

    Raises:
        RoadError: where a name is unknown, `share` is no share, or the edit has no blocks with
            angles and scales to order by.

    Examples:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from roadint import RoadIntervention
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=9, num_hidden_layers=1, **sizes))
        >>> road = RoadModel(model, RoadIntervention(subspaces={"german": "[0, d)"}))
        >>> theta = road.interventions[0].theta
        >>> _ = theta.data.copy_(torch.tensor([0.1, 0.4, 0.2, 0.3]))
        >>> with knocked_out(road, "german", 0.5):
        ...     [round(angle, 1) for angle in theta.tolist()]
        [0.1, 0.0, 0.2, 0.0]
        >>> [round(angle, 1) for angle in theta.tolist()]
        [0.1, 0.4, 0.2, 0.3]
    """
    check_known("subspace", subspace, road.interventions.names)
    check_known("order", order, get_args(Order))
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise RoadError(f"share {share!r}: expected a number from 0 to 1, such as 0.5")
    sites = [site for site in road.interventions if subspace in site.partition]
    generator = torch.Generator().manual_seed(seed)
    ranked = [_ranked(site, subspace, order, generator) for site in sites]
    saved = [(value, value.detach().clone()) for site in sites for value in site.parameters()]
    try:
        for site, units in zip(sites, ranked, strict=True):
            keeps = torch.ones(site.partition.count, dtype=torch.float32)
            keeps[units[: round(share * len(units))]] = 0
            site.rescale_units(keeps)
        yield road
    finally:
        with torch.no_grad():
            for value, before in saved:
                value.copy_(before)


def _ranked(
    site: SubspaceIntervention, subspace: str, order: Order, generator: torch.Generator
) -> Int[Tensor, " units"]:
    """The units of a subspace, those that go first in front."""
    units = torch.tensor(site.partition[subspace].blocks)
    if order == "random":
        return units[torch.randperm(len(units), generator=generator)]
    turned = site.angles_and_scales()
    if turned is None:
        raise RoadError(
            f"{site.kind} edits have no blocks with angles and scales to order by: "
            "expected order='random'"
        )
    angles, scales = (values[units].double().reshape(len(units), -1) for values in turned)
    extent = (angles.square() + scales.log().square()).sum(1)
    return units[extent.argsort(descending=order == "largest", stable=True)]
