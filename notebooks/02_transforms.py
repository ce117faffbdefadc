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
# *Input:* the data set. *Artifact:* `runs/<run>/round_trip.csv`, the Dice that a perfect network could reach
# at each square size.

# %%
import numpy as np
import torch

from ctseg.augment import Augment, TrainTransform
from ctseg.config import AUGMENTATIONS
from ctseg.data import read_image
from ctseg.explore import tabulate_round_trip
from ctseg.files import write_csv
from ctseg.page import keep_figure
from ctseg.plots import plot_batch, plot_cases, plot_round_trip, table
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
preset: str = None  # quick (the default), strong (best on a CPU), gpu (for GPUs) or baseline (the reference)
data_root: str = ""  # folder of the data set, "phantom" for the synthetic one, "" to search
run: str = ""  # folder below runs/, "" for a name made from the settings

# %% tags=["setup"]
config = run_dir = None  # after an error no cell below goes on with earlier settings
config = make_config(**read_parameters(globals()))
run_dir = open_run(config, trains=False)
config

# %% [markdown]
# ## Resize and pad
#
# The longer side is resized to `target_size`, the shorter one padded with black. The mask becomes a *soft*
# target: each pixel of the square holds the share of its area that the mask covers. A `Letterbox` remembers
# where the image lies.

# %%
train = make_dataset(config, "train")
picks = np.linspace(0, len(train) - 1, 6).astype(int)
images, targets, letterboxes = zip(*[train[int(i)] for i in picks])
titles = [f"{box.original_size} in {box.target_size}²" for box in letterboxes]
figure = plot_batch(to_float(torch.stack(images)), to_float(torch.stack(targets)), titles=titles)
keep_figure(figure, run_dir, "2 Images in their squares")

# %% [markdown]
# ## One random change at a time
#
# The same image six times per row, each row with one change of `Augment` alone, strong enough to see it. One
# draw moves image and mask together (see the outline), and all images of a batch are changed at once, on the
# device that trains.

# %%
copies = torch.cat([images[2], targets[2]]).repeat(6, 1, 1, 1)
changes = [Augment(**{name: strength}) for name, strength in AUGMENTATIONS.items()]
batches = [TrainTransform(change)(copies, make_generator(1)) for change in changes]
titles = [f"{name} {strength}" for name, strength in AUGMENTATIONS.items() for _ in range(6)]
figure = plot_batch(*map(torch.cat, zip(*batches)), titles=titles)
keep_figure(figure, run_dir, "2 One random change at a time")

# %% [markdown]
# ## All of them together
#
# Three training batches of this run. Would you still draw the same outline?

# %%
train_transform = TrainTransform(Augment(**config.augmentation()))
batch = torch.cat([torch.stack(images), torch.stack(targets)], dim=1)
batches = [train_transform(batch, make_generator(config.seed, draw)) for draw in range(3)]
keep_figure(plot_batch(*map(torch.cat, zip(*batches))), run_dir, "2 Training batches")

# %% [markdown]
# ## Channels with contrast
#
# `weight_channels_by_contrast` scales each color channel about its mean by its share of the contrast: above
# as stored, below as the network would see it. It is off unless the run asks for it; gray images do not
# change at all.

# %%
stored = [read_image(train.cases[int(i)].image, min_size=256, window=train.window) for i in picks]
weighted = [weight_channels_by_contrast(image) for image in stored]
figure = plot_cases([*stored, *weighted], titles=["stored"] * 6 + ["weighted"] * 6)
keep_figure(figure, run_dir, "2 Channels weighted by contrast")

# %% [markdown]
# ## The round trip
#
# Masks go into the square and back to their own size, as if a network were perfect. Kept soft and cut at ½
# only at full size, they lose almost nothing; cut early, in the square, they lose what the last column shows.
# That is why the threshold comes last.

# %%
every = max(1, len(train) // 100)
rows = tabulate_round_trip(train.cases[::every], (64, 96, 128, 192, 256, 384, 512))
table(rows)

# %%
keep_figure(plot_round_trip(rows), run_dir, "2 What a perfect network could reach")

# %% [markdown]
# ## Write the artifact

# %%
write_csv(rows, run_dir / "round_trip.csv")
assert (run_dir / "round_trip.csv").is_file()
print(run_dir / "round_trip.csv")
