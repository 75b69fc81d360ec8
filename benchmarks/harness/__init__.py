"""What the benchmarks share: running, storing, timing, statistics, tables and figures."""
