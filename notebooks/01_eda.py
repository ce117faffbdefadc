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
# Look at pictures first, at numbers later. Is anything wrong with the files? How large are the images and
# their regions, where do regions lie, by what color do they stand out, and are the test images of the same
# kind?
#
# *Input:* the data set. *Artifacts:* `runs/<run>/data_check.csv`, every problem found, and
# `runs/<run>/cases.csv`, one row per training image.

# %%
from itertools import chain

import numpy as np

from ctseg.check import COLUMNS, check_dataset, count_pairs, stop_at_errors
from ctseg.explore import (
    average_masks,
    describe_cases,
    find_near_duplicates,
    find_outliers,
    pick_evenly,
    read_example,
    read_examples,
    tabulate_border_cost,
    tabulate_channels,
)
from ctseg.files import write_csv
from ctseg.page import keep_figure
from ctseg.plots import table
from ctseg.plots_data import (
    plot_areas,
    plot_average_mask,
    plot_channels,
    plot_colors,
    plot_dice,
    plot_examples,
    plot_near_duplicates,
    plot_sizes,
)
from ctseg.runs import make_config, make_dataset, open_run, read_parameters

# %% [markdown] tags=["setup"]
# ## Parameters
#
# papermill replaces values with `-p name value`; any other field of `ctseg.config.Config` can be passed in
# the same way. A value that is not given comes from the run, if it has begun to train, else from the preset:
# nothing that only training decides is fixed here.

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
# ## A contact sheet
#
# Twelve training images, evenly spaced over the data set, with their masks outlined in green.

# %%
examples = read_examples(config, 12)
keep_figure(plot_examples(examples), run_dir, "1 Training images with their masks")

# %% [markdown]
# *What to look for:* does each outline lie where you would have drawn it? Note what makes a border hard to
# see: hair, blur, a second region, low contrast.
#
# ## The score: Dice
#
# [Dice](https://doi.org/10.2307/1932409) is twice the number of pixels that both masks have, over the sum
# of their sizes. Here a true mask of 2 pixels meets five predictions. Two empty masks have a Dice of 1 by
# convention: there was nothing to find, and nothing was found.

# %%
true_mask = np.array([[1, 1, 0], [0, 0, 0]], bool)
pred_masks = {
    "shifted and too large": np.array([[0, 1, 1], [1, 0, 0]], bool),
    "perfect": true_mask,
    "one pixel too small": np.array([[1, 0, 0], [0, 0, 0]], bool),
    "one pixel too large": np.array([[1, 1, 1], [0, 0, 0]], bool),
    "empty": np.zeros((2, 3), bool),
}
keep_figure(plot_dice(true_mask, pred_masks), run_dir, "1 Dice of five predictions")

# %% [markdown]
# *What to look for:* background that is right counts for nothing. A pixel too few costs more than a pixel
# too many, and both cost a small region more than a large one.
#
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
# ## Sizes
#
# The network sees squares of `target_size` pixels: the longer side of each image is resized to it (notebook
# 2). Larger marks stand for more images.

# %%
train, test = make_dataset(config, "train"), make_dataset(config, "test")
descriptions, of_test = (describe_cases(subset.cases, subset.window) for subset in (train, test))
print(f"{len(train)} training pairs, {len(test)} test images in {config.data_root}")
figure = plot_sizes(descriptions, of_test, config.target_size)
keep_figure(figure, run_dir, "1 Sizes of training and test images")

# %% [markdown]
# *What to look for:* images outside the dashed square shrink and lose detail, images inside it grow. Are
# there test images of a size that training does not have?
#
# ## The most unusual images
#
# Of size, shape, brightness, contrast and mask area, the title names the one that is farthest from the
# median, by two standard deviations or more.

# %%
outliers = find_outliers(descriptions, 12)
examples = [read_example(train.cases[index], train.window) for index, _ in outliers]
titles = [f"{train.cases[index].image_id}\n{why}" for index, why in outliers]
figure = plot_examples(examples, titles, otherwise="No image is unusual.")
keep_figure(figure, run_dir, "1 The most unusual images")

