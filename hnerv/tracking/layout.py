"""The custom-scalars dashboard: which tags share a chart."""

from __future__ import annotations

from hnerv.tracking.tags import tags

_EVAL = ("train", "val")

CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "Overview": {
        "PSNR, training and unseen frames (dB)": ("Train/PSNR", "Eval/Frame/val_psnr"),
        "total loss": ("Train/Loss/total_loss",),
        "learning rate": ("Train/learning_rate",),
    },
    "Loss breakdown": {
        "terms of the total loss": (
            "Train/Loss/total_loss", "Train/Loss/pixel_loss", "Train/Loss/clip_loss_weighted",
        ),
        "shares of the total loss (%)": ("Train/Loss/pixel_share", "Train/Loss/clip_share"),
        "CLIP loss, 1 - cosine": ("Train/Loss/clip_loss",),
        "pixel loss / CLIP loss": ("Train/Loss/pixel_to_clip_ratio",),
        "weight of the CLIP loss": ("Train/clip_weight",),
        "stability: smoothness, spikes": ("Train/Stability/smoothness", "Train/Stability/spike_ratio"),
        "stability: trend, ln(loss) per 100 steps": ("Train/Stability/trend_slope",),
    },
    "Gradients": {
        "norm before and after clipping": ("Train/Gradients/total_norm", "Train/Gradients/total_norm_clipped"),
        "norm of each part": (
            "Train/Gradients/rgb_head_norm", "Train/Gradients/clip_head_norm", "Train/Gradients/decoder_norm",
            "Train/Gradients/embedding_norm",
        ),
        "RGB head / CLIP head": ("Train/Gradients/rgb_to_clip_ratio",),
        "steps that were clipped (%)": ("Train/Gradients/clipped_share",),
    },
    "Evaluation": {
        "PSNR of the unseen frames, mean between worst and best (dB)": (
            "Eval/Frame/val_psnr", "Eval/PSNR_Stats/val_min", "Eval/PSNR_Stats/val_max",
        ),
        "PSNR of the training frames, mean between worst and best (dB)": (
            "Eval/Frame/train_psnr", "Eval/PSNR_Stats/train_min", "Eval/PSNR_Stats/train_max",
        ),
        "PSNR of whole frames (dB)": tuple(f"Eval/Frame/{s}_psnr_frame" for s in _EVAL),
        "MS-SSIM": tuple(f"Eval/Frame/{s}_ms_ssim" for s in _EVAL),
        "similarity": tuple(f"Eval/Frame/{s}_clip_sim" for s in _EVAL),
        "similarity, centred": tuple(f"Eval/Frame/{s}_clip_sim_centred" for s in _EVAL),
        "retrieval agreement": tuple(f"Eval/Frame/{s}_clip_retrieval" for s in _EVAL),
        "retrieval, among the first 5 and 10": tuple(
            f"Eval/Frame/{s}_clip_recall{top}" for s in _EVAL for top in (5, 10)
        ),
        "overlap of the 10 nearest": tuple(f"Eval/Frame/{s}_clip_overlap10" for s in _EVAL),
        "rank correlation (Spearman)": tuple(f"Eval/Frame/{s}_clip_spearman" for s in _EVAL),
        "gap of the PSNR (dB)": ("Eval/Gap/psnr_gap",),
        "gap of the similarity": ("Eval/Gap/clip_sim_gap",),
    },
    "Statistics": {
        "deviation of the PSNR over frames (dB)": tuple(f"Eval/PSNR_Stats/{s}_std" for s in _EVAL),
        "deviation of the PSNR over patches (dB)": tuple(f"Eval/Patch/{s}_psnr_std" for s in _EVAL),
        "deviation of the similarity over patches": tuple(f"Eval/Patch/{s}_clip_sim_std" for s in _EVAL),
        "mean of the features of each stage": ("Model/Features/stage{n}_mean",),
        "deviation of the features of each stage": ("Model/Features/stage{n}_std",),
        "parameters of the heads": tuple(
            f"Model/Params/{head}_{what}" for head in ("rgb_head", "clip_head") for what in ("mean", "std")
        ),
    },
    "Performance": {
        "parts of a step (ms)": tuple(
            f"Train/Performance/{part}_ms" for part in ("forward", "backward", "optimizer", "graph")
        ),
        "patches per second": ("Train/Performance/patches_per_second",),
        "time of an epoch (s)": ("Train/Performance/epoch_seconds",),
        "shares of data and logging (%)": ("Train/Performance/data_share", "Train/Performance/logging_share"),
        "memory (MiB)": (
            "Train/Performance/host_memory_mib",
            *(f"Train/Performance/gpu_memory_{what}_mib" for what in ("allocated", "reserved", "peak")),
        ),
        "GPU utilisation (%)": ("Train/Performance/gpu_utilisation",),
    },
    "Embedding health": {
        **{
            f"similarity of the {s} patches, mean between worst and best": (
                f"Eval/Frame/{s}_clip_sim", f"Eval/Patch/{s}_clip_sim_min", f"Eval/Patch/{s}_clip_sim_max",
            )
            for s in _EVAL
        },
        "deviation per dimension, mean and least": tuple(
            f"Eval/Embedding/{s}_std_{w}" for s in _EVAL for w in ("mean", "min")
        ),
        "effective rank, predicted and true": tuple(
            f"Eval/Embedding/{s}_{w}_rank" for s in _EVAL for w in ("effective", "target")
        ),
        "mean pairwise similarity, predicted and true": tuple(
            f"Eval/Embedding/{s}_{w}pairwise_sim" for s in _EVAL for w in ("", "target_")
        ),
        "norm before normalisation": tuple(f"Eval/Embedding/{s}_norm" for s in _EVAL),
        "normalised MSE": tuple(f"Eval/Patch/{s}_clip_nmse" for s in _EVAL),
    },
}  # fmt: skip
"""Category -> chart -> names of the table of tags. A title with 'between' is a margin chart: value, lower, upper."""


def layout() -> dict[str, dict[str, list]]:
    """CHARTS as `SummaryWriter.add_custom_scalars` takes them.

    The page matches the tags of a line chart as regular expressions, at their beginning, so they are anchored; those
    of a margin chart it escapes and compares as they are.
    """
    return {
        category: {title: _chart(title, names) for title, names in charts.items()}
        for category, charts in CHARTS.items()
    }


def _chart(title: str, names: tuple[str, ...]) -> list:
    if "between" in title:
        return ["Margin", list(names)]
    return ["Multiline", [tags()[name].pattern for name in names]]
