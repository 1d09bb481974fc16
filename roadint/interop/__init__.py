"""To and from the forms of pyvene, pyreft and PEFT."""
