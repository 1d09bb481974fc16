"""pyvene, imported without its printing: the classes that an intervention has to derive from, and the library itself."""

import contextlib
import io
import warnings

with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pyvene
    from pyvene import (
        DistributedRepresentationIntervention,
        SourcelessIntervention,
        TrainableIntervention,
    )

__all__ = ["DistributedRepresentationIntervention", "SourcelessIntervention", "TrainableIntervention", "pyvene"]
