# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3 · Train
#
# One U-Net a fold, BCE + Dice on soft targets, validated after each epoch at the images' own size. Kept are the weights at the end of the schedule,
# which validation did not pick; in `baseline`, and with `-p keep best`, those of the epoch with the highest validation Dice.
#
# *Input:* the data set. *Artefacts:* `runs/<run>/fold<k>/` with `best_unet_model.pth`, `last.pth` (from which a stopped run resumes),
# `history.csv`, `val_outputs/` and `oof.npz` (the predictions on the images that the fold did not train on).

# %%
import numpy as np
from PIL import Image

from ctseg.config import make_config, open_run
from ctseg.data import load_squares
from ctseg.folds import assign_folds, build_model, make_dataset, train_folds
from ctseg.model import choose_precision, find_device
from ctseg.plots import plot_cases, plot_history, table
from ctseg.train import find_kept

# %% [markdown]
# ## Parameters
#
# The same cell in all four notebooks; papermill replaces values with `-p name value`. `None` means what the preset says. Every other field of
# `ctseg.config.Config` can be passed in the same way.

# %% tags=["parameters"]
preset: str = "quick"  # quick (small, from scratch), baseline (the reference's recipe) or strong (the best we know, with weights)
data_root: str = ""  # folder that holds Train and Test, "phantom" for the synthetic data set, "" to search
run: str = ""  # folder below runs/, "" for a name made from the settings
fold: int = None  # train this fold only, 0 to n_folds - 1; None for all
n_folds: int = None  # number of folds; 1 for one model on a 90/10 split
epochs: int = None  # passes over the training set
budget_minutes: float = None  # wall minutes of training and validation, all folds together, instead of epochs
batch_size: int = None  # images a step
lr: float = None  # largest learning rate of the schedule
target_size: int = None  # pixels, side of the square that the network sees
encoder: str = None  # "unet" (the reference's) or the name of a torchvision network, such as resnet34 or mobilenet_v2
weights: str = None  # of the encoder: "" from scratch, "default" torchvision's own (may download), else a file
seed: int = None  # of the split, the initial weights and every random draw

# %%
config = make_config(globals())
run_dir = open_run(config)
config

# %% [markdown]
# ## The training set in memory
#
# Every image is decoded once and kept as a uint8 square; batches are cut and augmented from there. No worker processes, nothing to hang.

# %%
squares = load_squares(make_dataset(config, "Train"))
print(f"{len(squares)} squares of {config.target_size} pixels, {(squares.images.nbytes + squares.targets.nbytes) / 1e6:.0f} MB")

# %% [markdown]
# ## The split
#
# Validation images are never trained on. With `split = "stratified"` each fold gets the same mix of region sizes, and near-duplicates stay on one side.

# %%
folds = assign_folds(config, squares)
table([{"fold": k, "train": sum(folds != k), "validation": sum(folds == k), "mean area": squares.areas[folds == k].mean()} for k in range(config.n_folds)])

# %% [markdown]
# ## The network

# %%
model = build_model(config)
n_parameters = sum(p.numel() for p in model.parameters())
print(f"{type(model).__name__}: {n_parameters / 1e6:.2f} M parameters, on {find_device()} in {choose_precision(find_device())}")

# %% [markdown]
# ## Training
#
# A line an epoch: Dice, BCE and combined loss on the training batches, the learning rate, validation Dice, seconds. Stopped? Run it again with the same
# parameters and it goes on after the last whole epoch.

# %%
histories = train_folds(config, run_dir, squares)

# %%
plot_history(histories)

# %% [markdown]
# ## The epoch whose weights are kept

# %%
kept = {k: find_kept(history, config.keep) for k, history in histories.items()}
table([{"fold": k, **row} for k, row in kept.items()])

# %% [markdown]
# ## What it sees
#
# The same few validation cases at the first epoch and at the one that is kept: image, truth, prediction.

# %%
k, row = max(kept.items())
paths = [path for n in (1, row["epoch"]) for path in sorted((run_dir / f"fold{k}" / "val_outputs" / f"epoch_{n}").glob("[!.]*.png"))]
plot_cases([np.asarray(Image.open(path)) for path in paths], titles=[f"{path.parent.name}: {path.stem}" for path in paths], columns=4)

# %% [markdown]
# ## The artefacts are there

# %%
for k in histories:
    for name in ("best_unet_model.pth", "history.csv", "oof.npz"):
        assert (run_dir / f"fold{k}" / name).is_file(), name
    print(run_dir / f"fold{k}")
