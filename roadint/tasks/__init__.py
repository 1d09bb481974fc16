"""The paper's finetuning tasks: GLUE on a classifier, commonsense and arithmetic reasoning on a language model (section 4.1)."""