# %% [markdown]
# *What to look for:* a mistake, or only rare? A mistake should be fixed or removed, a rare image kept: the
# test set probably has some as well.
#
# ## Where regions lie
#
# All masks, stretched to one square and averaged.

# %%
keep_figure(plot_average_mask(average_masks(train.cases)), run_dir, "1 The mean of all masks")

# %% [markdown]
# *What to look for:* a bright spot says that a network can learn the place instead of the looks; in the
# middle, photographers centered the region. Shifts, flips and zooms in training (notebook 2) work against
# that.
#
# ## How large regions are, and what a border costs
#
# Left, the masks' areas. Right, the same masks in the network's square, grown or shrunk by one pixel and
# compared with themselves: an error that the eye hardly sees.

# %%
border_costs = tabulate_border_cost(pick_evenly(train.cases, 300), config.target_size)
figure = plot_areas(descriptions, border_costs, config.target_size)
keep_figure(figure, run_dir, "1 Mask areas and what a border costs")

# %% [markdown]
# *What to look for:* the left end. [Small regions](https://doi.org/10.1038/s41592-023-02150-0) lose the
# most Dice by the same error, so they pull the mean down; a larger `target_size` helps them most.
#
# ## Color and contrast: training against test
#
# Each image has one mean per channel; where all are gray, one panel stands for the three.

# %%
figure = plot_colors(descriptions, of_test)
keep_figure(figure, run_dir, "1 Colors of training and test images")

# %% [markdown]
# *What to look for:* where the black line leaves the filled bars, the test images may come from another
# device, and a validation score may promise too much. Stronger changes of brightness and color in training
# may help.
#
# ## Near-duplicates
#
# Images that are nearly the same, mirrored and rotated ones too. If one trained and the other validated, the
# score would be too good; so with `split = "stratified"`, as in all presets but `baseline`, the folds of
# notebook 3 keep them together.

# %%
pairs = find_near_duplicates(train.cases, test.cases)
print(f"pairs of near-duplicates: {len(pairs)}; at most 6 are shown")
figure = plot_near_duplicates([read_example(case, train.window) for case in chain(*pairs[:6])])
keep_figure(figure, run_dir, "1 Near-duplicates")

# %% [markdown]
# *What to look for:* the outlines of a pair. Where they differ, people disagree, and no network can be
# right about both.
#
# ## Which channel tells regions from background?
#
# Take one pixel inside the mask and one outside. How often is the inner one higher? This is the [area under
# the ROC curve](https://doi.org/10.1148/radiology.143.1.7063747), here of single pixels' values, averaged
# over at most 200 images, and counted the other way where regions are lower on average.

# %%
usable = [case for case, row in zip(train.cases, descriptions) if 0 < row["mask_area"] < 1]
channels = tabulate_channels(pick_evenly(usable, 200), train.window)
keep_figure(plot_channels(channels), run_dir, "1 Channels that tell regions from background")

# %%
table(channels, otherwise="no mask with a region and a background")

# %% [markdown]
# *What to look for:* near 1, regions stand out by this channel alone, within each image (one threshold for
# all images may still not exist); near 0.5, shape and texture have to tell. The network sees red, green and
# blue and learns its own mix of them.
#
# ## Write the artifacts

# %%
write_csv(descriptions, run_dir / "cases.csv")
for name in ("data_check.csv", "cases.csv"):
    assert (run_dir / name).is_file(), name
    print(run_dir / name)

# %% [markdown]
# ## Summary
#
# - The files are sound, or this notebook has stopped; `data_check.csv` says what is unusual.
# - Dice counts the region's pixels only, so small regions are the hard ones.
# - Where test images differ from training images in size or color, a validation score may not hold.
#
# ## Two questions
#
# 1. An image has no region at all, and a prediction has one pixel. What is its Dice, and what would you do
#    about it in notebook 4?
# 2. A border that is one pixel off: is it cheaper for a disc or for a thin line of the same area? Why?
