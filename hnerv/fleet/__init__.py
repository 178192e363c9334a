"""Training many videos on many machines: a manifest, one Ray task per run, all run folders in one fleet folder."""
