"""What the Makefile calls: the environment, the pins, the notebooks, the built pages."""
