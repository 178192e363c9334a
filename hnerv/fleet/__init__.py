"""Many videos on many machines: a manifest, a Ray task for each run, their run folders under one output folder."""
