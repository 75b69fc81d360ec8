"""What the benchmarks share beside textgym.benchmark: timing, profiling, successive halving."""
