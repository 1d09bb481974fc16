"""roadint beside pyvene, PEFT and the bare model, on one machine in one run: `roadint bench`."""
