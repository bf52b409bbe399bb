"""Every image of a data set decoded once, into files that are whole, checked, and read row by row."""
