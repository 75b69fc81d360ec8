"""Tables and figures: each module turns the raw rows of one benchmark into text and pictures.

Nothing here needs torch or a model, so ``--tables-only`` takes a second.
"""
