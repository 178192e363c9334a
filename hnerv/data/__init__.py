"""The data of a run: videos and images, CLIP targets, frames on a device, batches."""
