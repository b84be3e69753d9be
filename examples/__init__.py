"""Scripts to try the package with."""
