"""A backend `cpu` for Triton that compiles nothing: with it, vLLM's V2 runner starts on a CPU.

Under `TRITON_INTERPRET=1` no kernel is ever compiled, so all that is asked of the backend is to be
there. Only processes with this folder's parent on `PYTHONPATH` see it.
"""
