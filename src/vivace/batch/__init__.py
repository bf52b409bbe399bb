"""Predictions of any number of images: a stream that is written as it comes, and resumed after a kill."""
