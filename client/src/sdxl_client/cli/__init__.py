"""The command line `sdxl`: results on stdout, everything else on stderr."""
