"""The one operation that turns hidden states, a file for each backend."""
