"""The operation that rotates hidden states, with a file for every backend."""
