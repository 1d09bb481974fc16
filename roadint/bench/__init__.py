"""roadint against pyvene and the bare model, on one machine in one run."""
