# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2 · What does the network see, and is the way back exact?
#
# The network sees squares of one size; the score is taken on masks of each image's own size. So every image goes into a square by a way that
# can be undone, and only training batches are changed at random on top.
#
# *Input:* the data set. *Artefact:* `runs/<run>/round_trip.csv`, the Dice that a perfect network could reach at each square size.

# %%
import numpy as np
import torch

from ctseg.check import tabulate_round_trip
from ctseg.config import make_config, open_run
from ctseg.data import read_image
from ctseg.files import write_csv
from ctseg.folds import make_dataset
from ctseg.plots import plot_batch, plot_cases, table
from ctseg.train import make_generator
from ctseg.transforms import Augment, TrainTransform, favour_contrast, to_float

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
# ## Resize and pad
#
# The longer side is resized to `target_size`, the shorter one padded with black. The mask becomes a *soft* target: each square pixel holds the
# share of its area that the mask covers. A `Frame` remembers where the image lies.

# %%
train = make_dataset(config, "Train")
picks = np.linspace(0, len(train) - 1, 6).astype(int)
squares, targets, frames = zip(*[train[int(i)] for i in picks])
plot_batch(
    to_float(torch.stack(squares)), to_float(torch.stack(targets)), titles=[f"{f.original_size} in {f.target_size}²" for f in frames]
)

# %% [markdown]
# ## One random change at a time
#
# The same image six times, each row with one ingredient of `Augment` alone. One draw moves image and mask together (see the outline), and all
# images of a batch are changed at once, on the device that trains.

# %%
ingredients = {"flip": 0.5, "turn": 0.5, "scale": 0.5, "rotation": 30, "elastic": 0.03}
ingredients |= {"brightness": 0.25, "contrast": 0.5, "gamma": 0.8, "colour": 0.3}
six = [torch.stack([tensor] * 6) for tensor in (squares[2], targets[2])]
batches = [TrainTransform(Augment(**{name: value}))(*six, make_generator(1)) for name, value in ingredients.items()]
titles = [f"{name} {value}" for name, value in ingredients.items() for _ in range(6)]
plot_batch(*(torch.cat(parts) for parts in zip(*batches)), titles=titles)

# %% [markdown]
# ## All of it together
#
# What a training batch of this run looks like. Would you still draw the same outline?

# %%
augmented = TrainTransform(config.augment())
batches = [augmented(torch.stack(squares), torch.stack(targets), make_generator(config.seed, draw)) for draw in range(3)]
plot_batch(*(torch.cat(parts) for parts in zip(*batches)))

# %% [markdown]
# ## Channels with contrast
#
# `favour_contrast` scales each colour channel about its mean by its share of the contrast: above as stored, below as the network would see it.
# It is off unless the run asks for it; grey images do not change at all.

# %%
images = [read_image(train.cases[int(i)].image, min_size=256, window=train.window) for i in picks]
plot_cases([*images, *map(favour_contrast, images)], titles=["stored"] * 6 + ["favoured"] * 6)

# %% [markdown]
# ## The way back
#
# Masks go into the square and back to their own size, as a perfect network would see them. Kept soft and cut at ½ only at full size, they
# lose almost nothing; cut early, in the square, they lose what the last column shows. That is why the threshold comes last.

# %%
every = max(1, len(train) // 100)
rows = tabulate_round_trip(train.cases[::every], (64, 96, 128, 192, 256, 384, 512))
table(rows)

# %% [markdown]
# ## Leave the artefact

# %%
write_csv(rows, run_dir / "round_trip.csv")
assert (run_dir / "round_trip.csv").is_file()
print(run_dir / "round_trip.csv")
