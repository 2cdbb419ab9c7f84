"""What benchmarks measure with, and the files and tables that their figures go to."""
