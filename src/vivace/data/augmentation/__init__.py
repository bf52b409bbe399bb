"""Random variations of a batch of images, on its device, as pure functions of the images and a generator."""
