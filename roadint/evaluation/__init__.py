"""Evaluation of compositions: likelihood of references; language, topic and form of answers."""
