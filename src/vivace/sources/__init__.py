"""Where the images of a prediction come from: folders, globs, lists, tar shards and parquet files, as streams."""
