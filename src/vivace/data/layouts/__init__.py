"""How people lay out labelled images: folders, manifests, archives, shards of parquet, data sets with a name."""
