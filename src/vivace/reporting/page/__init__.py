"""The report of a run or a bundle: one HTML file that needs no network and no script."""
