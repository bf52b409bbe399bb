"""Predictions by processes of a cluster: numbered batches go out, and each is written once, in order."""
