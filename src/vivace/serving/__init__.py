"""`vivace serve`: bundles behind HTTP."""
