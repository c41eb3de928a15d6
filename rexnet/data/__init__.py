"""Where images come from and in which order: all randomness here is a pure function of keys, never of a past.

Belongs here: data sets on disk, sample order, decoding, augmentation, batches, masks: numpy, OpenCV and Pillow only.
Does not belong here: MindSpore, threads that keep random state, downloads.
"""
