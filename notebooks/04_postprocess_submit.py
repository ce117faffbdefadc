# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 · Decide on validation, predict the test images, submit
#
# Which post-processing helps is decided on predictions for images that were not trained on, never by habit:
# the largest component is right where there is one region per image, and wrong where there are many.
#
# *Input:* the trained folds of `runs/<run>/`; nothing is trained here. *Artifacts:* `postprocess.json`,
# `predicted_masks/*.png`, `submission.csv`, `examples.png`, `suspects.csv`, `scores.csv`, `summary.json`, and
# `report.html`, the page to read; of new images the masks, the submission, the examples, the suspects and
# figures, below `predictions/<folder>-<checksum of its path>/`.

# %%
from dataclasses import replace
from pathlib import Path

import numpy as np
from IPython.display import display

from ctseg.check import check_images, print_warnings
from ctseg.data import drop_unreadable
from ctseg.diagnose import (
    choose_step_case,
    describe_gain,
    divide_scores,
    list_weak,
    measure_masks,
    pick_cases,
    rank_suspects,
    tabulate_thresholds,
)
from ctseg.explore import pick_evenly
from ctseg.files import atomic_path, lock_folder, write_csv, write_json
from ctseg.folds import describe_unfinished, find_folds, find_oof, load_predictor
from ctseg.page import keep_figure
from ctseg.phantom import read_kinds
from ctseg.plots import plot_predictions, table
from ctseg.plots_run import (
    plot_code,
    plot_errors,
    plot_gains,
    plot_scores,
    plot_steps,
    plot_thresholds,
    plot_uncertainty,
)
from ctseg.postprocess import (
    PostProcess,
    choose_postprocess,
    choose_without,
    keep_if_earned,
    read_choice,
    score_own,
    tabulate_choice,
)
from ctseg.predict import (
    OutOfFold,
    find_true_masks,
    predict_masks,
    read_masks,
    score_masks,
    select_common,
    write_masks,
)
from ctseg.report import summarize, write_cases, write_report, write_summary
from ctseg.runs import (
    find_members,
    find_new_folder,
    keep_format,
    make_config,
    make_dataset,
    make_new_dataset,
    name_predictions,
    open_run,
    read_parameters,
)
from ctseg.submission import check_submission, describe_submission, write_submission
from ctseg.tables import check_tables

# %% [markdown] tags=["setup"]
# ## Parameters
#
# papermill replaces values with `-p name value`; any other field of `ctseg.config.Config` can be passed in
# the same way. A value that is not given, or None, comes from the run: `-p run name` is enough.

# %% tags=["parameters"]
preset: str = None  # quick (the default), strong (on a CPU), gpu, or baseline (the reference)
data_root: str = ""  # folder of the data set, "phantom" for the synthetic one, "" to search
run: str = ""  # folder below runs/, "" for a name made from the settings
predict_folder: str = ""  # new images to predict in place of test images; needs no training data
runs: str = ""  # trained runs, as "a,b", whose predictions are averaged into a run of their own
use_unfinished: bool = False  # make do with the epochs that unfinished folds have

# %% tags=["setup"]
config = run_dir = None  # after an error no cell below goes on with earlier settings
config = make_config(**read_parameters(globals()))
run_dir = open_run(config, trains=False)
config

# %%
members = find_members(config, run_dir)
what = "used as it is" if config.use_unfinished else "left out, unless use_unfinished is True"
unfinished = []
for member, member_dir in members:
    fold_dirs = find_folds(member_dir, unfinished=config.use_unfinished)
    print(f"{member.run}: {', '.join(fold_dir.name for fold_dir in fold_dirs)} of {member.n_folds}")
    whose = f"{member.run}, " if config.runs else ""
    texts = describe_unfinished(member_dir)
    unfinished += [f"{whose}{text}: {what}; 03 goes on with it" for text in texts]
for text in unfinished:
    print(text)

# %%
if config.predict_folder:
    new_folder = find_new_folder(config)
    validation, test = None, make_new_dataset(*members[0], new_folder)
    out_dir = run_dir / "predictions" / name_predictions(new_folder)
else:
    train, test, out_dir = make_dataset(config, "train"), make_dataset(config, "test"), run_dir
    check_tables(Path(config.data_root), config, limit=100)
    found = [OutOfFold(find_oof(*member), train.cases) for member in members]
    each = select_common(found)
    validation = OutOfFold.average(each)
    n, n_most = len(validation.cases), max(len(one.cases) for one in found)
    which = f" that all runs have, of {n_most}" if n < n_most else ""
    print(f"{n} validation images{which}, {len(test)} test images")

# %% [markdown]
# ## Validation, image by image
#
# Probabilities go back to each image's own size, then the threshold, then Dice. *What to look for:* the mean
# hides the tail on the left, and small regions are the hard ones. For new images there is nothing to validate
# on: they are predicted as the run has decided before.

