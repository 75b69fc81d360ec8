"""Training of the embedded models: ``python -m textgym.models.build``."""
