"""What the benchmarks share: models of equal weights, ways that take turns, floors, and the files of results."""
