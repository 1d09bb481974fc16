"""Conversion to and from pyvene, pyreft and PEFT."""
