"""The article's network in Keras on TensorFlow, trained as the article does, on Keras' own way of reading folders.

Six 3×3 convolution blocks of 6-16-32-64-128-K channels, batch norm with PyTorch's constants, ReLU and pooling in the
first five, no ReLU on the logits; SGD at 0.01 without momentum, batches of 64, cross-entropy, no augmentation, fp32.
Weights start as Keras starts them. Larger images than 32 px are averaged to 1 × 1.

Read as in Keras' guide to loading images: image_dataset_from_directory, then cache, shuffle and prefetch. So images are
decoded once, in the first epoch, kept in memory, and later epochs see the same batches in another order: more than
the article's program does, and the fastest that Keras offers simply. Steps run 32 at a time within TensorFlow
(steps_per_execution). An image that cannot be decoded would stop it.

    python with_keras.py data/cifar10 --size 32 --epochs 10 --out runs/keras --json
"""

from __future__ import annotations

from protocol import Clock, looks_folder, options, report

# isort: split
import os
from pathlib import Path
from typing import Any

# warnings of its start-up would drown the epochs
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from keras import layers


def simple_cnn(size: int, num_classes: int) -> keras.Model:
    """Pixels of 0 to 255 to logits."""
    stack = [layers.Input((size, size, 3)), layers.Rescaling(1 / 127.5, offset=-1)]
    for width in (6, 16, 32, 64, 128):
        stack += [*conv_norm(width), layers.ReLU(), layers.MaxPooling2D(2)]
    return keras.Sequential([*stack, *conv_norm(num_classes), layers.GlobalAveragePooling2D()])


def conv_norm(width: int) -> list[layers.Layer]:
    # PyTorch counts the momentum of a batch norm the other way round: 0.1 there
    return [layers.Conv2D(width, 3, padding="same"), layers.BatchNormalization(momentum=0.9, epsilon=1e-5)]


class Looks(keras.callbacks.Callback):
    """Tells the clock when the loop and its evaluations begin and end."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.clock.begin_look()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        assert logs is not None, "Keras gives the results of a look to its callbacks"
        self.clock.end_look(logs["accuracy"])

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.model.stop_training = self.clock.reached


def read(folder: Path, args: Any, *, shuffle: bool) -> tf.data.Dataset:
    data = keras.utils.image_dataset_from_directory(
        folder, image_size=(args.size, args.size), batch_size=args.batch_size, shuffle=shuffle, seed=args.seed
    )
    kept = data.cache()
    return (kept.shuffle(1000) if shuffle else kept).prefetch(tf.data.AUTOTUNE)


def main() -> None:
    args = options("The article's network in Keras on TensorFlow", size=32, batch_size=64)
    keras.utils.set_random_seed(args.seed)
    num_classes = sum(path.is_dir() for path in (args.data / "train").iterdir())
    train_data = read(args.data / "train", args, shuffle=True)
    look_data = read(looks_folder(args.data), args, shuffle=False)
    model = simple_cnn(args.size, num_classes)
    model.compile(
        optimizer=keras.optimizers.SGD(0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=32,
    )
    clock = Clock(target=args.target)
    clock.start()
    model.fit(train_data, validation_data=look_data, epochs=args.epochs, callbacks=[Looks(clock)], verbose=0)
    model.save_weights(args.out / "model.weights.h5")
    report(clock, "keras", "tensorflow-cpu", json_line=args.json)


if __name__ == "__main__":
    main()
