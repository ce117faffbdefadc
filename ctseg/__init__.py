"""ctseg: from a folder of images and masks to a submission. The map of the package; imports go one way.

What is fixed, what may be set:

    contest.py      one contest's facts: name, mounts, folders, columns, pixel order
    config.py       every setting of a run, declared once, and four presets
    arguments.py    parameters on a command line
    seeds.py        randomness keyed by purpose
    files.py        files that are whole or absent, folders with one writer
    shared.py       memory that several processes share
    live.py         whether somebody watches this notebook
    phantom.py      a CT-like data set with known test masks
    folders.py      a data set's folders, named or usual, and its image files
    paths.py        where things are: repository, data root, a run's folder, a file that is named

The flow, in the order in which an image passes; start reading at `train.train_model`:

    data.py         pair images with masks, read them, hold the training set in memory
    masks.py        what the values of a mask mean: foreground, soft edges, labels
    transforms.py   into the square and back: geometry that undoes itself
    augment.py      random changes of whole batches, on the device that trains
    model.py        U-Nets over any encoder
    weights.py      weights files: torchvision's, other people's, the kit's own
    device.py       device, precision, GPU check
    losses.py       BCE and soft Dice on logits
    metrics.py      Dice of each image, intervals for the mean
    schedule.py     how long training lasts, and its learning rate on the way
    log.py          what training prints, here and in worker processes
    train.py        the loop, its checkpoint, its validation
    predict.py      probabilities with TTA, masks, out-of-fold predictions
    postprocess.py  candidates, choice by evidence, cross-fit
    submission.py   run-length code, CSV, checks

Before and after:

    split.py        near-duplicates, groups and folds
    tables.py       what the contest's own tables say of its submission
    check.py        the data check: every problem in one table
    explore.py      the measures of notebooks 01 and 02
    diagnose.py     the measures of notebooks 03 and 04: levels, verdicts, doubts
    plots.py        one look for all figures; tables
    plots_data.py   the figures of notebooks 01 and 02
    plots_run.py    the figures of notebooks 03 and 04
    page.py         a page in one file, with its pictures
    report.py       a run's summary and its report

A run:

    fingerprint.py  what a run was trained on, kept with it
    progress.py     a bar and curves in a live notebook
    runs.py         parameters, config, the run's folder, its data set, its network
    workers.py      processes side by side, a GPU or CPU cores for each
    folds.py        train the folds, in turn or side by side
    compare.py      runs side by side, with intervals that hold together
    child.py        a program that ends when its parent does
    cluster.py      Dask workers in place of threads
    pairs.py        notebooks as files: both halves alike, no outputs in git
    execute.py      the notebooks headless, in turn
    sweep.py        a grid of runs, here or on a cluster, and their ranked table
"""
