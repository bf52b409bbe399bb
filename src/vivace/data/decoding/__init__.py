"""An image file → the square of uint8 pixels that is stored, with a guard against whatever the file may hold.

Nothing here needs more of vivace than `ImageError`: an exported deployment gets a copy of this whole package.
"""
