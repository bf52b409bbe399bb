"""The layouts of labelled images that are understood: folders, manifests, archives, parquet shards, named data sets."""
