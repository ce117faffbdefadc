# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3 · Train
#
# One U-Net per fold, BCE + Dice on soft targets, validated after each epoch at the images' own size. The last
# weights are kept, because validation did not pick them; in `baseline`, and with `keep = "best"`, those of
# the epoch with the highest validation Dice.
#
# *Input:* the data set. *Artifacts:* `runs/<run>/fold<k>/` with `best_unet_model.pth`, `last.pth` (from which
# a stopped run resumes), `history.csv`, `val_outputs/` and `oof.npz` (the predictions on the images that the
# fold did not train on).

# %%
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ctseg.data import load_training_set
from ctseg.device import choose_precision, find_device
from ctseg.folds import assign_folds, train_folds
from ctseg.page import keep_figure
from ctseg.plots import plot_cases, plot_history, table
from ctseg.runs import make_config, make_dataset, make_network, open_run, read_parameters
from ctseg.tables import check_tables
from ctseg.train import find_kept

# %% [markdown] tags=["setup"]
# ## Parameters
#
# papermill replaces values with `-p name value`; any other field of `ctseg.config.Config` can be passed in
# the same way. `None` means what the run says, once a fold has weights, else what the preset says. From then
# on other settings are refused: they are another run's.

# %% tags=["parameters"]
preset: str = None  # quick (the default), strong (best on a CPU), gpu (for GPUs) or baseline (the reference)
data_root: str = ""  # folder of the data set, "phantom" for the synthetic one, "" to search
run: str = ""  # folder below runs/, "" for a name made from the settings
fold: int = None  # train this fold only, 0 to n_folds - 1; None for all
n_folds: int = None  # number of folds; 1 for one model on a 90/10 split
epochs: int = None  # passes over the training set
budget_minutes: float = None  # wall minutes from loading to predictions, all folds, instead of epochs
batch_size: int = None  # images per step
lr: float = None  # largest learning rate of the schedule
target_size: int = None  # pixels, side of the square that the network sees
encoder: str = None  # "unet" (the reference's) or a torchvision network, such as resnet34 or mobilenet_v2
weights: str = None  # of the encoder: "" from scratch, "default" torchvision's (may download), else a file
seed: int = None  # of the split, the initial weights and every random draw

# %% tags=["setup"]
config = run_dir = None  # after an error no cell below goes on with earlier settings
config = make_config(**read_parameters(globals()))
run_dir = open_run(config)
config

# %% [markdown]
# ## The training set
#
# Every image is decoded once and kept as uint8 in its square, in a temporary file that is gone with this
# notebook; batches are cut from there and augmented on the device that trains.
#
# If tables of run-length codes or a sample submission came with the data, they have to agree with the
# settings before hours are spent.

# %%
check_tables(Path(config.data_root), config, limit=100)
training_set = load_training_set(make_dataset(config, "train"))
print(f"{len(training_set)} images of {config.target_size} pixels, {training_set.pixels.nbytes / 1e6:.0f} MB")

# %% [markdown]
# ## The split
#
# Validation images are never trained on. With `split = "stratified"` each fold gets the same mix of region
# sizes, and near-duplicates stay in one fold.

# %%
folds = assign_folds(config, run_dir, training_set)
in_fold = {k: folds == k for k in range(config.n_folds)}
rows = [{"fold": k, "train": sum(~is_in), "validation": sum(is_in)} for k, is_in in in_fold.items()]
table([row | {"mean area": training_set.areas[in_fold[row["fold"]]].mean()} for row in rows])

# %% [markdown]
# ## The network
#
# A U-Net over the encoder; where the hardware has it, it computes in 16 bits.

# %%
model = make_network(replace(config, weights=""))  # to look at; training loads the weights it starts from
millions = sum(p.numel() for p in model.parameters()) / 1e6
device = find_device()
print(f"{type(model).__name__}: {millions:.2f} M parameters, on {device} in {choose_precision(device)}")

# %% [markdown]
# ## Training
#
# A bar for the whole run; without a live notebook, a line per epoch. Dice is that of validation, hard and at
# each image's own size; the *soft* Dice of augmented training batches is another measure, and usually lower.
# Stopped? Run it again with the same parameters and it goes on after the last whole epoch.

# %%
histories = train_folds(config, run_dir, training_set)

# %%
keep_figure(plot_history(histories), run_dir, "3 Training")

# %% [markdown]
# ## The epoch whose weights are kept
#
# Its row of the history, fold by fold. Folds that differ a lot mean few images, or hard ones on one side.

# %%
kept = {k: find_kept(history, config.keep) for k, history in histories.items()}
table([{"fold": k, **row} for k, row in kept.items()])

# %% [markdown]
# ## The first epoch and the kept one
#
# The same few validation cases: image, true mask, prediction. The last should have come closer to the second.

# %%
k, row = max(kept.items())
shown = sorted({1, row["epoch"]})
picture_dirs = [run_dir / f"fold{k}" / "val_outputs" / f"epoch_{epoch}" for epoch in shown]
paths = [path for picture_dir in picture_dirs for path in sorted(picture_dir.glob("[!.]*.png"))]
titles = [f"{path.parent.name}: {path.stem}" for path in paths]
figure = plot_cases([np.asarray(Image.open(path)) for path in paths], titles=titles, columns=4)
keep_figure(figure, run_dir, "3 The first epoch and the kept one")

# %% [markdown]
# ## The artifacts are there

# %%
for k in histories:
    for name in ("best_unet_model.pth", "history.csv", "oof.npz"):
        assert (run_dir / f"fold{k}" / name).is_file(), name
    print(run_dir / f"fold{k}")
