"""Benchmarks of roadint against pyvene, PEFT and the bare model: `roadint bench`."""
