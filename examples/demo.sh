#!/bin/sh
# Train on scikit-learn's handwritten digits, measure on their test split, classify a few images. No download.
set -eu

work=${VIVACE_DEMO:-runs}
mkdir -p "$work"
run="$work/demo-$(date +%Y%m%d-%H%M%S)"

echo '$ vivace train digits'
vivace train digits --run "$run"

echo
echo '$ vivace evaluate BUNDLE digits --split test'
vivace evaluate "$run/bundle" digits --split test --figures "$run/evaluation"

echo
echo '$ vivace predict BUNDLE IMAGES'
python examples/digit_images.py "$run/images"
vivace predict "$run/bundle" "$run/images" --topk 3

echo
echo "run:     $run"
echo "bundle:  $run/bundle"
echo "curves:  $run/curves.png and, live, tensorboard --logdir $run/tensorboard"
echo "serve:   vivace serve digits-demo=$run, and drop one of $run/images on http://127.0.0.1:8000/"
