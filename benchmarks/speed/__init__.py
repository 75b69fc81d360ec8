"""The parts of throughput.py; each measures ratios side by side and returns its raw rows."""
