# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3 · Does it learn?
#
# One [U-Net](https://arxiv.org/abs/1505.04597) per fold, BCE + Dice on soft targets, validated after each
# epoch at the images' own size. The last weights are kept, because validation did not pick them; in
# `baseline`, and with `keep = "best"`, those of the epoch with the highest validation Dice.
#
# *Input:* the data set. *Artifacts:* `runs/<run>/fold<k>/` with `best_unet_model.pth`, `last.pth` (from which
# a stopped run resumes), `history.csv`, `val_outputs/` and `oof.npz` (the predictions on the images that the
# fold did not train on).

# %%
from dataclasses import replace
from pathlib import Path

import torch

from ctseg.data import load_training_set
from ctseg.device import choose_precision, find_device
from ctseg.diagnose import judge_training, tabulate_levels, tabulate_losses, tabulate_seconds
from ctseg.folds import assign_folds, train_folds
from ctseg.page import keep_figure
from ctseg.plots import plot_history, table
from ctseg.plots_run import plot_epochs, plot_schedule
from ctseg.runs import make_config, make_dataset, make_network, open_run, read_parameters
from ctseg.seeds import make_generator
from ctseg.tables import check_tables
from ctseg.train import Learner, find_kept, find_shown

# %% [markdown] tags=["setup"]
# ## Parameters
#
# papermill replaces values with `-p name value`; any other field of `ctseg.config.Config` can be passed in
# the same way. `None` means what the run says, once a fold has weights, else what the preset says. From then
# on other settings are refused: they are another run's.

# %% tags=["parameters"]
preset: str = None  # quick (the default), strong (on a CPU), gpu, or baseline (the reference)
data_root: str = ""  # folder of the data set, "phantom" for the synthetic one, "" to search
run: str = ""  # folder below runs/, "" for a name made from the settings
fold: int = None  # train this fold only, 0 to n_folds - 1; None for all
n_folds: int = None  # number of folds; 1 for one model on a 90/10 split
epochs: int = None  # passes over the training set
budget_minutes: float = None  # wall minutes from loading to predictions, instead of epochs
batch_size: int = None  # images per step
lr: float = None  # largest learning rate of the schedule
target_size: int = None  # pixels, side of the square that the network sees
encoder: str = None  # "unet" (the reference's) or a torchvision network, such as resnet34
weights: str = None  # of the encoder: "" for scratch, "default" for torchvision's, else a file
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
n, megabytes = len(training_set), training_set.pixels.nbytes / 1e6
print(f"{n} images of {config.target_size} pixels, {megabytes:.0f} MB")
print(f"loaded in {training_set.seconds:.1f} s")

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
# The encoder halves the maps level by level and gives them more channels; the decoder joins them on the way
# up, so that the logits know both *what* is there (deep levels) and *where* (shallow ones). Where the
# hardware has it, the network computes in 16 bits.

# %%
torch.manual_seed(config.seed)
model = make_network(replace(config, weights=""))  # to look at; training loads its own weights
millions = sum(p.numel() for p in model.parameters()) / 1e6
device = find_device()
print(f"{millions:.2f} M parameters, on {device} in {choose_precision(device)}")
levels = tabulate_levels(model, config.target_size)
model = None
table(levels)

# %% [markdown]
# *What to look for:* the deepest stride. A region that is smaller than it, in pixels of the square, is less
# than one pixel there: its outline is lost, and only the shallow levels can draw it.
#
# ## One batch by hand
#
# What training does thousands of times, here with two images on the CPU and thrown away afterwards: random
# changes, logits, loss, gradient, step. A network that knows nothing says about ½ for each pixel, so BCE
# begins near ln 2 = 0.693, or somewhat above; on the same batch again and again it falls.

# %%
learner = Learner(make_network(replace(config, weights="")), replace(config, lr=1e-3))
pixels = training_set.get_batch(torch.arange(2) % len(training_set))
images, targets = learner.transform(pixels, make_generator(config.seed))
print("pixels", tuple(pixels.shape), "uint8; three channels and the mask")
print("images", tuple(images.shape), "targets", tuple(targets.shape), "in [0, 1]")
print("logits", tuple(learner.model(images).shape))
rows = tabulate_losses([learner.step(pixels, make_generator(config.seed))[0] for _ in range(5)])
learner = None  # its memory is free for training
table(rows)

# %% [markdown]
# ## The learning rate
#
# `one_cycle` rises while the weights are far from good and falls to nothing, so that the last steps are small
# and the last weights are good ones ([Smith 2018](https://arxiv.org/abs/1803.09820)).

# %%
keep_figure(plot_schedule(config), run_dir, "3 Learning rate")

# %% [markdown]
# ## Training
#
# A bar for the whole run; without a live notebook, a line per epoch. Dice is that of validation, hard and at
# each image's own size; the *soft* Dice of augmented training batches is another measure, and usually lower.
# Stopped? Run it again with the same parameters and it goes on after the last whole epoch.

# %%
histories = train_folds(config, run_dir, training_set)

# %% [markdown]
# ## The curves
#
# A ring marks the epoch whose weights are kept.

# %%
kept = {k: find_kept(history, config.keep) for k, history in histories.items()}
kept_epochs = {k: row["epoch"] for k, row in kept.items()}
keep_figure(plot_history(histories, kept=kept_epochs), run_dir, "3 Training")

# %% [markdown]
# *What to look for:* validation that rises to the end wants more epochs; validation that falls while the loss
# falls on is overfitting; folds that differ a lot mean few images, or hard ones on one side. Where a time
# budget ends, the last epoch may be a part of one, and its training values are of few batches.
#
# By simple rules (what to try goes under another run name; `make compare` says whether it helped):

# %%
for k, history in histories.items():
    verdict = judge_training(history, config, n_validation=sum(in_fold[k]))
    print(f"fold {k}: {verdict}")
table([{"fold": k, **row} for k, row in kept.items()])

# %% [markdown]
# ## From the first epoch to the kept one
#
# The same validation cases again and again, of one fold. *What to look for:* the place is found first, the
# border last. What is still wrong at the end, is it the network or the mask?

# %%
k = max(histories)
figure = plot_epochs(run_dir / f"fold{k}", find_shown(histories[k], config.keep))
keep_figure(figure, run_dir, "3 From the first epoch to the kept one")

# %% [markdown]
# ## Where the time went
#
# Folds that train side by side share the machine, so their seconds overlap.

# %%
table(tabulate_seconds(histories))

# %% [markdown]
# ## The artifacts are there

# %%
for k in histories:
    for name in ("best_unet_model.pth", "history.csv", "oof.npz"):
        assert (run_dir / f"fold{k}" / name).is_file(), name
    print(run_dir / f"fold{k}")

# %% [markdown]
# ## Summary
#
# - A U-Net joins what deep levels know with where shallow levels know it; BCE and Dice train it together.
# - A schedule that ends in small steps makes the last weights good ones.
# - The curves say whether to train longer; the pictures say what is still wrong.
#
# ## Two questions
#
# 1. Why can the *soft* Dice of training images be lower than the Dice of validation images, which the network
#    never saw?
# 2. One fold is 0.03 below the others: what would you look at first?
