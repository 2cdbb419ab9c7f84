"""What benchmarks measure with, and the files that their figures go to."""
