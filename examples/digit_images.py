"""Write a few of scikit-learn's handwritten digits as PNG files, named by what they show."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
digits = load_digits()
for index in range(5):
    # the grey values run from 0 to 16
    pixels = np.round(digits.images[index] * 255 / 16).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"digit-{digits.target[index]}.png")
