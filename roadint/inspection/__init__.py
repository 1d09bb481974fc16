"""Inspection of what was learned: angles, next tokens, the paper's pilot studies."""
