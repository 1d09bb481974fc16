"""The command line: one file for every command, and shared options."""
