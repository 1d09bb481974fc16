"""A PrefixCache for a training: a new one, that of the training before, or none."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from roadint.data.collate import Collator, Example
from roadint.errors import RoadError, first_line
from roadint.model.road_model import RoadModel
from roadint.training.fingerprint import ModelState
from roadint.training.prefix.cache import PrefixCache
from roadint.training.prefix.reusable import CannotReuseError, check_reusable

logger = logging.getLogger(__name__)

# What a model raises that caches something else than keys and values, or that can't run from a
# layer on. Running out of memory is a RuntimeError, too; training without reuse needs less.
_FOREIGN_ERRORS: tuple[type[Exception], ...] = (AssertionError, AttributeError, LookupError)
_FOREIGN_ERRORS += (RuntimeError, TypeError, ValueError)


def reusable_prefix(
    road: RoadModel, examples: Sequence[Example], collator: Collator, **settings: Any
) -> PrefixCache | None:
    """A new PrefixCache, where the prefix can be reused; the log says so, or why not.

    Arguments as in `PrefixCache.build`.

    Returns:
        The cache; None where training has to compute everything.

    Raises:
        RoadError: where the model refuses the examples.
    """
    try:
        cache = PrefixCache.build(road, examples, collator, **settings)
    except RoadError:
        raise
    except CannotReuseError as error:
        reason = str(error)
    except _FOREIGN_ERRORS as error:
        reason = f"{type(error).__name__} ({first_line(error)})"
        logger.debug("what the model raised", exc_info=True)
    else:
        logger.info("%s", cache.report)
        return cache
    logger.warning("no prefix reuse, training runs the plain way: %s", reason)
    return None


class SharedPrefix:
    """Lets trainings on one model, one after the other, share a PrefixCache.

    A training uses the cache of the training before it where the base model is the same, with the
    same values, and the lowest layer and the examples fit. Otherwise it makes a new one.

    Attributes:
        cache: The cache of the last training; set it to None to free its memory.
    """

    def __init__(self) -> None:
        self.cache: PrefixCache | None = None
        self._made_from: ModelState | None = None

    def take(
        self,
        road: RoadModel,
        examples: Sequence[Example],
        collator: Collator,
        build: Callable[[], PrefixCache | None],
    ) -> PrefixCache | None:
        """The cache of the last training where it fits, else a new one.

        Args:
            road: The model to train.
            examples: The examples of the training.
            collator: Makes plain batches of the examples.
            build: Makes a new cache, see `reusable_prefix`.

        Returns:
            The cache; None where the prefix can't be reused.
        """
        if self.cache is not None and self._fits(self.cache, road, examples, collator):
            return self.cache
        self.cache = self._made_from = None  # frees the memory for the new one
        self.cache = build()
        if self.cache is not None:
            self._made_from = ModelState.of(road.model)
        return self.cache

    def _fits(
        self, cache: PrefixCache, road: RoadModel, examples: Sequence[Example], collator: Collator
    ) -> bool:
        if not examples or not cache.serves(road, examples, collator):
            return False
        if self._made_from is None or not self._made_from.is_of(road.model):
            return False
        try:
            check_reusable(road.model)
            cache.check_likelihoods(road, max(examples, key=len))
        except CannotReuseError:
            return False
        return True
