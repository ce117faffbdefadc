# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1 · What is in the data?
#
# Before any training: how large and of what shape are the images, what colors do they have, how much of each
# image is foreground, and is anything wrong with the files?
#
# *Input:* the data set. *Artifacts:* `runs/<run>/data_check.csv`, every problem found, and
# `runs/<run>/cases.csv`, one row per training image.

# %%
import numpy as np

from ctseg.check import COLUMNS, check_dataset, count_pairs, stop_at_errors
from ctseg.explore import describe_cases
from ctseg.files import write_csv
from ctseg.page import keep_figure
from ctseg.plots import plot_cases, plot_colors, plot_distributions, table
from ctseg.runs import make_config, make_dataset, open_run, read_parameters

# %% [markdown] tags=["setup"]
# ## Parameters
#
# papermill replaces values with `-p name value`; any other field of `ctseg.config.Config` can be passed in
# the same way. A value that is not given comes from the run, if it has begun to train, else from the preset:
# nothing that only training decides is fixed here.

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
# ## Is anything wrong with the files?
#
# A shifted name or a mask of the wrong size costs more than any network gains. *Errors* stop this notebook,
# before they cost a run of hours; *warnings* say how the file is still read.

# %%
has_window = None not in (config.window_low, config.window_high)
problems = check_dataset(config.data_root, config, has_window=has_window)
write_csv(problems, run_dir / "data_check.csv", columns=COLUMNS)
table(problems, otherwise=f"nothing found in {count_pairs(config.data_root, config)} pairs")

# %%
stop_at_errors(problems)

# %% [markdown]
# ## Sizes, aspect ratios, mask areas
#
# Mixed sizes call for a resize that keeps the aspect ratio and can be undone (notebook 2). Small regions are
# the hard ones: a border that is one pixel off costs them the most Dice.

# %%
train, test = make_dataset(config, "train"), make_dataset(config, "test")
descriptions = describe_cases(train.cases, train.window)
print(f"{len(train)} training pairs, {len(test)} test images in {config.data_root}")
keep_figure(plot_distributions(descriptions), run_dir, "1 Sizes, aspect ratios, mask areas")

# %% [markdown]
# ## Color and contrast
#
# Three equal curves mean gray images saved as RGB. Where one channel has clearly more spread within an image
# than the others, `-p weight_channels_by_contrast True` may be worth a try.

# %%
keep_figure(plot_colors(descriptions), run_dir, "1 Color and contrast")

# %% [markdown]
# ## A contact sheet
#
# Twelve cases from the smallest region to the largest, with their masks outlined. Do the outlines lie where
# you would have drawn them?

# %%
by_area = np.argsort([row["mask_area"] for row in descriptions])
picks = by_area[np.linspace(0, len(train) - 1, 12).astype(int)]
shown = [train[int(i)] for i in picks]
figure = plot_cases(
    [image[:, *letterbox.inside].permute(1, 2, 0).numpy() for image, _, letterbox in shown],
    [target[0][letterbox.inside].numpy() > 127 for _, target, letterbox in shown],
    titles=[train.cases[i].image_id for i in picks],
)
keep_figure(figure, run_dir, "1 Training images with their masks")

# %% [markdown]
# ## Write the artifacts

# %%
write_csv(descriptions, run_dir / "cases.csv")
for name in ("data_check.csv", "cases.csv"):
    assert (run_dir / name).is_file(), name
    print(run_dir / name)