# %%
baseline = PostProcess(threshold=config.threshold)
if validation:
    baseline_scores, small = validation.score(baseline), validation.shrink()
    areas = np.array([small.get_mask(index).mean() for index in range(len(small.cases))])
    figure = plot_scores(baseline_scores, areas)
    display(keep_figure(figure, run_dir, "4 Dice of each validation image"))
    names = [fold_dir.name for fold_dir in fold_dirs]
    weak = [] if config.runs else list_weak(baseline_scores, validation.folds, names)
    print(*weak, sep="\n", end="\n" * bool(weak))

# %% [markdown]
# The four worst cases, four in the middle, the four best. Green is missed, magenta is too much. *What to look
# for:* whole regions that are missed ask for more or other training; borders a little off are what people
# disagree on too, and no network gains much there.

# %%
if validation:
    figure = plot_errors(validation, pick_cases(baseline_scores), baseline, window=train.window)
    display(keep_figure(figure, run_dir, "4 Worst, middle and best cases, plain threshold"))

# %% [markdown]
# ## The threshold
#
# Dice by the threshold, with its 95 % interval over images. *What to look for:* how flat the curve is around
# ½, and where its top lies: for a network whose probabilities are right, at half of its Dice
# ([Lipton et al. 2014](https://arxiv.org/abs/1402.1892)). The band is that of each mean alone; whether
# another threshold is better, image by image, is tested below, from 0.3 to 0.7.

# %%
if validation:
    rows = tabulate_thresholds(small.score_each, baseline)
    display(keep_figure(plot_thresholds(rows, config.threshold), run_dir, "4 Dice by threshold"))

# %% [markdown]
# ## From probability to mask
#
# One case on its way, with steps switched on to see them: smoothing, threshold, then holes filled and the
# largest component kept. The case is one that the last two change most, if they change any. Whether they help
# is decided below, on all cases.

# %%
if validation:
    smoothed = replace(baseline, smoothing=0.01)
    steps = replace(smoothed, fill_holes=True, keep_largest_component=True)
    shown = choose_step_case(*small.score_each([smoothed, steps]))
    figure = plot_steps(validation, shown, steps, window=train.window)
    display(keep_figure(figure, run_dir, "4 From probability to mask"))

# %% [markdown]
# ## What helps?
#
# From the plain threshold on, one change at a time: another threshold, smoothing, hole filling, the largest
# component, a minimum area. The best change is taken if the 95 % bootstrap interval of its gain, paired image
# by image, lies above zero, and the search goes on from there.
#
# A choice scored on the images that made it looks too good. So each fold is scored with the choice of the
# *other* folds (with a single fold, each fifth of its images with the choice of the others): the
# **cross-fitted** score, the one to trust. Where it is no higher than that of the plain threshold, the choice
# does not carry over, and the plain threshold is applied. To keep a step only if validation improves is an
# idea of [nnU-Net](https://doi.org/10.1038/s41592-020-01008-z).

# %%
if validation:
    best = choose_postprocess(small.score_each, baseline)
    choices = choose_without(small.score_each, baseline, validation.folds)
    fitted_scores = score_own(validation.score_each, choices)
    chosen = keep_if_earned(best, fitted_scores, baseline, baseline_scores)
    if chosen != best:
        print(f"not applied: {best}; cross-fitted, Dice is no higher, {fitted_scores.mean():.4f}")
else:
    chosen = read_choice(run_dir / "postprocess.json", otherwise=baseline)
    if not (run_dir / "postprocess.json").is_file():
        print("nothing is decided yet: for the best masks run this without predict_folder first")
print(f"post-processing: {chosen}")

# %% [markdown]
# What each change alone is worth. Search, table and the threshold's curve look at images of at most 512
# pixels (or twice the network's), made smaller where they are larger; all other scores are at each image's
# own size.

# %%
if validation:
    rows = tabulate_choice(small.score_each, baseline, chosen)
    choice_scores = {
        "plain threshold": summarize(baseline_scores),
        "chosen": summarize(validation.score(chosen)),
        "cross-fitted": summarize(fitted_scores),
    }
    content = {"chosen": vars(chosen), "scores": choice_scores, "table": rows}
    write_json(content, run_dir / "postprocess.json")
    display(keep_figure(plot_gains(rows), run_dir, "4 What each post-processing is worth"))
    display(table([{"": name, **score} for name, score in choice_scores.items()]))

# %% [markdown]
# ## The test images, or new ones
#
# One batch at a time: mean probability over the folds and, with `tta`, over orientations; back to each
# image's own size; then the chosen post-processing; then the run-length code. The submission is written only
# if every test image is there once with a mask of its size. New images that cannot be read are listed and
# left out.

# %%
if config.predict_folder:
    test, unreadable = drop_unreadable(test)
    for image_id, reason in unreadable.items():
        print(f"left out {image_id}: {reason}")
    print_warnings(check_images(new_folder, test))
if not test:
    print("no images to predict, so no submission: see -p test_images and -p predict_folder")

# %%
mask_dir = out_dir / "predicted_masks"
if test:
    predictors = [load_predictor(*member, test) for member in members]
    with lock_folder(out_dir):
        predicted = write_masks(predict_masks(predictors, chosen), mask_dir)
        write_submission(out_dir / "submission.csv", read_masks(mask_dir), test.cases, config)

