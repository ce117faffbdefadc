# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2 · What does the network see, and can it be undone?
#
# The network sees squares of one size; the score is taken on masks of each image's own size. So every image
# goes into a square by a resize that can be undone, and only training batches are then changed at random.
#
# *Input:* the data set. *Artifact:* `runs/<run>/round_trip.csv`, the Dice that exact targets would score
# at each square size.

# %%
from itertools import chain

import numpy as np
import torch

from ctseg.augment import Augment, TrainTransform
from ctseg.data import read_image, read_mask
from ctseg.explore import make_changes, pick_evenly, pick_typical, tabulate_round_trip
from ctseg.files import write_csv
from ctseg.page import keep_figure
from ctseg.plots import plot_cases, table
from ctseg.plots_data import plot_batch, plot_changes, plot_round_trip, plot_undo
from ctseg.runs import make_config, make_dataset, open_run, read_parameters
from ctseg.seeds import make_generator
from ctseg.transforms import to_float, weight_channels_by_contrast

# %% [markdown] tags=["setup"]
# ## Parameters
#
# papermill replaces values with `-p name value`; any other field of `ctseg.config.Config` can be passed in
# the same way. A value that is not given, or None, comes from the run, if it has begun to train, else from
# the preset.

# %% tags=["parameters"]
preset: str = None  # quick (the default), strong (on a CPU), gpu, or baseline (the reference)
data_root: str = ""  # folder of the data set, "phantom" for the synthetic one, "" to search
run: str = ""  # folder below runs/, "" for a name made from the settings

# %% tags=["setup"]
config = run_dir = None  # after an error no cell below goes on with earlier settings
config = make_config(**read_parameters(globals()))
run_dir = open_run(config, trains=False)
config

# %% [markdown]
# ## There and back
#
# The longer side is resized to `target_size`, the shorter one padded with black. The mask becomes a *soft*
# target: each pixel of the square holds the share of its area that the mask covers. A `Letterbox` remembers
# where the image lies and undoes the resize. What if the threshold at ½ comes *early*, in the square, and
# not *late*, at the image's own size?

# %%
train = make_dataset(config, "train")
picks = pick_evenly(range(len(train)), 6)
images, targets, letterboxes = zip(*[train[index] for index in picks])
shown = pick_typical(targets)  # of median size
case = train.cases[picks[shown]]
image, mask = read_image(case.image, window=train.window), read_mask(case.mask, case.mask_set)
keep_figure(plot_undo(image, mask, config.target_size), run_dir, "2 Into the square and back")

# %% [markdown]
# *What to look for:* the late outline follows the true one, the early one has the square's steps. What the
# early one costs is lost before the network makes its first mistake.
# [nnU-Net](https://doi.org/10.1038/s41592-020-01008-z) goes back to the image's own size before it decides,
# too.
#
# ## Six squares
#
# The network's input, with the targets outlined at ½.

# %%
titles = ["{1} × {0} pixels".format(*box.original_size) for box in letterboxes]
pixels = torch.cat([torch.stack(images), torch.stack(targets)], dim=1)  # uint8 (B, 4, S, S)
original = to_float(pixels)
figure = plot_batch(original[:, :3], original[:, 3:], titles=titles)
keep_figure(figure, run_dir, "2 Images in their squares")

# %% [markdown]
# *What to look for:* would you still find the border at this size? If not, the network cannot either; try a
# larger `target_size`.
#
# ## One random change at a time
#
# Each change of this run alone: the original, and of 64 random draws the two that differ most, so that both
# ends of the range show. The grid shows how space bends: [elastic
# deformations](https://doi.org/10.1109/ICDAR.2003.1227801) imitate soft tissue, and
# [U-Net](https://arxiv.org/abs/1505.04597) owed them much of its success with few images.

# %%
strengths = config.augmentation()
changes = make_changes(pixels[shown], strengths, make_generator(1))
print("off in this run:", ", ".join(name for name in strengths if not strengths[name]) or "none")
keep_figure(plot_changes(changes), run_dir, "2 One random change at a time")

# %% [markdown]
# *What to look for:* the outline moves with the image, as one draw moves both; padding stays black. Could
# each picture come from your scanner or camera? A change that makes impossible images teaches the wrong
# thing.
#
# ## All of them together
#
# The original squares, then three training batches of this run.

# %%
transform = TrainTransform(Augment(**config.augmentation()))
batches = [transform(pixels, make_generator(config.seed, draw)) for draw in range(3)]
rows = [(original[:, :3], original[:, 3:]), *batches]
titles = np.repeat(["original", "batch 1", "batch 2", "batch 3"], len(picks)).tolist()
figure = plot_batch(*map(torch.cat, zip(*rows)), titles=titles, columns=len(picks))
keep_figure(figure, run_dir, "2 Training batches")

# %% [markdown]
# *What to look for:* would you still draw the same outline in every picture? If you hesitate, the changes
# are too strong.
#
# ## Channels with contrast
#
# `weight_channels_by_contrast` scales each color channel about its mean by its share of the contrast. It is
# off unless the run asks for it.

# %%
paths = [train.cases[index].image for index in picks[:3]]
stored = [read_image(path, min_size=256, window=train.window) for path in paths]
weighted = [weight_channels_by_contrast(image) for image in stored]
pictures = list(chain(*zip(stored, weighted)))
figure = plot_cases(pictures, titles=["stored", "weighted"] * len(stored))
keep_figure(figure, run_dir, "2 Channels weighted by contrast")

# %% [markdown]
# *What to look for:* is the region clearer after than before? Gray images do not change at all.
#
# ## The round trip
#
# The first figure for many masks: into a square of each size and back, as if a network made its targets.

# %%
largest = max(max(box.original_size) for box in letterboxes)
cases = pick_evenly(train.cases, 100 if largest <= 1024 else 30)
sizes = sorted({64, 96, 128, 192, 256, 384, 512, config.target_size})
print(f"{len(cases)} masks at {len(sizes)} sizes; with large images this takes a minute or two")
rows = tabulate_round_trip(cases, sizes)
table(rows)

# %%
figure = plot_round_trip(rows, config.target_size)
keep_figure(figure, run_dir, "2 What exact targets would score")

# %% [markdown]
# *What to look for:* a network that makes exactly its targets scores these lines; what is missing to 1 is
# lost before its first mistake. With the late threshold the square may be small; an early one costs what
# lies between the lines. That is why the threshold comes last.
#
# ## Write the artifact

# %%
write_csv(rows, run_dir / "round_trip.csv")
assert (run_dir / "round_trip.csv").is_file()
print(run_dir / "round_trip.csv")

# %% [markdown]
# ## Summary
#
# - Every resize is undone by its `Letterbox`, and the score is taken at the image's own size.
# - Soft targets and a late threshold keep what a small square would lose.
# - Random changes move image and mask together, in training batches only.
#
# ## Two questions
#
# 1. Where in the table does a larger square stop paying, and what would it cost in training time?
# 2. Which random change would be wrong for your images: is left and right, or up and down, part of the
#    answer?
