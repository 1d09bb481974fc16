"""What all figures share: colours, and that a notebook shows them."""

import io

import matplotlib.figure

# Okabe and Ito's, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")


class Figure(matplotlib.figure.Figure):
    """A matplotlib Figure that belongs to no window; a notebook shows it without pyplot."""

    def _repr_png_(self) -> bytes:
        written = io.BytesIO()
        self.savefig(written, format="png", dpi=100)
        return written.getvalue()
