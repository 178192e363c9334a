"""The neural representation of a video: embedding, decoder, RGB head, CLIP head."""

from hnerv.model.build import build_model, coded_parameters
from hnerv.model.embeddings import LATENTS
from hnerv.model.network import DualHeadHNeRV, Prediction
from hnerv.model.scene import Scene, frame_multiple, joined_scene

__all__ = [
    "LATENTS",
    "DualHeadHNeRV",
    "Prediction",
    "Scene",
    "build_model",
    "coded_parameters",
    "frame_multiple",
    "joined_scene",
]
