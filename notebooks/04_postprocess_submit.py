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
from pathlib import Path

import numpy as np

from ctseg.config import make_config, open_run
from ctseg.data import read_image, read_mask
from ctseg.files import lock_folder, write_json
from ctseg.folds import find_folds, load_folds, make_dataset, read_validation
from ctseg.phantom import read_kinds
from ctseg.plots import plot_cases, plot_scores, plot_steps, table
from ctseg.postprocess import choose_steps, score_steps, tabulate_steps
from ctseg.predict import predict_masks, write_masks
from ctseg.report import summarize, write_summary
from ctseg.submission import check_submission, write_submission

# %% [markdown]
# ## Parameters
#
# The same cell in all four notebooks; papermill replaces values with `-p name value`. `None` means what the preset says. Every other field of
# `ctseg.config.Config` can be passed in the same way.

# %% tags=["parameters"]
preset: str = "quick"  # quick (minutes on a CPU), baseline (the reference's recipe) or strong (for a GPU)
data_root: str = ""  # folder that holds Train and Test, "phantom" for the synthetic data set, "" to search
run: str = ""  # folder below runs/, "" for a name made from the settings
fold: int = None  # train this fold only, 0 to n_folds - 1; None for all
n_folds: int = None  # number of folds; 1 for one model on a 90/10 split
epochs: int = None  # passes over the training set
budget_minutes: float = None  # wall minutes of training and validation, all folds together, instead of epochs
batch_size: int = None  # images a step
lr: float = None  # largest learning rate of the schedule
target_size: int = None  # pixels, side of the square that the network sees
encoder: str = None  # network, unet
weights: str = None  # file of weights to start from, "" from scratch
seed: int = None  # of the split, the initial weights and every random draw

# %% [markdown]
# Here what is `None` comes from the run itself, if it exists: `-p run name` is enough.

# %%
config = make_config(globals(), of_run=True)
run_dir = open_run(config)
config

# %%
models = load_folds(config, run_dir)
train, test = make_dataset(config, "Train"), make_dataset(config, "Test")
print(f"using {', '.join(path.name for path in find_folds(run_dir))} of {config.n_folds}")

# %% [markdown]
# ## Validation, image by image
#
# Probabilities go back to each image's own size, then the threshold, then Dice. The mean hides the tail: look at the worst cases.

# %%
decided = ((case.image_id, probability > config.threshold, truth) for case, probability, truth in read_validation(run_dir, train.cases))
step_scores = score_steps(decided)
plot_scores(step_scores[()])

# %%
worst = sorted(step_scores[()], key=step_scores[()].get)[:6]
shown = [parts for parts in read_validation(run_dir, train.cases) if parts[0].image_id in worst]
shown.sort(key=lambda parts: worst.index(parts[0].image_id))
plot_cases(
    [read_image(case.image, window=train.window) for case, _, _ in shown],
    [truth for _, _, truth in shown],
    [probability > config.threshold for _, probability, _ in shown],
    titles=[f"{case.image_id}: {step_scores[()][case.image_id]:.3f}" for case, _, _ in shown],
)

# %% [markdown]
# Truth green, prediction magenta.
#
# ## Does post-processing help?
#
# Every combination against none, on the same images. A combination is applied only if the 95 % bootstrap interval of its gain lies above zero.
# (Chosen and measured on the same images, the gain of a chosen one is a little optimistic.)

# %%
steps = choose_steps(step_scores)
rows = tabulate_steps(step_scores, steps)
write_json({"threshold": config.threshold, "steps": list(steps), "table": rows}, run_dir / "postprocess.json")
table(rows)

# %%
plot_steps(rows)

# %% [markdown]
# ## The test images
#
# One image at a time: mean probability of the folds, back to its own size, threshold, the chosen steps, run-length code. The submission is
# written only if every test image is there once with a mask of its size.

# %%
with lock_folder(run_dir):
    predictions = predict_masks(models, test, threshold=config.threshold, steps=steps)
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
figure.savefig(run_dir / "examples.png", dpi=110, bbox_inches="tight")
figure

# %% [markdown]
# ## Scores
#
# On validation, and on the test images where their masks are known, hard cases apart.

# %%
scores = {"validation, without post-processing": step_scores[()], "validation, as submitted": step_scores[steps]}
if test_masks.is_dir():
    raw = predict_masks(models, test, threshold=config.threshold)
    test_scores = score_steps((image_id, mask, read_mask(test_masks / f"{image_id}.png")) for image_id, mask in raw)
    scores |= {"test, without post-processing": test_scores[()], "test, every step": test_scores[max(test_scores, key=len)]}
    scores |= {"test, as submitted": test_scores[steps]}
    hard = {image_id for image_id, kind in read_kinds(test_masks.parent).items() if kind != "plain"}
    if hard:
        scores["test, as submitted, hard cases"] = {i: dice for i, dice in test_scores[steps].items() if i in hard}
        scores["test, as submitted, plain cases"] = {i: dice for i, dice in test_scores[steps].items() if i not in hard}
table([{"": name, **summarize(values)} for name, values in scores.items()])

# %% [markdown]
# ## The artefacts are there

# %%
write_summary(run_dir, scores=scores, steps=steps)
check_submission(run_dir / "submission.csv", test.cases)
print(f"{run_dir / 'submission.csv'}: {len(test)} rows, valid")
