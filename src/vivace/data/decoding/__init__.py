"""Decodes an image file to the stored square of uint8 pixels, with limits against malicious and damaged files.

This package imports nothing of vivace but `ImageError`: an exported deployment gets a copy of it.
"""
