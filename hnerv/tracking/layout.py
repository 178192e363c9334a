"""The custom-scalars dashboard: which tags share a chart."""

from __future__ import annotations

from hnerv.tracking.tags import tags

_EVAL = ("train", "val")

CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "Overview": {
        "PSNR of training and unseen frames (dB)": ("Train/PSNR", "Eval/Frame/val_psnr"),
        "total loss": ("Train/Loss/total_loss",),
        "learning rate": ("Train/learning_rate",),
    },
    "Loss breakdown": {
        "total loss and its terms": (
            "Train/Loss/total_loss", "Train/Loss/pixel_loss", "Train/Loss/clip_loss_weighted",
        ),
        "share of the total loss (%)": ("Train/Loss/pixel_share", "Train/Loss/clip_share"),
        "CLIP loss": ("Train/Loss/clip_loss",),
        "pixel loss / CLIP loss": ("Train/Loss/pixel_to_clip_ratio",),
        "CLIP loss weight": ("Train/clip_weight",),
        "stability: smoothness and spikes": ("Train/Stability/smoothness", "Train/Stability/spike_ratio"),
        "stability: trend of ln(loss) per 100 steps": ("Train/Stability/trend_slope",),
    },
    "Gradients": {
        "gradient norm before and after clipping": ("Train/Gradients/total_norm", "Train/Gradients/total_norm_clipped"),
        "gradient norm by part": (
            "Train/Gradients/rgb_head_norm", "Train/Gradients/clip_head_norm", "Train/Gradients/decoder_norm",
            "Train/Gradients/embedding_norm",
        ),
        "gradient norm, RGB head / CLIP head": ("Train/Gradients/rgb_to_clip_ratio",),
        "clipped steps (%)": ("Train/Gradients/clipped_share",),
    },
    "Evaluation": {
        "PSNR of unseen frames: mean between worst and best (dB)": (
            "Eval/Frame/val_psnr", "Eval/PSNR_Stats/val_min", "Eval/PSNR_Stats/val_max",
        ),
        "PSNR of training frames: mean between worst and best (dB)": (
            "Eval/Frame/train_psnr", "Eval/PSNR_Stats/train_min", "Eval/PSNR_Stats/train_max",
        ),
        "full-frame PSNR (dB)": tuple(f"Eval/Frame/{s}_psnr_frame" for s in _EVAL),
        "MS-SSIM": tuple(f"Eval/Frame/{s}_ms_ssim" for s in _EVAL),
        "similarity": tuple(f"Eval/Frame/{s}_clip_sim" for s in _EVAL),
        "centred similarity": tuple(f"Eval/Frame/{s}_clip_sim_centred" for s in _EVAL),
        "recall@1": tuple(f"Eval/Frame/{s}_clip_retrieval" for s in _EVAL),
        "recall@5 and recall@10": tuple(
            f"Eval/Frame/{s}_clip_recall{top}" for s in _EVAL for top in (5, 10)
        ),
        "overlap@10": tuple(f"Eval/Frame/{s}_clip_overlap10" for s in _EVAL),
        "Spearman": tuple(f"Eval/Frame/{s}_clip_spearman" for s in _EVAL),
        "generalisation gap in PSNR (dB)": ("Eval/Gap/psnr_gap",),
        "generalisation gap in similarity": ("Eval/Gap/clip_sim_gap",),
    },
    "Statistics": {
        "standard deviation of PSNR over frames (dB)": tuple(f"Eval/PSNR_Stats/{s}_std" for s in _EVAL),
        "standard deviation of PSNR over patches (dB)": tuple(f"Eval/Patch/{s}_psnr_std" for s in _EVAL),
        "standard deviation of similarity over patches": tuple(f"Eval/Patch/{s}_clip_sim_std" for s in _EVAL),
        "feature mean by stage": ("Model/Features/stage{n}_mean",),
        "feature standard deviation by stage": ("Model/Features/stage{n}_std",),
        "parameters of each head": tuple(
            f"Model/Params/{head}_{what}" for head in ("rgb_head", "clip_head") for what in ("mean", "std")
        ),
    },
    "Performance": {
        "step time by part (ms)": tuple(
            f"Train/Performance/{part}_ms" for part in ("forward", "backward", "optimizer", "graph")
        ),
        "patches per second": ("Train/Performance/patches_per_second",),
        "epoch time (s)": ("Train/Performance/epoch_seconds",),
        "time spent on data and logging (%)": ("Train/Performance/data_share", "Train/Performance/logging_share"),
        "memory (MiB)": (
            "Train/Performance/host_memory_mib",
            *(f"Train/Performance/gpu_memory_{what}_mib" for what in ("allocated", "reserved", "peak")),
        ),
        "GPU utilisation (%)": ("Train/Performance/gpu_utilisation",),
    },
    "Embedding health": {
        **{
            f"similarity of {name} patches: mean between worst and best": (
                f"Eval/Frame/{s}_clip_sim", f"Eval/Patch/{s}_clip_sim_min", f"Eval/Patch/{s}_clip_sim_max",
            )
            for s, name in zip(_EVAL, ("training", "unseen"), strict=True)
        },
        "standard deviation per dimension: mean and minimum": tuple(
            f"Eval/Embedding/{s}_std_{w}" for s in _EVAL for w in ("mean", "min")
        ),
        "effective rank: predicted and true": tuple(
            f"Eval/Embedding/{s}_{w}_rank" for s in _EVAL for w in ("effective", "target")
        ),
        "mean pairwise similarity: predicted and true": tuple(
            f"Eval/Embedding/{s}_{w}pairwise_sim" for s in _EVAL for w in ("", "target_")
        ),
        "embedding norm before normalisation": tuple(f"Eval/Embedding/{s}_norm" for s in _EVAL),
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
