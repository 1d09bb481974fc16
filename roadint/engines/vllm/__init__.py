"""The engine that runs vLLM: a plugin, every request with a composition of its own."""
