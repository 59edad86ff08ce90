"""What the benchmarks share: the form of a result, the files of cases, claims, tables, and toys to measure."""
