"""How images were decoded in training: copies of the modules that did it."""
