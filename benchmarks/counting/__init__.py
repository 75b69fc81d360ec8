"""The parts of scale.py: what an iteration costs, counted from the shape of the model."""
