# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 · Decide on validation, predict the test images, submit
#
# Which post-processing helps is decided on predictions for images that were not trained on, never by habit: the largest component is right
# where there is one region an image, and wrong where there are many.
#
# *Input:* the trained folds of `runs/<run>/`; nothing is trained here. *Artefacts:* `postprocess.json`, `predicted_masks/*.png`,
# `submission.csv`, `examples.png`, `summary.json`.

# %%
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ctseg.config import make_config, open_run
from ctseg.data import read_image, read_mask
from ctseg.files import atomic_path, lock_folder, write_json
from ctseg.folds import find_folds, load_folds, make_dataset
from ctseg.phantom import read_kinds
from ctseg.plots import plot_cases, plot_gains, plot_scores, table
from ctseg.postprocess import PostProcess, choose_postprocess, cross_fit, make_mask, tabulate_choice
from ctseg.predict import OutOfFold, predict_masks, score_masks, write_masks
from ctseg.report import summarize, write_summary
from ctseg.submission import check_contest_files, check_submission, write_submission

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

# %% [markdown]
# Here what is `None` comes from the run itself, if it exists: `-p run name` is enough.

# %%
config = make_config(globals(), of_run=True)
run_dir = open_run(config)
config

# %%
folds = find_folds(run_dir)
train, test = make_dataset(config, "Train"), make_dataset(config, "Test")
validation = OutOfFold([path / "oof.npz" for path in folds], train.cases)
print(f"using {', '.join(path.name for path in folds)} of {config.n_folds}; {len(validation.cases)} validation images")

# %% [markdown]
# ## Validation, image by image
#
# Probabilities go back to each image's own size, then the threshold, then Dice. The mean hides the tail: look at the worst cases.

# %%
plain = PostProcess(threshold=config.threshold)
plain_scores = validation.score([plain])[plain]
plot_scores(plain_scores)

# %%
worst = np.argsort(plain_scores)[:6]
parts = [validation.read(index) for index in worst]
plot_cases(
    [read_image(validation.cases[index].image, window=train.window) for index in worst],
    [truth for _, _, truth in parts],
    [make_mask(square, frame, plain) for square, frame, _ in parts],
    titles=[f"{validation.cases[index].image_id}: {plain_scores[index]:.3f}" for index in worst],
)

# %% [markdown]
# Truth green, prediction magenta.
#
# ## What helps?
#
# From the plain threshold on, one change at a time: another threshold, smoothing, hole filling, the largest component, a minimum area. The best
# change is taken if the 95 % bootstrap interval of its gain, paired image by image, lies above zero, and the search goes on from there. The
# table shows what each change alone is worth.

# %%
chosen = choose_postprocess(validation.score, plain)
rows = tabulate_choice(validation.score, plain, chosen)
table(rows)

# %%
plot_gains(rows)

# %% [markdown]
# ## The figure to trust
#
# Chosen and measured on the same images, a choice flatters itself. So each fold is scored once more with what the *other* folds choose
# (with a single fold, each fifth of its images with what the others choose).

# %%
fitted_scores = cross_fit(validation.score, plain, validation.parts)
figures = {
    "plain": summarize(plain_scores),
    "chosen": summarize(validation.score([chosen])[chosen]),
    "cross-fitted": summarize(fitted_scores),
}
write_json({"chosen": asdict(chosen), "figures": figures, "table": rows}, run_dir / "postprocess.json")
print(f"chosen: {chosen}")
table([{"": name, **figure} for name, figure in figures.items()])

# %% [markdown]
# ## The test images
#
# One batch at a time: mean probability over the folds and, with `tta`, over orientations; back to each image's own size; then what was chosen;
# run-length code. The submission is written only if every test image is there once with a mask of its size, and if no sample submission or run-length
# code beside the data says that other ids or another order of pixels are meant.

# %%
check_contest_files(Path(config.data_root))
models = load_folds(config, run_dir)
with lock_folder(run_dir):
    predictions = predict_masks(models, test, chosen, tta=config.tta)
    write_submission(run_dir / "submission.csv", write_masks(predictions, run_dir / "predicted_masks"), test.cases)

# %% [markdown]
# Prediction magenta; truth green, where it is known: a contest hides the test masks, the phantom's lie beside it in `test_masks/`.

# %%
test_masks = Path(config.data_root).parent / "test_masks"
first = test.cases[:6]
truths = [read_mask(test_masks / f"{case.image_id}.png") for case in first] if test_masks.is_dir() else None
figure = plot_cases(
    [read_image(case.image, window=test.window) for case in first],
    truths,
    [read_mask(run_dir / "predicted_masks" / f"{case.image_id}.png") for case in first],
    titles=[case.image_id for case in first],
)
with atomic_path(run_dir / "examples.png") as partial:
    figure.savefig(partial, dpi=110, bbox_inches="tight")
figure

# %% [markdown]
# ## Scores
#
# On validation, and on the test images where their masks are known, hard cases apart.

# %%
scores = {"validation, plain threshold": plain_scores, "validation, cross-fitted": fitted_scores}
if test_masks.is_dir():
    test_scores = score_masks(run_dir / "predicted_masks", test_masks)
    hard = {image_id for image_id, kind in read_kinds(test_masks.parent).items() if kind != "plain"}
    scores["test"] = list(test_scores.values())
    scores["test, hard cases"] = [dice for image_id, dice in test_scores.items() if image_id in hard]
    scores["test, plain cases"] = [dice for image_id, dice in test_scores.items() if image_id not in hard]
summaries = {name: summarize(values) for name, values in scores.items() if len(values)}
table([{"": name, **summary} for name, summary in summaries.items()])

# %% [markdown]
# ## The artefacts are there

# %%
summary = write_summary(run_dir, scores=summaries, postprocess=str(chosen))
for name, reason in summary["failed"].items():
    print(f"FAILED and left out: {name}, {reason}")
check_submission(run_dir / "submission.csv", test.cases)
print(f"{run_dir / 'submission.csv'}: {len(test)} rows, valid")
