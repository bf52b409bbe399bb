"""Random augmentation of image batches on their device: pure functions of the images and a generator."""
