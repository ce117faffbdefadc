"""`make mutants`: faults that cost people contests, seeded into `ctseg` one at a time; the tests notice each.

A fault is (what it is, module, text, the text in its place). The fast tests run on it, those of the module's
own file first, up to the first failure.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# Tests of these start programs, or say nothing of a fault.
SLOW = {
    "bench",
    "browser",
    "build",
    "client",
    "execute",
    "kernel",
    "kill",
    "makefile",
    "map",
    "mutants",
    "notebooks",
    "sweep",
}
FAULTS = [
    (
        "RLE off by one",
        "submission",
        "np.stack([starts + contest.first_pixel, ends - starts]",
        "np.stack([starts, ends - starts]",
    ),
    (
        "RLE column-major",
        "submission",
        "dtype=bool).ravel(order=contest.pixel_order)",
        'dtype=bool).ravel(order="F")',
    ),
    ("RLE of overlapping runs accepted", "submission", " or np.any(starts[1:] < ends[:-1])", ""),
    ("a missing id submitted", "submission", "if duplicate or wrong:", "if duplicate:"),
    (
        "mask resized by nearest from the corner",
        "transforms",
        "np.round(255 * average_area(mask, letterbox.resized_size))",
        "255 * mask[np.ix_(*[np.arange(n) * m // n for n, m in zip(letterbox.resized_size, mask.shape)])]",
    ),
    (
        "image flipped without its mask",
        "augment",
        "images, targets = moved[:, :3], moved[:, 3:]",
        "images, targets = moved[:, :3].flip(3), moved[:, 3:]",
    ),
    (
        "soft target thresholded early",
        "transforms",
        "np.round(255 * average_area(mask, letterbox.resized_size))",
        "255 * (average_area(mask, letterbox.resized_size) > 0.5)",
    ),
    (
        "undo off by a pixel",
        "transforms",
        "slice(start, start + size) for",
        "slice(start + 1, start + size + 1) for",
    ),
    (
        "undo by nearest",
        "transforms",
        "self.original_size[::-1], Image.Resampling.BILINEAR",
        "self.original_size[::-1], Image.Resampling.NEAREST",
    ),
    (
        "height and width exchanged",
        "transforms",
        "letterbox = make_letterbox(original_size or",
        "letterbox = make_letterbox((original_size or ())[::-1] or",
    ),
    ("images twice as bright", "transforms", "return images.float() / 255", "return images.float() / 128"),
    (
        "threshold before the resize, in prediction",
        "postprocess",
        "full = make_probability(probability, letterbox, steps.smoothing)",
        "full = 2.0 * (letterbox.undo((probability > steps.threshold).astype(np.float32)) > 0.5)",
    ),
    (
        "threshold before the resize, in validation",
        "train",
        "letterbox.undo(probability) > threshold",
        "letterbox.undo((probability > threshold).astype(np.float32)) > 0.5",
    ),
    (
        "train/validation leak",
        "folds",
        "training_set.select(np.flatnonzero(fold_of_case != fold))",
        "training_set.select(np.flatnonzero(fold_of_case >= 0))",
    ),
    (
        "near-duplicates split",
        "split",
        "areas, together = training_set.areas, _join_duplicates(training_set, units, n_folds)",
        "areas, together = training_set.areas, units",
    ),
    ("mirrored duplicates split", "split", "for step in (1, -1):", "for step in (1,):"),
    (
        "BGR for RGB",
        "data",
        'return np.asarray(upright.convert("RGB"))',
        'return np.asarray(upright.convert("RGB"))[..., ::-1]',
    ),
    ("EXIF rotation ignored", "data", "upright = ImageOps.exif_transpose(image)", "upright = image"),
    (
        "masks paired by order, not by stem",
        "data",
        "Case(stem, paths[0], masks[stem][0], mask_set)",
        "Case(stem, paths[0], masks.popitem()[1][0], mask_set)",
    ),
    ("0/1 masks read as empty", "data", "return values > sum(levels) / 2", "return values > 127"),
    ("the lower of two values read as foreground", "data", "sum(levels) / 2", "values.max() / 2"),
    (
        "the background of a color mask is that of its own border alone",
        "data",
        "background = mask_set.find_background() if mask_set else None",
        "background = None",
    ),
    (
        "an image of one value full, whatever the others have",
        "data",
        "return background if lowest == highest else min(low, background), high",
        "return low, high",
    ),
    ("colors without red", "masks", "_LUMA = (0.299,", "_LUMA = (0.0,"),
    (
        "frames of a mask ignored",
        "data",
        'getattr(image, "n_frames", 1)) > 1',
        'getattr(image, "n_frames", 1)) > 9',
    ),
    ("16-bit colors of a mask cut to 8", "data", "if has_deep_colors(image):", "if False:"),
    (
        "NaN in a mask is background",
        "data",
        "if not np.isfinite(values).all():\n                raise",
        "if False:\n                raise",
    ),
    ("a mask in the alpha channel empty", "data", "if image.has_transparency_data", "if False"),
    (
        "a mask's orientation ignored",
        "data",
        "        image = ImageOps.exif_transpose(image)\n        if is_deep",
        "        if is_deep",
    ),
    (
        "a TIFF mapped into memory",
        "data",
        "Image.open(file, formats=_FORMATS)",
        "Image.open(path, formats=_FORMATS)",
    ),
    ("all masks empty, trained all the same", "data", "if set(areas) in ({0}, {1}):", "if False:"),
    (
        "levels at the ends of what JPEG overshoots",
        "masks",
        "if len(present) > _FEW_VALUES:\n        is_upper",
        "if False:\n        is_upper",
    ),
    ("instances taken for soft edges", "masks", "if _numbers_regions(share):", "if False:"),
    (
        "a small label taken for a soft edge",
        "masks",
        "if not tolerance and deepest >= _COMPACT_DEPTH",
        "if False",
    ),
    (
        "one mask of the set asked for its background",
        "data",
        "sample = self._paths[:: math.ceil(len(self._paths) / 64) or 1]",
        "sample = self._paths[:1]",
    ),
    (
        "16-bit planes cut to 8",
        "data",
        "max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8",
        "False",
    ),
    (
        "the set left out of training and validation",
        "data",
        "mask = None if case.mask is None else read_mask(case.mask, case.mask_set)",
        "mask = None if case.mask is None else read_mask(case.mask)",
    ),
    ("the set left out of out-of-fold scores", "predict", "self.cases[index].mask_set", "None"),
    (
        "a third label taken for soft edges",
        "masks",
        "if deepest >= max(least,",
        "if False and deepest >= max(least,",
    ),
    (
        "soft edges taken for a third label",
        "masks",
        "_LABEL_RELATIVE_DEPTH * around",
        "0",
    ),
    (
        "names that are not UTF-8 kept",
        "data",
        'decode("utf-8", "backslashreplace")',
        'decode("utf-8", "surrogateescape")',
    ),
    (
        "a window refused where training used none",
        "runs",
        "(not only_window or read_window(run_dir))",
        "True",
    ),
    (
        "a window changed under 16-bit training images",
        "runs",
        "(not only_window or read_window(run_dir))",
        "not only_window",
    ),
    ("16-bit test images found after training", "check", "depths == {False} and not has_window", "False"),
    ("labels of several files not counted", "check", "if len(pairs) > 1 or pairs.keys()", "if pairs.keys()"),
    ("several masks of an image renamed", "check", "and masks_of[image] == 1", ""),
    (
        "counters of batch normalization demanded",
        "weights",
        'if not name.endswith("num_batches_tracked")',
        "",
    ),
    (
        "weights of another shape left out",
        "weights",
        "if _describe(named.get(name)) != expected.get(name)",
        "if False",
    ),
    (
        "a larger backbone cut to fit",
        "weights",
        "sorted(expected.keys() | named.keys())",
        "sorted(expected.keys())",
    ),
    ("weights of NaN", "weights", "if not torch.isfinite(tensor).all():", "if False:"),
    ("old names of DenseNet's tensors unknown", "weights", 'old.sub(r"\\1\\2", name)', "name"),
    (
        "a network's decoder left untrained",
        "weights",
        'not _has(tensors, "segmentation_head.weight")',
        "True",
    ),
    ("the cached file unpickled", "weights", "        read_torch(cached, fix=again)", "        pass"),
    (
        "every encoder normalized like ImageNet",
        "model",
        "BackboneEncoder(backbone, tuple(transform.mean), tuple(transform.std))",
        "BackboneEncoder(backbone)",
    ),
    (
        "weights that saw the validation images used in silence",
        "folds",
        "if seen := trained_on &",
        "if seen := set() &",
    ),
    (
        "scheduler stepped once per epoch",
        "train",
        "learner.set_lr(steps[batch])",
        "learner.set_lr(steps[0])",
    ),
    ("last weights used as best", "train", "if find_kept(history, learner.config.keep) is row", "if True"),
    ("best weights used as last", "train", 'if keep == "last" else max(', "if False else max("),
    ("gradients added up", "train", "        self.optimizer.zero_grad(set_to_none=True)\n", ""),
    ("norms and biases decayed", "train", "p.ndim > 1 and", "p.ndim > 0 and"),
    (
        "resume without the state of the optimizer",
        "train",
        '("model", "optimizer", "scaler")',
        '("model", "scaler")',
    ),
    (
        "resume without the schedule's place",
        "train",
        "train, steps=steps, seed",
        "train, steps=range(len(steps)), seed",
    ),
    (
        "resume without RNG: augmentation",
        "train",
        "make_generator(*seed, 2, batch))",
        "make_generator(2, next(globals().setdefault('_drawn', __import__('itertools').count()))))",
    ),
    (
        "resume without RNG: dropout",
        "train",
        "    torch.manual_seed(make_seed(*seed, 1))  # dropout draws from the global generator\n",
        "",
    ),
    ("epochs share their augmentation", "train", "seed=(*seed, epoch), on", "seed=seed, on"),
    (
        "folds share their augmentation",
        "folds",
        "    torch.manual_seed(make_seed(*seed))  # the initial weights\n",
        "    torch.manual_seed(make_seed(*seed))  # the initial weights\n    seed = (config.seed,)\n",
    ),
    ("broken weights saved", "train", "if not bad and not all(", "if not bad and False and not all("),
    (
        "Dice over the batch instead of per image",
        "train",
        "    return np.array(list(map_threads(score, enumerate(predict_training_set(model, validation)))))",
        "    scores = list(map_threads(score, enumerate(predict_training_set(model, validation))))\n"
        "    return np.full(len(validation), np.mean(scores))",
    ),
    ("empty mask scored 0", "metrics", "if total else 1.0", "if total else 0.0"),
    (
        "Dice of the intersection over the union",
        "metrics",
        "float(2 * np.count_nonzero(pred_mask & true_mask)",
        "float(np.count_nonzero(pred_mask & true_mask)",
    ),
    (
        "BCE and Dice weights exchanged",
        "losses",
        "self.bce_weight * bce + (1 - self.bce_weight) * dice_loss",
        "(1 - self.bce_weight) * bce + self.bce_weight * dice_loss",
    ),
    ("weights at one side of a border only", "losses", "(targets - mean).abs()", "(targets - mean).relu()"),
    ("borders weighted on top of BCE's mean", "losses", "return weights / weights.mean()", "return weights"),
    ("border weights not passed on", "train", "config.bce_weight, config.border_weight", "config.bce_weight"),
    ("TTA not flipped back", "predict", "predict(oriented.flip(3)).flip(2)", "predict(oriented.flip(3))"),
    (
        "prediction in training mode",
        "predict",
        "    model.eval()\n\n    def predict",
        "    model.train()\n\n    def predict",
    ),
    ("no ImageNet normalization", "model", "        images = (images - self.mean) / self.std\n", ""),
    (
        "weights of the classifier's file not loaded",
        "weights",
        "    best.module.load_state_dict(best.tensors, strict=False)\n",
        "",
    ),
    (
        "test ids in another order than their masks",
        "predict",
        "yield Prediction(cases[index], ",
        "yield Prediction(cases[indices[0] + indices[-1] - index], ",
    ),
    (
        "a map that keeps its place in another run's square",
        "transforms",
        "moved[other.inside] = replace",
        "moved[: other.resized_size[0], : other.resized_size[1]] = replace",
    ),
    (
        "runs averaged on images that not all of them have",
        "predict",
        "if all(image_id in found for found in places)]",
        "if any(image_id in found for found in places)]",
    ),
    (
        "runs averaged in the order in which each of them has its images",
        "predict",
        "member.select([found[name] for name in common])",
        "member.select(sorted(found[name] for name in common))",
    ),
    (
        "the folds of some predictions taken from the first ones",
        "predict",
        "self.probabilities[indices], self.folds[indices]",
        "self.probabilities[indices], self.folds[: len(indices)]",
    ),
    (
        "every run of an average in the first one's window",
        "folds",
        "choose_window(config, run_dir))",
        "dataset.window)",
    ),
    (
        "an average that takes the place of one of its runs",
        "runs",
        "if len({*names, run}) <= len(names):",
        "if len({*names}) < len(names):",
    ),
    (
        "average of masks instead of probabilities",
        "predict",
        "each = [predict_probabilities(network, batch, tta=self.tta) for",
        "each = [(predict_probabilities(network, batch, tta=self.tta) > 0.5).float() for",
    ),
    (
        "out-of-fold predictions of the last weights",
        "folds",
        '        load_weights(learner.model, fold_dir / "best_unet_model.pth")\n',
        "",
    ),
    (
        "post-processing applied though it hurt",
        "postprocess",
        "        if not helpful:\n            return current",
        "        if not helpful:\n            return replace(current, keep_largest_component=True)",
    ),
    (
        "a choice scored on the cases that made it",
        "postprocess",
        "choose_postprocess(score_each, baseline, folds != fold)",
        "choose_postprocess(score_each, baseline, folds == fold)",
    ),
    (
        "programs in a weights file run",
        "weights",
        'map_location="cpu", weights_only=True',
        'map_location="cpu", weights_only=False',
    ),
    (
        "any program that Pillow knows started",
        "data",
        "Image.open(file, formats=_FORMATS)",
        "Image.open(file)",
    ),
    (
        "a sample submission of other images ignored",
        "tables",
        "(odd := {row[ids] for row in table.rows} ^ expected)",
        "(odd := [])",
    ),
    ("two writers in a folder", "files", "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass"),
    ("other settings in an existing run", "runs", "if differing and (not", "if False and (not"),
    (
        "a typo in a notebook's parameters ignored",
        "config",
        "        if name not in NAMES:",
        "        if False:",
    ),
    (
        "masks of an earlier prediction submitted",
        "predict",
        "            path.unlink()\n",
        "            pass\n",
    ),
    ("a change of the augmentation left out", "augment", "1 + self.strength.color *", "1 + 0 *"),
    ("the variable that names the data ignored", "paths", 'os.environ.get("CTSEG_DATA", "")', '""'),
    ("the early threshold left out", "explore", "(target > 0.5).astype(np.float32)", "target"),
    ("bfloat16 where a GPU only emulates it", "device", ">= (8, 0)", ">= (7, 5)"),
    (
        "one stream for all random draws",
        "seeds",
        "np.random.SeedSequence(key)",
        "np.random.SeedSequence(key[0])",
    ),
    # Runs that are moved, data that change, other contests
    ("training data that changed accepted", "fingerprint", "    if changes:\n", "    if False:\n"),
    (
        "a case that is new ignored",
        "fingerprint",
        'dict.fromkeys(present.keys() - kept.keys(), "is new")',
        "{}",
    ),
    (
        "a mask of as many pixels taken for the same",
        "data",
        "zlib.crc32(np.packbits(mask).tobytes(), ",
        "zlib.crc32(bytes([mask.sum() % 256]), ",
    ),
    (
        "a mask that is only saved again refused",
        "fingerprint",
        'return "" if digest_mask(',
        'return "x" if digest_mask(',
    ),
    ("folds drawn anew in a run that has them", "folds", "if kept is not None:", "if False:"),
    (
        "data looked at without a check",
        "runs",
        "if not config.predict_folder:\n            check_training_data",
        "if False:\n            check_training_data",
    ),
    (
        "new images need the training data",
        "runs",
        "    if config.predict_folder:\n        return config\n",
        "",
    ),
    (
        "settings of an existing run forgotten",
        "runs",
        "return Config(**fill_settings(parameters, stored))",
        "return Config(**fill_settings(parameters, None))",
    ),
    (
        "the place of the data forgotten",
        "runs",
        "if last else find_data_root",
        "if False else find_data_root",
    ),
    (
        "a place that is no more not searched for",
        "runs",
        '        return find_data_root("", config)',
        "        raise",
    ),
    (
        "other weights taken for the run's",
        "runs",
        "if _digest(source) != config.weights_digest:",
        "if False:",
    ),
    (
        "a new image replaces its namesake",
        "runs",
        "stem if is_unique else printable(path.name)",
        "stem",
    ),
    (
        "the window of training images forgotten",
        "runs",
        "read_window(run_dir) if None in given else given",
        "None if None in given else given",
    ),
    (
        "new images that cannot be read stop the others",
        "data",
        "            dataset.read(index)\n        except ValueError",
        "            dataset.read(index)\n        except KeyError",
    ),
    (
        "column-major codes read in rows",
        "submission",
        "np.diff(edges)).reshape(shape, order=contest.pixel_order)",
        "np.diff(edges)).reshape(shape)",
    ),
    ("the first pixel unchecked", "tables", "for first in (1, 0)]", "for first in (1,)]"),
    ("the order of pixels unchecked", "tables", 'for order in "CF" for', 'for order in "C" for'),
    (
        "an empty mask's text unchecked",
        "tables",
        '{"empty_mask": empty.pop()} if len(empty) == 1 else {}',
        "{}",
    ),
    (
        "a code of another mask accepted",
        "tables",
        "if odd and (n_fitting or has_to_fit):",
        "if False:",
    ),
    (
        "ids with an extension unnoticed",
        "tables",
        'found = {"id_with_extension": table.has_extensions} if test',
        "found = {} if test",
    ),
    (
        "columns in another order",
        "submission",
        "csv.DictWriter(file, contest.read_columns()",
        "csv.DictWriter(file, sorted(contest.read_columns())",
    ),
    ("an empty mask as another contest writes it", "submission", "or contest.empty_mask", 'or ""'),
    ("no code where the contest writes a text", "submission", "    if not rle.strip():", "    if False:"),
    (
        "ids without their extension",
        "submission",
        "printable(case.image.name) if contest.id_with_extension",
        "case.image_id if contest.id_with_extension",
    ),
    ("a constant column unchecked", "submission", "if row != (right :=", "if False and (right :="),
    ("two data sets, the first taken", "paths", "if len(roots) > 1:", "if False:"),
    ("two layouts, the first taken", "folders", "if len(whole) > 1:", "if False:"),
    ("the mask's suffix ignored", "data", "if name.startswith(start) and name.endswith(end)]", "]"),
    (
        "groups forgotten",
        "split",
        "_number_labels([None] * len(training_set) if groups is None else groups)",
        "np.arange(len(training_set))",
    ),
    ("groups forgotten by the run", "folds", "seed=config.seed, groups=groups", "seed=config.seed"),
    (
        "a chain of near-duplicates in one fold",
        "split",
        "joined[members] = joined.max() + 1 + pieces",
        "pass",
    ),
    (
        "a chain cut anywhere",
        "split",
        "members[reverse_cuthill_mckee(graph[members][:, members])]",
        "members[::-1][np.argsort(members % 3)]",
    ),
    ("the first fold whatever its size", "split", "numbers[[0, nearest]] = nearest, 0", "pass"),
    ("only near-duplicates of one block", "split", "for j in range(i, n, _BLOCK):", "for j in [i]:"),
    (
        "a bound that prunes too much",
        "split",
        "_DUPLICATE_CORRELATION - _ROUNDING",
        "_DUPLICATE_CORRELATION + 0.006",
    ),
    ("a folder that is named and not there", "folders", "if folder and not folder.is_dir():", "if False:"),
    ("a folder outside the data root", "folders", 'or ".." in Path(value).parts', ""),
    ("hidden files taken for images", "folders", ' and not path.name.startswith(".")', ""),
    ("masks beside test images predicted", "data", "if stem not in masks}", "}"),
    (
        "a begun run that forgot its data",
        "fingerprint",
        "if not path.is_file() and is_begun(run_dir):",
        "if False:",
    ),
    (
        "two starts of a run with other settings",
        "folds",
        "    check_settings(config, run_dir)\n    check_still",
        "    check_still",
    ),
    (
        "two starts of a run with other data",
        "folds",
        "    check_still_kept(run_dir, training_set, fold_of_case)\n",
        "",
    ),
    (
        "a busy fold recorded as failed",
        "folds",
        "    except FolderBusy as error:\n        log.say",
        "    except KeyError as error:\n        log.say",
    ),
    (
        "a window for test images kept as training's",
        "folds",
        "window = find_window(training_set.cases) and find_window(",
        "window = find_window(",
    ),
    ("any failure of a disk taken for no locks", "files", "if error.errno not in _NO_LOCKS:", "if False:"),
    (
        "predictions of two folders in one",
        "runs",
        "os.fsencode(folder)",
        "os.fsencode(folder.name)",
    ),
    ("subfolders of new images left out in silence", "check", "if not is_image(path)]", "if False]"),
    (
        "new images of 8 bits among 16 unnoticed",
        "check",
        "if dataset.window and not deep:",
        "if False:",
    ),
    (
        "what is missed in the color of what is too much",
        "plots_run",
        "true_mask & ~pred_mask, TRUE",
        "pred_mask, TRUE",
    ),
    ("a choice applied that loses elsewhere", "postprocess", "> np.mean(baseline_scores)", "> 0"),
    (
        "networks that always agree",
        "predict",
        "dice_score(each > 0.5, mean > 0.5)",
        "dice_score(mean > 0.5, mean > 0.5)",
    ),
    ("disagreement of one orientation", "predict", 'network, images, "flips")', 'network, images, "none")'),
    (
        "the least suspicious first",
        "diagnose",
        '(-len(reasons[row["image_id"]])',
        '(len(reasons[row["image_id"]])',
    ),
    ("a plateau taken for overfitting", "diagnose", "chance = max(3 * noise", "chance = max(0 * noise"),
    ("a run told to be shorter", "diagnose", "2 * max(n, config.epochs or 0)", "2 * n"),
    (
        "each image's own direction of a channel",
        "explore",
        "max(values.mean(), 1 - values.mean())",
        "np.maximum(values, 1 - values).mean()",
    ),
    ("vanished regions left out", "explore", "if not mask.any():", "if mask.mean() < 0.001:"),
    (
        "regions shrink at the edge",
        "explore",
        "binary_erosion(small, border_value=1)",
        "binary_erosion(small)",
    ),
    ("usual cases called unusual", "explore", "_UNUSUAL = 2.0", "_UNUSUAL = -1.0"),
    (
        "a speck lost in a large mask",
        "transforms",
        "block_reduce(array, stride, np.max)",
        "array[::stride, ::stride]",
    ),
    (
        "empty training masks among regions",
        "diagnose",
        '[mask for mask in typical if mask["area"]]',
        "list(typical)",
    ),
    ("other images compared", "compare", "set.intersection(", "set.union("),
    (
        "early and late threshold exchanged",
        "explore",
        "return letterbox.undo(target) > 0.5, letterbox.undo(cut) > 0.5",
        "return letterbox.undo(cut) > 0.5, letterbox.undo(target) > 0.5",
    ),
    ("empty predictions not named", "plots", '{0: ", empty", ', "{"),
    ("a format kept before it was checked", "runs", '"window_high", *CONTEST_FACTS)', '"window_high")'),
    (
        "a sample of several rows for an image",
        "tables",
        "for name, count in Counter(row[ids] for row in table.rows).items() if count > 1]",
        "for name, count in {}.items()]",
    ),
    (
        "another contest's sample taken for this one's",
        "tables",
        "len(known) - known.count(None) > len(known) / 2",
        "True",
    ),
    ("codes of files by another extension unread", "tables", "(name, file.name, file.stem)", "(name,)"),
    ("a value that begins with a dash", "arguments", "words[place] = _VALUE +", "words[place] ="),
    (
        "intervals that hold one by one only",
        "compare",
        "np.quantile(largest, _LEVEL) * errors",
        "1.96 * errors",
    ),
    (
        "the luck of a winner believed",
        "compare",
        "not_drawn = means.argmax(axis=1), weights == 0",
        "not_drawn = means.argmax(axis=1), weights >= 0",
    ),
    (
        "images paired by position",
        "compare",
        "in sorted(values.items())",
        "in zip(sorted(values), values.values())",
    ),
    ("runs on other data compared", "compare", "if read_mask_digests(run_dir) != first:", "if False:"),
    (
        "configurations on other images compared",
        "compare",
        "for entry in configurations if list(averages[entry.name]) == images]",
        "for entry in configurations if len(averages[entry.name]) >= 1]",
    ),
    (
        "a verdict on few images",
        "metrics",
        "if n_images < MIN_IMAGES:\n        return",
        "if False:\n        return",
    ),
    (
        "an exit status trusted over files",
        "sweep",
        'return "" if task.is_finished(repository) else',
        'return "" if status == 0 else',
    ),
    ("finished runs trained again", "sweep", "if not task.is_finished(repository)]", "]"),
    ("a failed base ignored", "sweep", "if error and task.run.configuration == base:", "if False:"),
    (
        "a base of which a repeat failed",
        "sweep",
        "base=base.configuration)",
        "base=base.name)",
    ),
    (
        "a configuration of which a repeat failed",
        "sweep",
        "if not failures.keys() & set(tasks):",
        "if not failures.keys() & {tasks[0]}:",
    ),
    (
        "seeds that repeat nothing",
        "sweep",
        'for seed in swept.get("seed", [None]):',
        'for seed in swept.get("seed", [None])[:1]:',
    ),
    ("a worker's threads before the kit's", "device", '"MKL_NUM_THREADS", ', ""),
    ("an earlier try's reason", "sweep", ".unlink(missing_ok=True)", ".exists()"),
    ("a sweep on changed masks", "sweep", "for path in begun[:1]:", "for path in ():"),
    ("a best without its preset", "sweep", '{"preset": None, **grid}', "grid"),
    ("a budget in a sweep", "sweep", "for name in grid.keys() & _REFUSED.keys():", "for name in ():"),
    (
        "other fixed values under the same name",
        "sweep",
        "for path in begun:",
        "for path in ():",
    ),
    ("no watch on the parent", "child", "while os.getppid() == parent:", "while True:"),
    ("a batch of one image", "train", "if whole and len(last) == 1 < batch_size:", "if False:"),
    (
        "a folder that cannot be locked refused",
        "files",
        "if error.errno not in _NO_LOCKS:",
        "if True:",
    ),
    (
        "a file of parameters over single ones",
        "arguments",
        "parameters |= {name: parse_value(value)",
        "parameters = parameters or {name: parse_value(value)",
    ),
    (
        "tried values in a run",
        "execute",
        "notebook = reset_parameters(nbformat.read(path, as_version=4))",
        "notebook = nbformat.read(path, as_version=4)",
    ),
    ("halves that differ in the commit", "pairs", "if any(texts) and not _agree(texts):", "if False:"),
    (
        "a cell of its own unnoticed",
        "pairs",
        "if found := sorted(_list_stored(_parse(cell.source))):",
        "if found := []:",
    ),
    ("outputs in git", "pairs", "notebook, _ = ClearOutputPreprocessor(enabled=True)(notebook, {})", "pass"),
    ("the phantom on Kaggle", "runs", "and not on_kaggle and not others", "and not others"),
    ("the phantom in place of lost data", "runs", "if last or begun or not _may", "if begun or not _may"),
    ("a look at the data fixes the recipe", "runs", "    elif not trains:", "    elif False:"),
    (
        "a refused setting trains",
        "folds",
        "    check_settings(config, run_dir)\n    training_set",
        "    training_set",
    ),
    ("a finished fold keeps its states", "folds", "        slim_checkpoint(fold_dir)\n", ""),
    (
        "unfinished folds counted as finished",
        "folds",
        "if unfinished else _is_finished",
        "if True else _is_finished",
    ),
    ("a bar for papermill", "live", "    return is_watched and", "    return"),
    ("curves of the other theme", "page", '("#000000", "ink"), ', ""),
    (
        "a report of any size",
        "report",
        "left_out = size + len(picture) > _MAX_BYTES * 0.98",
        "left_out = False",
    ),
    (
        "a report with a path of the machine",
        "report",
        "Path(value).name if is_path else str(value)",
        "str(value)",
    ),
    (
        "failures hidden among the typical",
        "report",
        'shown = dict.fromkeys(lowest.tolist(), "lowest")',
        "shown = {}",
    ),
    (
        "runs that differ least",
        "compare",
        "key=spread.get, reverse=True)[:n_cases]",
        "key=spread.get)[:n_cases]",
    ),
    (
        "a changed plan begins the schedule anew",
        "schedule",
        "return Plan(total_steps, done - 1, self.locate(done - 1))",
        "return Plan(total_steps)",
    ),
    (
        "no time for the out-of-fold predictions",
        "schedule",
        "max(0.0, seconds - pace.end)",
        "max(0.0, seconds)",
    ),
    (
        "no time for the last validation",
        "schedule",
        "int((rest - pace.epoch_end) / pace.step)",
        "int(rest / pace.step)",
    ),
    ("lost time is the last fold's", "schedule", "left[0] / sum(left)", "left[0] / sum(self.needs)"),
    ("a deadline from now on", "schedule", "else _STARTED + 60", "else time.monotonic() + 60"),
    ("loading is not of the budget", "folds", "time.monotonic() - training_set.seconds", "time.monotonic()"),
    ("a resumed budget begins anew", "folds", "max(weight * unit - spent, 0.01 * unit)", "weight * unit"),
    (
        "a deadline counts only without a budget",
        "folds",
        "min(ends_at, find_deadline(config.deadline_minutes))",
        "ends_at if config.budget_minutes else find_deadline(config.deadline_minutes)",
    ),
    ("a resumed fold takes all cores", "folds", "use_threads(_find_threads(last))", "use_threads(None)"),
    ("more threads than cores", "device", "min(n, count_cores()) if n else before", "n or before"),
    ("folds side by side whatever the memory", "folds", "max(1, min(n_useful, n_fitting))", "n_useful"),
    (
        "all cores for each of the folds side by side",
        "workers",
        "_use_threads(n_threads)]",
        "_use_threads(count_cores())]",
    ),
    (
        "less time for the last folds, though they have no more threads",
        "workers",
        "_DOUBLED ** math.log2(n_more / n_threads)",
        "_DOUBLED",
    ),
    (
        "all memory planned by each run of a sweep",
        "folds",
        "_MEMORY_SHARE * count_cores() / count_cores(of_machine=True)",
        "_MEMORY_SHARE",
    ),
    ("the pace measured when the time is over", "schedule", "if not pace and left > 0:", "if not pace:"),
    ("no worker is ever taken for hung", "workers", "if self.waited > self.silence:", "if False:"),
    ("a worker that gives signs is killed", "workers", "watch.note_sign()", "pass"),
    ("workers outlive an error", "workers", "                self.stop()\n", ""),
    (
        "an overflow in running statistics",
        "train",
        "torch.where(after.isfinite(), after, before)",
        "after",
    ),
    ("skipped steps not counted", "train", '"skipped_steps": int(is_skipped.sum())', '"skipped_steps": 0'),
    ("half precision that overflows for ever", "train", " or learner.scaler.get_scale() < 1)", ")"),
    (
        "a pace of the first images",
        "train",
        "np.linspace(0, len(validation) - 1, n).round().astype(int)",
        "np.arange(n)",
    ),
    (
        "a plan that is never looked at again",
        "train",
        "learner.plan = planner.plan(done, learner.plan)\n        _write",
        "pass\n        _write",
    ),
    (
        "a choice on the network's own pixels",
        "predict",
        "side = max(side, 2 * self.probabilities.shape[-1])",
        "side = self.probabilities.shape[-1]",
    ),
    (
        "the choice scores what it chose from",
        "postprocess",
        "choose_postprocess(score_each, baseline, folds != fold) for",
        "choose_postprocess(score_each, baseline) for",
    ),
]


def run_tests(folder: Path, names: list[str], seconds: float) -> tuple[bool, str]:
    """Run the tests of `names` in a copy of the repository; return whether they passed, and what failed."""
    files = [f"tests/test_{name}.py" for name in names]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *files]
    output = {"capture_output": True, "text": True, "errors": "backslashreplace"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, timeout=seconds, **output)
    except subprocess.TimeoutExpired:
        return False, "(it hung)"
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    failed = [line.split(" ")[1].rpartition("::")[2] for line in lines]
    return done.returncode == 0, (failed or ["(it could not be imported)" if done.returncode else ""])[0]


def try_fault(fault: tuple[str, str, str, str] | None, seconds: float = 600) -> tuple[bool, str]:
    """Seed one fault (None: none) into a copy and run the tests on it, as `run_tests` does."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "clone"
        ignored = shutil.ignore_patterns("__pycache__", "ctseg.ipynb")
        for name in ("ctseg", "tests", "notebooks", "kaggle_kernel"):
            shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
        shutil.copy(REPOSITORY / "pyproject.toml", folder)
        names = sorted(path.stem.removeprefix("test_") for path in (folder / "tests").glob("test_*.py"))
        names = [name for name in names if name not in SLOW or (fault and name == fault[1])]
        if fault:
            what, module, text, instead = fault
            path = folder / "ctseg" / f"{module}.py"
            source = path.read_text()
            if source.count(text) != 1:
                raise SystemExit(
                    f"{what}: {text!r} is {source.count(text)} times in {path.name}; expected once; fix "
                    "tests/tools/mutants.py"
                )
            path.write_text(source.replace(text, instead))
            names.sort(key=lambda name: name != module)
        return run_tests(folder, names, seconds)


def main() -> None:
    """Try all faults, or those asked for; end with status 1 if a fault survives."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[""], help="faults whose name holds one of these texts")
    only = parser.parse_args().only
    faults = [fault for fault in FAULTS if any(text in fault[0] for text in only)]
    started = time.monotonic()
    passed, failed = try_fault(None)
    if not passed:
        sys.exit(f"the tests fail without any fault: {failed}")
    survivors = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for fault, (passed, failed) in zip(faults, pool.map(try_fault, faults)):
            print(f"{'SURVIVED' if passed else 'caught':9} {fault[0]:50} {failed}", flush=True)
            survivors += [fault[0]] if passed else []
    minutes = (time.monotonic() - started) / 60
    print(f"{len(faults) - len(survivors)} of {len(faults)} faults caught, {minutes:.0f} minutes")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
