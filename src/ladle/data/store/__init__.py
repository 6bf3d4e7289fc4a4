"""The mixed dataset on disk: token shards, the index over them, its rows for training, its Arrow export."""