# %% [markdown]
# ## Which predictions to doubt
#
# Without true masks, these tell: what hardly any training mask is (empty, tiny, huge, in many components, at
# the border), and networks that disagree. *Agreement* is the mean Dice of each network's mask with that of
# their mean ([Roy et al. 2019](https://doi.org/10.1016/j.neuroimage.2019.03.042)); of a single network, that
# of its masks cut at 0.3 and at 0.7. The most suspicious images come first; `suspects.csv` has all. New
# images have no training masks to go by.

# %%
if test:
    typical = measure_masks(pick_evenly(train.cases, 300)) if validation else []
    suspects = rank_suspects(predicted, typical)
    write_csv(suspects, out_dir / "suspects.csv")
    display(table(suspects, max_rows=10))

# %% [markdown]
# The first four of them, and where networks and mirrored images disagree. *What to look for:* a bright rim is
# a border that is not sharp; a bright region is one that some networks see and others do not.

# %%
if test:
    figure = plot_uncertainty(predictors, suspects[:4], mask_dir)
    display(keep_figure(figure, out_dir, "4 Where networks disagree"))

# %% [markdown]
# Test images from the most suspicious to the least. Predictions magenta; true masks green, where they are
# known: a contest hides those of its test images, the phantom's are in `test_masks/` next to it.

# %%
true_masks = None
if test:
    if not config.predict_folder:
        true_masks = find_true_masks(Path(config.data_root), test.cases)
    case_of = {case.image_id: case for case in test.cases}
    n_shown = 48 if config.predict_folder else 6
    shown = pick_evenly([case_of[row["image_id"]] for row in suspects], n_shown)
    figure = plot_predictions(shown, mask_dir, window=test.window, true_masks=true_masks)
    with atomic_path(out_dir / "examples.png") as partial:
        figure.savefig(partial, dpi=110, bbox_inches="tight")
    display(keep_figure(figure, out_dir, "4 Test images"))

# %% [markdown]
# ## Scores
#
# On validation, and on the test images where their masks are known, hard cases apart. Of several runs also
# each one's own, on the same images, by the plain threshold: an average is worth having where its gain over
# each of them, paired image by image, is more than chance.

# %%
scores = {}
if validation:
    scores["validation, plain threshold"] = baseline_scores
    scores["validation, cross-fitted"] = fitted_scores
    for (member, _), own in zip(members if config.runs else [], each):
        scores[f"validation, plain, {member.run} alone"] = own.score(baseline)
        gain = describe_gain(baseline_scores - own.score(baseline))
        print(f"the mean over {member.run} alone, plain threshold: {gain}")
if true_masks:
    test_scores = score_masks(mask_dir, true_masks)
    scores |= divide_scores(test_scores, read_kinds(true_masks.parent))
summaries = {name: summarize(values) for name, values in scores.items() if len(values)}
table([{"": name, **summary} for name, summary in summaries.items()])

# %% [markdown]
# ## The artifacts are there
#
# `report.html` begins with the result; it is one file, to be opened anywhere or sent to a colleague.

# %%
checked = ""
if test:
    check_submission(out_dir / "submission.csv", test.cases, config)
    checked = describe_submission(out_dir / "submission.csv", config)
    if not config.predict_folder:
        keep_format(config, run_dir)
    print(f"masks in {mask_dir}, a picture of them in {out_dir / 'examples.png'}")
    print(f"{out_dir}/{checked}")

# %% [markdown]
# A run-length code says where runs of foreground start and how long they are, pixels numbered as below. That
# is what the file holds, here its first row:

# %%
if test:
    drawn = np.array([[0, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 1, 0, 0]], bool)
    display(keep_figure(plot_code(drawn, config), out_dir, "4 The code of a mask"))
    header, first, *_ = (out_dir / "submission.csv").read_text().splitlines()
    print(header, first[:90], sep="\n")

# %% [markdown]
# The report begins with the result and ends with the figures of all four notebooks.

# %%
if validation:
    write_cases(run_dir, validation, chosen, train.window)
    notes = [*unfinished, *weak]
    texts = {"postprocess": str(chosen), "notes": notes, "submission": checked}
    averaged = {member.run: member_dir for member, member_dir in members if config.runs}
    summary = write_summary(run_dir, scores=summaries, members=averaged, **texts)
    for name, reason in summary["failed"].items():
        print(f"FAILED in its last try: {name}, {reason}")
    print(f"report: {write_report(run_dir)}")

# %% [markdown]
# ## Summary
#
# - Masks are cut at each image's own size; a step on the way to a mask is taken only on evidence.
# - The score to trust is that of choices made on other images: the cross-fitted one.
# - Test images have no masks, but they have suspects: look at them before you submit.
#
# ## Two questions
#
# 1. Why is the cross-fitted score usually a little lower than the chosen one, and which of the two would you
#    tell a colleague?
# 2. Networks agree on an image and are wrong all the same: how can that be, and what would show it?
