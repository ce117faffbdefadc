"""ctseg: from a folder of images and masks to a submission, one small module a step; start reading at `folds.train_fold`."""
