"""Measuring a composition: likelihood of references, language of answers."""
