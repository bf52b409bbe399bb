"""Caches the decoded images of a data set in files with checksums, which are read row by row."""
