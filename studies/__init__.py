"""The experiments behind the chapters, as named functions that the notebooks call."""
