"""What was learned, made visible: angles, next tokens, the paper's pilot studies."""
