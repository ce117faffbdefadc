# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1 · What is in the data?
#
# Before any training: how large and how shaped are the images, what colours do they have, how much of each is to be found, and is anything
# wrong with the files?
#
# *Input:* the data set. *Artefacts:* `runs/<run>/data_check.csv`, every problem found, and `runs/<run>/cases.csv`, a row for each training image.

# %%
import numpy as np

from ctseg.check import check_dataset, describe_cases
from ctseg.config import make_config, open_run
from ctseg.data import abridge
from ctseg.files import write_csv
from ctseg.folds import make_dataset
from ctseg.plots import plot_cases, plot_colours, plot_distributions, table

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
# ## Is anything wrong with the files?
#
# A shifted name or a mask of the wrong size costs more than any network gains. *Errors* stop this notebook at its end, and so a run before it costs
# hours; *warnings* say how the file is read all the same. No rows: nothing was found.

# %%
problems = check_dataset(config.data_root)
write_csv(problems, run_dir / "data_check.csv")
table(problems)

# %% [markdown]
# ## Sizes, aspect ratios, mask areas
#
# Mixed sizes call for a resize that keeps the aspect ratio and can be undone (notebook 2). Small regions are the hard ones: a border one pixel
# off costs them the most Dice.

# %%
train, test = make_dataset(config, "Train"), make_dataset(config, "Test")
descriptions = describe_cases(train.cases, train.window)
print(f"{len(train)} training pairs, {len(test)} test images in {config.data_root}")
plot_distributions(descriptions)

# %% [markdown]
# ## Colour and contrast
#
# Three equal curves mean grey images saved as RGB. Where one channel has clearly more spread within an image than the others,
# `-p favour_contrast True` may be worth a try.

# %%
plot_colours(descriptions)

# %% [markdown]
# ## A contact sheet
#
# Twelve cases from the smallest region to the largest, the mask outlined. Look whether outlines sit on what you would have drawn.

# %%
by_area = np.argsort([row["mask_area"] for row in descriptions])
shown = [train[int(i)] for i in by_area[np.linspace(0, len(train) - 1, 12).astype(int)]]
plot_cases(
    [square[:, *frame.window].permute(1, 2, 0).numpy() for square, _, frame in shown],
    [target[0][frame.window].numpy() > 127 for _, target, frame in shown],
    titles=["{} × {}".format(*frame.original_size) for _, _, frame in shown],
)

# %% [markdown]
# ## Leave the artefacts

# %%
write_csv(descriptions, run_dir / "cases.csv")
for name in ("data_check.csv", "cases.csv"):
    assert (run_dir / name).is_file(), name
    print(run_dir / name)
errors = [row["file"] for row in problems if row["severity"] == "error"]
assert not errors, f"errors in the table of problems: {abridge(errors)}; mend them first"
