"""Near duplicates: images that show the same picture, resized, turned, cropped, recoloured or lettered."""
