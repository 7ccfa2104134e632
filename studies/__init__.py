"""Long runs and machinery behind the chapters of the book."""
