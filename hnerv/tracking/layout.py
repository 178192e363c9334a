"""The custom-scalars dashboard: which tags share a chart."""

from __future__ import annotations

import re

from hnerv.tracking.tags import tags


def expand(names: str) -> tuple[str, ...]:
    """'a{x,y} b' -> ('ax', 'ay', 'b'), as a shell does. {n}, which has no comma, is left as it is."""
    expanded: list[str] = []
    for name in names.split():
        group = re.search(r"\{(\w*(?:,\w*)+)\}", name)
        alternatives = group[1].split(",") if group else []
        expanded += [tag for part in alternatives for tag in expand(name[: group.start()] + part + name[group.end() :])]
        expanded += [] if group else [name]
    return tuple(expanded)


_MARGIN = "mean between worst and best"
_CHARTS = {
    "Overview": {
        "PSNR of training and unseen frames (dB)": "Train/PSNR Eval/Frame/val_psnr",
        "total loss": "Train/Loss/total_loss",
        "learning rate": "Train/learning_rate",
    },
    "Loss breakdown": {
        "total loss and its terms": "Train/Loss/{total_loss,pixel_loss,clip_loss_weighted}",
        "share of the total loss (%)": "Train/Loss/{pixel,clip}_share",
        "CLIP loss": "Train/Loss/clip_loss",
        "pixel loss / CLIP loss": "Train/Loss/pixel_to_clip_ratio",
        "CLIP loss weight": "Train/clip_weight",
        "stability: smoothness and spikes": "Train/Stability/{smoothness,spike_ratio}",
        "stability: trend of ln(loss) per 100 steps": "Train/Stability/trend_slope",
    },
    "Gradients": {
        "gradient norm before and after clipping": "Train/Gradients/total_norm{,_clipped}",
        "gradient norm by part": "Train/Gradients/{rgb_head,clip_head,decoder,embedding}_norm",
        "gradient norm, RGB head / CLIP head": "Train/Gradients/rgb_to_clip_ratio",
        "clipped steps (%)": "Train/Gradients/clipped_share",
    },
    "Evaluation": {
        f"PSNR of unseen frames: {_MARGIN} (dB)": "Eval/Frame/val_psnr Eval/PSNR_Stats/val_{min,max}",
        f"PSNR of training frames: {_MARGIN} (dB)": "Eval/Frame/train_psnr Eval/PSNR_Stats/train_{min,max}",
        "full-frame PSNR (dB)": "Eval/Frame/{train,val}_psnr_frame",
        "PSNR of YUV 6:1:1 and of luma (dB), by eval.py": "Eval/Frame/{train,val}_psnr_{yuv,y}",
        "MS-SSIM": "Eval/Frame/{train,val}_ms_ssim",
        "MS-SSIM (dB)": "Eval/Frame/{train,val}_ms_ssim_db",
        "VMAF, by eval.py --vmaf": "Eval/Frame/{train,val}_vmaf",
        "similarity": "Eval/Frame/{train,val}_clip_sim",
        "centred similarity": "Eval/Frame/{train,val}_clip_sim_centred",
        "recall@1, with and without neighbouring frames": "Eval/Frame/{train,val}_clip_retrieval{,_exact}",
        "recall@5 and recall@10": "Eval/Frame/{train,val}_clip_recall{5,10}",
        "overlap@10": "Eval/Frame/{train,val}_clip_overlap10",
        "Spearman": "Eval/Frame/{train,val}_clip_spearman",
        "generalisation gap in PSNR (dB)": "Eval/Gap/psnr_gap{,_paired,_paired_error}",
        "generalisation gap in similarity": "Eval/Gap/clip_sim_gap",
    },
    "Statistics": {
        "standard deviation of PSNR over frames (dB)": "Eval/PSNR_Stats/{train,val}_std",
        "standard deviation of PSNR over patches (dB)": "Eval/Patch/{train,val}_psnr_std",
        "standard deviation of similarity over patches": "Eval/Patch/{train,val}_clip_sim_std",
        "feature mean by stage": "Model/Features/stage{n}_mean",
        "feature standard deviation by stage": "Model/Features/stage{n}_std",
        "EMA: distance of averaged and current weights": "Train/EMA/distance",
        "EMA: decay and norm ratio": "Train/EMA/{decay,norm_ratio}",
        "rate by part (bits per pixel, estimate)": "Train/Rate/{,embedding_,decoder_,rgb_head_,clip_head_}bpp",
        "rate: its weight and its term in the loss": "Train/Rate/{weight,loss}",
        "parameters of each head": "Model/Params/{rgb,clip}_head_{mean,std}",
    },
    "Performance": {
        "step time by part (ms)": "Train/Performance/{forward,backward,optimizer,graph}_ms",
        "patches per second": "Train/Performance/patches_per_second",
        "epoch time (s)": "Train/Performance/epoch_seconds",
        "time spent on data and logging (%)": "Train/Performance/{data,logging}_share",
        "memory (MiB)": "Train/Performance/{host_memory,gpu_memory_allocated,gpu_memory_reserved,gpu_memory_peak}_mib",
        "GPU utilisation (%)": "Train/Performance/gpu_utilisation",
    },
    "Embedding health": {
        f"similarity of training patches: {_MARGIN}": "Eval/Frame/train_clip_sim Eval/Patch/train_clip_sim_{min,max}",
        f"similarity of unseen patches: {_MARGIN}": "Eval/Frame/val_clip_sim Eval/Patch/val_clip_sim_{min,max}",
        "standard deviation per dimension: mean and minimum": "Eval/Embedding/{train,val}_std_{mean,min}",
        "effective rank: predicted and true": "Eval/Embedding/{train,val}_{effective,target}_rank",
        "mean pairwise similarity: predicted and true": "Eval/Embedding/{train,val}_{,target_}pairwise_sim",
        "embedding norm before normalisation": "Eval/Embedding/{train,val}_norm",
        "normalised MSE": "Eval/Patch/{train,val}_clip_nmse",
    },
}
CHARTS = {category: {title: expand(names) for title, names in charts.items()} for category, charts in _CHARTS.items()}
"""Category -> chart -> names in the table of tags. A title with _MARGIN is a margin chart: value, lower, upper."""


def layout() -> dict[str, dict[str, list]]:
    """CHARTS in the form that `SummaryWriter.add_custom_scalars` takes."""
    return {category: {title: _chart(title, charts[title]) for title in charts} for category, charts in CHARTS.items()}


def _chart(title: str, names: tuple[str, ...]) -> list:
    # The page takes the tags of a line chart for regular expressions, matched at the start of a tag: "clip_loss" would
    # also draw "clip_loss_weighted", so they are anchored. It compares the tags of a margin chart as plain text.
    if _MARGIN in title:
        return ["Margin", list(names)]
    return ["Multiline", [tags()[name].pattern for name in names]]
