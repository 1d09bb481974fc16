"""vLLM: requests become rows of a table, which operations inside the compiled graph read.

Only `plugin` and the files beside it that say so need vLLM; the others are tested without it.
"""
