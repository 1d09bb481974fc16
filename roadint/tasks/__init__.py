"""The paper's finetuning tasks (section 4.1), with their data and metrics.

GLUE on a classifier; commonsense and arithmetic reasoning on a language model. A new task of GLUE's
form is one entry in `glue.FORMATS`. Any other is one file with a class that is a `task.Task`, and
one entry in `registry.TASKS`.
"""
